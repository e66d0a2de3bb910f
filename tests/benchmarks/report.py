"""From the figures to the page and the picture that people look at; pure computation."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jinja2

from .failed import STOCK, failed
from .plan import CLIENTS
from .ratios import Compared, compare, part

CAPTIONS = {
    "p50_ms": "p50, ms",
    "p95_ms": "p95, ms",
    "per_second": "requests/s",
    "cpu_ms": "server CPU per request, ms",
}
MORE_IS_BETTER = ("per_second",)
BAR_HEIGHT, LEFT, WIDTH = 18, 250, 420
"""Of the picture, in its units."""

_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=jinja2.select_autoescape(("svg.j2",)),
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def write(figures: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures, the page and the picture; returns the files."""
    files = [folder / f"performance.{kind}" for kind in ("json", "md", "svg")]
    # Figures first: they took half an hour, and the rest can be made of them again.
    files[0].write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    files[1].write_text(page(figures), encoding="utf-8")
    files[2].write_text(picture(figures), encoding="utf-8")
    return files


def render(template: str, **content: Any) -> str:
    """One of this folder's templates with its content."""
    return _TEMPLATES.get_template(template).render(**content)


def page(figures: dict[str, Any]) -> str:
    """The page in Markdown."""
    return render(
        "performance.md.j2",
        figures=figures,
        sizes=_sizes(figures),
        whole=_whole(figures),
        by_size={size: _by_size(figures, size) for size in _sizes(figures)},
        captions=list(CAPTIONS.values()),
        failed=_failed(figures),
        cold=_cold(figures),
    )


def picture(figures: dict[str, Any]) -> str:
    """A bar for each operation: how many times faster than stock one client is answered by this image (p50)."""
    size = _sizes(figures)[0]
    bars = []
    for name in _operations(figures, size):
        if found := compare(figures["measured"], size, part("operations", name, str(CLIENTS[0]), "p50_ms")):
            bars.append((name, found.ratio))
    longest = max(ratio for _, ratio in bars)
    return render(
        "performance.svg.j2",
        size=size,
        date=figures["date"],
        left=LEFT,
        step=BAR_HEIGHT + 6,
        thick=BAR_HEIGHT,
        width=LEFT + WIDTH + 60,
        height=60 + len(bars) * (BAR_HEIGHT + 6),
        one=LEFT + WIDTH / longest,
        bars=[(name, f"{ratio:.1f}", round(WIDTH * ratio / longest, 1)) for name, ratio in bars],
    )


def _whole(figures: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows on the server as a whole: figure, stock, image, ratio."""
    measured, first = figures["measured"], _sizes(figures)[0]
    rows: list[tuple[str, ...]] = []
    for caption, place in (
        ("start to the first /health, s", ("start_seconds", "health")),
        ("start to the first answer from the database, s", ("start_seconds", "database")),
        ("memory at rest (PSS), MiB", ("memory_mib", "rest")),
        ("memory after the load (PSS), MiB", ("memory_mib", "load")),
    ):
        if found := compare(measured, first, part(*place)):
            rows.append((caption, *_cells(found)))
    for size in _sizes(figures):
        for caption, key in (("requests/s", "per_second"), ("server CPU per request, ms", "cpu_ms")):
            for side in [name for name in figures["sides"] if name != "stock"]:
                found = compare(measured, size, part("mix", key), side)
                if found:
                    what = f"mixed load, {size:,} runs, {side}: {caption}{_note(figures, size, 'mix')}"
                    rows.append((what, *_cells(found, inverse=key in MORE_IS_BETTER)))
    for size in _sizes(figures):
        if found := compare(measured, size, part("sql_ms")):
            what = f"search by start time, {size:,} runs: SQL, ms{_note(figures, size, 'sql')}"
            rows.append((what, *_cells(found)))
    return rows


def _by_size(figures: dict[str, Any], size: int) -> list[tuple[str, ...]]:
    """Rows of a size: operation, clients, then for each figure "stock / image: ratio"."""
    rows = []
    for name in _operations(figures, size):
        for clients in figures["clients"]:
            row: list[str] = [name + _note(figures, size, name, str(clients)), str(clients)]
            for key in CAPTIONS:
                found = compare(figures["measured"], size, part("operations", name, str(clients), key))
                stock, image, ratio = _cells(found, inverse=key in MORE_IS_BETTER) if found else ("", "", "")
                row.append(f"{stock} / {image}: **{ratio}**")
            rows.append(tuple(row))
    return rows


def _cells(found: Compared, *, inverse: bool = False) -> tuple[str, str, str]:
    """Stock, image, and how many times better the image is; with the spread of the rounds where there is one."""
    ratio = 1 / found.ratio if inverse else found.ratio
    spread = f" (±{(found.spread**0.5 - 1) * 100:.0f}%)" if len(found.ratios) > 1 else ""
    return _number(found.stock), _number(found.image), f"{ratio:.2g}{spread}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _operations(figures: dict[str, Any], size: int) -> list[str]:
    names = [name for one in figures["measured"] if one["size"] == size for name in one["operations"]]
    return [name for name in dict.fromkeys(names) if name != "warming"]


def _sizes(figures: dict[str, Any]) -> list[int]:
    return sorted({one["size"] for one in figures["measured"]})


def _note(figures: dict[str, Any], size: int, operation: str, clients: str = "") -> str:
    """How many of stock's requests failed in a row; nothing is said where none did."""
    place = (STOCK, size, operation, clients)
    rows = [row for row in failed(figures) if (row.side, row.size, row.operation, row.clients) == place]
    return f" ({rows[0].errors.total()} of stock's failed)" if rows else ""


def _failed(figures: dict[str, Any]) -> list[tuple[str, int]]:
    """What stock answered in place of right answers, and how often."""
    errors = sum((row.errors for row in failed(figures)), Counter[str]())
    return sorted(errors.items())


def _cold(figures: dict[str, Any]) -> list[tuple[str, str, int]]:
    """What failed while a server was warmed, which counts nowhere else."""
    found: dict[tuple[str, str], int] = {}
    for one in figures["measured"]:
        for error, count in one.get("cold", {}).items():
            found[one["side"], error] = found.get((one["side"], error), 0) + count
    return [(side, error, count) for (side, error), count in found.items()]
