"""What all benchmarks end with: a table for people, then one line of JSON for programs.

    {"bench": …, "figures": {name: {"value", "unit", "target", "holds"}}, "machine": {…}, "commit": …}

``holds`` is computed from value, target and direction, never set; a figure without a target has null
for both. ``finish`` returns the exit code: 1 when a figure misses its target. ``growth_svg`` draws how something grows.
"""

import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Direction(Enum):
    AT_LEAST = "≥"
    AT_MOST = "≤"


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One measured number. Made by ``at_least``, ``at_most`` or ``shown``."""

    value: float
    unit: str
    target: float | None = None
    direction: Direction | None = None
    note: str = ""

    @property
    def holds(self) -> bool | None:
        if self.target is None:
            return None
        if self.direction is Direction.AT_LEAST:
            return self.value >= self.target
        return self.value <= self.target


def at_least(target: float, value: float, unit: str, note: str = "") -> Figure:
    return Figure(value=value, unit=unit, target=target, direction=Direction.AT_LEAST, note=note)


def at_most(target: float, value: float, unit: str, note: str = "") -> Figure:
    return Figure(value=value, unit=unit, target=target, direction=Direction.AT_MOST, note=note)


def shown(value: float, unit: str, note: str = "") -> Figure:
    """Printed for comparison; nothing is promised."""
    return Figure(value=value, unit=unit, note=note)


def quantile(values: Sequence[float], fraction: float) -> float:
    """Nearest rank: the smallest value that at least ``fraction`` of the values don't exceed."""
    assert values and 0 < fraction <= 1
    ordered = sorted(values)
    rank = -(-len(ordered) * fraction // 1)
    return ordered[int(rank) - 1]


def finish(bench: str, figures: Mapping[str, Figure]) -> int:
    """Print table and JSON line; the exit code for ``sys.exit``."""
    table = Table(title=f"bench {bench}", title_justify="left")
    for column in ("figure", "value", "target", "holds", "note"):
        table.add_column(column, justify="right" if column in ("value", "target") else "left")
    for name, figure in figures.items():
        target = (
            f"{figure.direction.value} {figure.target:,g} {figure.unit}"
            if figure.direction is not None
            else ""
        )
        verdict = {True: "yes", False: "NO", None: ""}[figure.holds]
        table.add_row(name, f"{figure.value:,.6g} {figure.unit}", target, verdict, figure.note)
    Console(width=None if os.isatty(1) else 120).print(table)
    print(
        json.dumps(
            {
                "bench": bench,
                "figures": {
                    name: {
                        "value": figure.value,
                        "unit": figure.unit,
                        "target": figure.target,
                        "holds": figure.holds,
                    }
                    for name, figure in figures.items()
                },
                "machine": machine(),
                "commit": commit(),
            }
        ),
        flush=True,
    )
    return 1 if any(figure.holds is False for figure in figures.values()) else 0


class Series(NamedTuple):
    """A line of a plot: (x, y) with both above zero."""

    name: str
    points: Sequence[tuple[float, float]]


_WIDTH, _HEIGHT, _LEFT, _TOP, _RIGHT, _BOTTOM = 640, 400, 64, 44, 200, 52
_COLOURS = ("#0b5fa5", "#b3541e", "#3a7d34", "#6b3fa0")


def growth_svg(
    title: str,
    x_title: str,
    y_title: str,
    series: Sequence[Series],
    targets: Sequence[tuple[float, float]] = (),
) -> str:
    """Both axes logarithmic, so that what grows in proportion has the slope of the dotted line. ``targets``: points
    below which something has to stay."""
    points = [point for one in series for point in one.points] + list(targets)
    left, right = _decades([x for x, _ in points])
    low, high = _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - left) / (right - left)
        up = (math.log10(y) - low) / (high - low)
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 1),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    def text(x: float, y: float, what: str, *, anchor: str = "middle", colour: str = "#333") -> str:
        return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}">{what}</text>'

    def line(ends: Sequence[tuple[float, float]], style: str) -> str:
        path = " ".join(f"{x},{y}" for x, y in ends)
        return f'<polyline points="{path}" fill="none" {style}/>'

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="24" font-size="15" fill="#111">{title}</text>',
    ]
    for decade in range(left, right + 1):
        ends = [at(10**decade, 10**low), at(10**decade, 10**high)]
        parts.append(line(ends, 'stroke="#ddd"'))
        parts.append(text(ends[0][0], ends[0][1] + 18, f"{10**decade:,}"))
    for decade in range(low, high + 1):
        ends = [at(10**left, 10**decade), at(10**right, 10**decade)]
        parts.append(line(ends, 'stroke="#ddd"'))
        parts.append(text(_LEFT - 8, ends[0][1] + 4, f"{10**decade:,g} {y_title}", anchor="end"))
    parts.append(text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, x_title))
    reach = min(right - left, high - low)
    slope = [at(10**left, 10**low), at(10 ** (left + reach), 10 ** (low + reach))]
    parts.append(line(slope, 'stroke="#999" stroke-dasharray="2 4"'))
    for one, colour in zip(series, _COLOURS, strict=False):
        ends = [at(*point) for point in one.points]
        parts.append(line(ends, f'stroke="{colour}" stroke-width="2"'))
        parts += [f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>' for x, y in ends]
    legend = [(one.name, colour) for one, colour in zip(series, _COLOURS, strict=False)]
    legend += [("● measured, ▽ target: at most", "#333"), ("dotted: in proportion", "#777")]
    for row, (name, colour) in enumerate(legend):
        parts.append(
            text(_WIDTH - _RIGHT + 14, _TOP + 12 + 20 * row, name, anchor="start", colour=colour)
        )
    for x, y in (at(*target) for target in targets):
        parts.append(
            f'<path d="M{x - 6},{y - 5}h12l-6,10z" fill="#fff" stroke="#333" stroke-width="1.5"/>'
        )
    return "\n".join([*parts, "</svg>", ""])


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The powers of ten around them."""
    first, last = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return first, max(last, first + 1)


def machine() -> dict[str, Any]:
    cpu = "unknown"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            cpu = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / (1 << 30), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def commit() -> str:
    """The commit that was measured; ``+`` when the checkout has changes."""
    root = Path(__file__).resolve().parent.parent
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
        return head + ("+" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
