"""What all benchmarks end with: a table for people, then one line of JSON for programs.

    {"bench": …, "figures": {name: {"value", "unit", "target", "holds"}}, "machine": {…}, "commit": …}

``holds`` is computed from value, target and direction, never set; a figure without a target has null
for both. ``finish`` returns the exit code: 1 when a figure misses its target.
"""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

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
