"""Scalars as oVirt writes them, in XML and JSON alike: as text."""

from virtha.api.ovirt.shape import Scalar
from virtha.model.errors import InvalidInput
from virtha.model.time import format_utc

INTEGER_MAX = (1 << 63) - 1
"""oVirt's are Java's longs, and so are the databases'."""


def to_text(kind: Scalar, value: object) -> str:
    match kind:
        case Scalar.BOOLEAN:
            return "true" if value else "false"
        case Scalar.TIME:
            assert isinstance(value, int)
            return format_utc(value)
        case _:
            return str(value)


def from_text(kind: Scalar, text: str, *, field: str) -> str | int | float | bool:
    """Raises InvalidInput, which names the field. Times are read by nothing here, so they stay text."""
    text = text if kind is Scalar.TEXT else text.strip()
    match kind:
        case Scalar.BOOLEAN:
            if text.lower() in ("true", "1"):
                return True
            if text.lower() in ("false", "0"):
                return False
            raise _wrong(text, "no truth value", field, "true", "false")
        case Scalar.INTEGER:
            digits = text.removeprefix("-")
            if not (digits.isascii() and digits.isdigit() and len(digits) < 20):
                raise _wrong(text, "no whole number", field)
            if abs(int(text)) > INTEGER_MAX:
                raise _wrong(text, "too large", field, f"up to {INTEGER_MAX}")
            return int(text)
        case Scalar.DECIMAL:
            try:
                return float(text)
            except ValueError:
                raise _wrong(text, "no number", field) from None
        case _:
            return text


def _wrong(text: str, what: str, field: str, *allowed: str) -> InvalidInput:
    return InvalidInput(f"'{text[:64]}' is {what}", field=field, allowed=allowed)
