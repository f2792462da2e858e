"""The base of all values: frozen, keyword-only, ten times cheaper to make than frozen dataclasses."""

from msgspec import Struct


class Value(Struct, frozen=True, kw_only=True):
    """An immutable value; each subclass repeats ``frozen=True, kw_only=True`` (msgspec doesn't inherit
    the latter). Unknown fields are ignored when decoding (wire compatibility)."""


class Request(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a user sends: an unknown field is an error, for it is a typing mistake."""


Scalar = str | int | bool | None
Fields = dict[str, Scalar]
"""The fields of a coded event, reason or problem; names are fixed by the registry."""
