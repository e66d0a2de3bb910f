"""`python -m tests.benchmarks`: measure both servers, then write the page, its figures and its picture."""

from __future__ import annotations

# First, because it makes sockets cooperative before anything else imports them.
import locust  # noqa: F401  # isort: skip

import argparse
import json
import sys
from pathlib import Path

from .failed import stopping
from .places import BenchmarkFailed
from .plan import FULL, QUICK
from .report import write
from .run import benchmark, say


def main() -> int:
    """Run the benchmark; 1 if a server cannot be had, or `failed.stopping` finds that the figures say nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the smallest database, and each thing once")
    parser.add_argument("--to", type=Path, default=Path("docs"), help="the folder to write into")
    asked = parser.parse_args()
    plan, command = (QUICK, "make bench QUICK=yes") if asked.quick else (FULL, "make bench")
    asked.to.mkdir(parents=True, exist_ok=True)
    try:
        figures = benchmark(plan, command)
    except BenchmarkFailed as error:
        print(f"The benchmark ended: {error}", file=sys.stderr)
        return 1
    if wrong := stopping(figures):
        kept = asked.to / "performance-failed.json"
        kept.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        print("Requests failed, so the figures say nothing:", *wrong[:20], sep="\n", file=sys.stderr)
        print(f"The figures so far are in {kept}; no page was written.", file=sys.stderr)
        return 1
    for file in write(figures, asked.to):
        say(f"wrote {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
