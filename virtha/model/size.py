"""Memory and disk sizes: bytes inside, ``512MiB`` where people write."""

import re
from decimal import Decimal

from virtha.model.errors import InvalidInput

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
DIGITS_MAX = 40
BYTES_MAX = (1 << 63) - 1
"""What the databases hold."""
_BINARY = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}


def parse_size_bytes(text: str, *, field: str) -> int:
    """Read ``512MiB``, ``2GiB`` or plain bytes. Raises InvalidInput naming ``field``.

    Only binary units: whether ``G`` means 10^9 or 2^30 has cost people disks before.
    """
    match = _SIZE.fullmatch(text.strip())
    unit = _BINARY.get(match[2]) if match else None
    if match is None or unit is None:
        raise InvalidInput(
            f"'{text}' is not a size",
            field=field,
            allowed=("a number with a unit: B, KiB, MiB, GiB or TiB",),
            fix="write for example 512MiB or 2GiB",
        )
    size = Decimal(match[1][:DIGITS_MAX]) * unit
    if len(match[1]) > DIGITS_MAX or size > BYTES_MAX:
        raise InvalidInput(
            f"'{text[:DIGITS_MAX]}' is too large", field=field, allowed=(f"up to {BYTES_MAX}B",)
        )
    if size != int(size):
        raise InvalidInput(f"'{text}' is not a whole number of bytes", field=field)
    return int(size)


def format_size(size_bytes: int) -> str:
    """Write bytes with the largest unit that keeps at most one decimal: 536870912 -> ``512MiB``."""
    for name in ("TiB", "GiB", "MiB", "KiB"):
        unit = _BINARY[name]
        if abs(size_bytes) >= unit:
            value = size_bytes / unit
            return f"{value:.0f}{name}" if value == int(value) else f"{value:.1f}{name}"
    return f"{size_bytes}B"
