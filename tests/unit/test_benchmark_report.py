"""What the benchmark makes of its figures, and that the page in docs/ is made of the figures beside it."""

from __future__ import annotations

import itertools
import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import failed, ratios, report
from tests.benchmarks.fill import Content
from tests.benchmarks.operations import operations

DOCS = Path(__file__).resolve().parents[2] / "docs"
CONTENT = Content("1", tuple(f"run{n}" for n in range(400)), "long")
P50 = ratios.part("p50_ms")


def rounds(*milliseconds: tuple[str, float | None]) -> list[dict[str, Any]]:
    return [{"size": 1000, "side": side, "p50_ms": value} for side, value in milliseconds]


def test_a_ratio_is_that_of_neighbours() -> None:
    found = ratios.compare(rounds(("stock", 40), ("image", 10), ("stock", 160), ("image", 20)), 1000, P50)
    assert found is not None
    assert found.ratios == (4, 8)
    assert found.stock == pytest.approx(80)
    assert found.image == pytest.approx(200**0.5)
    assert found.ratio == pytest.approx(32**0.5)
    assert found.spread == pytest.approx(2)


def test_nothing_is_compared_with_what_was_not_measured() -> None:
    assert ratios.compare(rounds(("stock", 40), ("image", None)), 1000, P50) is None
    assert ratios.compare(rounds(("stock", 40), ("image", 10)), 100_000, P50) is None
    with pytest.raises(ValueError, match="2 rounds of stock and 1 of image"):
        ratios.compare(rounds(("stock", 40), ("image", 10), ("stock", 40)), 1000, P50)


def test_every_operation_makes_different_requests_and_knows_a_wrong_answer() -> None:
    found = operations(CONTENT, artifacts=True)
    assert len({operation.name for operation in found}) == len(found)
    for operation in found:
        first, second = operation.request(1), operation.request(2)
        if operation.group == "write":
            assert first.body != second.body, operation.name
        if not operation.name.startswith("PUT"):
            assert not operation.right(b'{"error_code": "INTERNAL_ERROR"}'), operation.name


def figures(sizes: tuple[int, ...] = (1000, 100_000), slower: float = 8) -> dict[str, Any]:
    """Made-up figures of two rounds in which stock takes `slower` times as long."""
    measured = []
    for size, round_, (side, factor) in itertools.product(
        sizes, (1, 2), (("stock", slower), ("image", 1), ("image per core", 1))
    ):
        one = {
            "requests": 9,
            "failures": 0,
            "errors": {},
            "p50_ms": 10.0 * factor,
            "p95_ms": 20.0 * factor,
            "per_second": 400.0 / factor,
            "cpu_ms": 5.0 * factor,
        }
        asked = operations(CONTENT, artifacts=size == sizes[0])
        measured.append(
            {
                "size": size,
                "round": round_,
                "side": side,
                "start_seconds": {"health": 3.0 * factor, "database": 4.0 * factor},
                "memory_mib": {"rest": 100.0 * factor, "load": 200.0 * factor},
                "operations": {operation.name: {"1": one, "16": one} for operation in asked},
                "sql_ms": 6.0 * factor,
                "mix": one,
                "cold": {"search: HTTP 500": 1} if side == "stock" else {},
            }
        )
    return {
        "date": "2026-11-25",
        "command": "make bench",
        "commit": "abc",
        "minutes": 20,
        "machine": {"cores": 2, "memory_gib": 24, "os": "Debian 12", "python": "3.11.7"},
        "load_average": {"start": 0.2, "end": 3.1},
        "rounds": 2,
        "clients": [1, 16],
        "mix_users": 100,
        "sides": dict.fromkeys(("stock", "image", "image per core"), "started somehow"),
        "measured": measured,
    }


def test_the_page_tells_every_figure() -> None:
    page = report.page(figures())
    for size in ("1,000 runs", "100,000 runs"):
        assert f"## {size}" in page
    for operation in operations(CONTENT, artifacts=True):
        rows = [line for line in page.splitlines() if line.startswith(f"| {operation.name} |")]
        assert len(rows) == (2 if "artifact" in operation.group else 4)  # clients, and sizes
        for row in rows:
            assert "80 / 10: **8 (±0%)**" in row  # p50: stock, image, ratio
            assert "50 / 400: **8 (±0%)**" in row  # requests/s, where more is better
    assert "| memory at rest (PSS), MiB | 800 | 100 | 8 (±0%) |" in page
    assert "| start to the first answer from the database, s | 32 | 4 | 8 (±0%) |" in page
    assert "| search by start time, 100,000 runs: SQL, ms | 48 | 6 | 8 (±0%) |" in page
    assert "stock, 4 times: `search: HTTP 500`" in page
    assert "2 cores, 24 GiB, Debian 12" in page
    assert "Load average 0.2 at the start" in page


def test_the_picture_has_a_bar_for_each_operation() -> None:
    picture = ElementTree.fromstring(report.picture(figures()))
    bars = picture.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + len(operations(CONTENT, artifacts=True))  # and the background
    assert "8.0" in [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]


def test_what_is_written_is_made_of_the_figures_beside_it(tmp_path: Path) -> None:
    report.write(figures(), tmp_path)
    for folder in (tmp_path, *(file.parent for file in DOCS.glob("performance.md"))):
        kept = json.loads((folder / "performance.json").read_text(encoding="utf-8"))
        assert (folder / "performance.md").read_text(encoding="utf-8") == report.page(kept)
        assert (folder / "performance.svg").read_text(encoding="utf-8") == report.picture(kept)
        assert not failed.stopping(kept)


def with_failures(side: str, right: int, count: int) -> dict[str, Any]:
    """Figures in whose second round as many requests of sixteen clients failed."""
    found = figures()
    one = next(one for one in found["measured"] if (one["side"], one["round"]) == (side, 2))
    answers = one["operations"]["get run"]["16"]
    errors = {"get run: HTTP 503": count}
    one["operations"]["get run"] = one["operations"]["get run"] | {
        "16": answers | {"requests": right, "failures": count, "errors": errors}
    }
    return found


def test_a_few_failures_of_stocks_are_told_beside_their_row() -> None:
    kept = with_failures("stock", 47, 2)
    assert not failed.stopping(kept)
    page = report.page(kept)
    [row] = [line for line in page.splitlines() if "of stock's failed)" in line]
    assert row.startswith("| get run (2 of stock's failed) | 16 | 80 / 10: **8 (±0%)** |")
    assert "- 2 times: `get run: HTTP 503`" in page
    assert "What failed of stock's" not in report.page(figures())


def test_too_many_failures_of_stocks_stop_it() -> None:
    # Nine right answers in the first round; of the second one, one in ten of all and then one more.
    assert not failed.stopping(with_failures("stock", 9, 2))
    assert failed.stopping(with_failures("stock", 9, 3)) == [
        "stock, 1000 runs, get run, clients: 16: 14% of the requests failed, more than 10%: get run: HTTP 503 (3 times)"
    ]


@pytest.mark.parametrize("side", ["image", "image per core"])
def test_any_failure_of_the_images_stops_it(side: str) -> None:
    assert failed.stopping(with_failures(side, 1000, 1)) == [
        f"{side}, 1000 runs, get run, clients: 16: get run: HTTP 503 (1 times)"
    ]


@pytest.mark.parametrize("part", ["mix", "sql"])
def test_the_mix_and_the_searches_whose_sql_is_timed_are_judged_too(part: str) -> None:
    for side, stops in (("stock", False), ("image", True)):
        kept = figures()
        one = next(one for one in kept["measured"] if one["side"] == side)
        one[part] = one["mix"] | {"requests": 100, "errors": {"lost": 1}}
        assert bool(failed.stopping(kept)) == stops
        if not stops:
            assert "(1 of stock's failed)" in report.page(kept)
