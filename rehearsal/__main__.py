"""`make rehearse`, `make down`, and `make releases` and `make rollback` with ON=rehearsal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rehearsal.cloudformation import StackFailed, UnreadableStack
from rehearsal.run import CannotRehearse, Rehearsal, interruptible


def main() -> int:
    """Exit status: 0 the release reached prod, 1 it was stopped, 2 it could not be rehearsed, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="rehearsal",
        description="Take the checked-out commit through the whole delivery pipeline on this machine.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="rehearse the checked-out commit", description=main.__doc__)
    run.add_argument(
        "--approve",
        choices=["yes", "no"],
        help="answer the approval before prod beforehand; without it the terminal is asked",
    )
    run.add_argument(
        "--containers",
        choices=["yes", "no"],
        help="whether tasks are containers; without it they are where a container engine can run them",
    )
    commands.add_parser("down", help="stop everything that a rehearsal left running")
    operate = commands.add_parser("operate", help="run `python -m operations` against the rehearsed accounts")
    operate.add_argument("--approve", choices=["yes", "no"], help="as for run")
    operate.add_argument("arguments", nargs=argparse.REMAINDER, help="what follows `python -m operations`")
    options = parser.parse_args()
    approve = {"yes": True, "no": False, None: None}[getattr(options, "approve", None)]
    interruptible()
    containers = {"yes": True, "no": False, None: None}[getattr(options, "containers", None)]
    rehearsal = Rehearsal(Path.cwd(), approve, containers)
    try:
        if options.command == "operate":
            return rehearsal.operate([word for word in options.arguments if word != "--"])
        return rehearsal.run() if options.command == "run" else rehearsal.down()
    except (CannotRehearse, StackFailed, UnreadableStack) as failure:
        print(failure, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted. `make down` stops what is still running.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
