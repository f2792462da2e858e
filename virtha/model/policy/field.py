"""What is known of each field of the policy: one table, read off the sections' own annotations.

A section writes ``beat_interval_ms: Annotated[int, duration(200, 10_000, "…", source="…")] = 1_000``.
Validation, the texts of errors, the reference page and the command line all read ``FIELD_TABLE`` or
``fields_of``; no range or meaning is written a second time.
"""

from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, get_args, get_origin, get_type_hints

import msgspec

from virtha.model.errors import InvalidInput
from virtha.model.policy.names import short_name, shown_path
from virtha.model.policy.rule import Rule
from virtha.model.time import format_duration_ms
from virtha.model.value import Value


class Unit(StrEnum):
    """How a field's number is meant, and so how it is written for people."""

    MILLISECONDS = "ms"
    PERCENT = "percent"
    COUNT = "count"
    NONE = ""


class About(Value, frozen=True, kw_only=True):
    """One field's annotation. ``low`` and ``high`` are both allowed; ``step`` divides the value."""

    meaning: str
    source: str
    unit: Unit = Unit.NONE
    low: int = 0
    high: int = 0
    step: int = 1


def duration(low: int, high: int, meaning: str, *, source: str, step: int = 1) -> About:
    """A field in whole milliseconds."""
    return About(
        meaning=meaning, source=source, unit=Unit.MILLISECONDS, low=low, high=high, step=step
    )


def count(low: int, high: int, meaning: str, *, source: str) -> About:
    return About(meaning=meaning, source=source, unit=Unit.COUNT, low=low, high=high)


def percent(low: int, high: int, meaning: str, *, source: str) -> About:
    return About(meaning=meaning, source=source, unit=Unit.PERCENT, low=low, high=high)


def choice(meaning: str, *, source: str) -> About:
    """A field whose type says what is allowed: a truth value, one of a set, a list."""
    return About(meaning=meaning, source=source)


def grown_ms(first_ms: int, growth: int, times: int, most_ms: int) -> int:
    """A wait that is ``growth`` times as long each time: after ``times`` of them, and never above ``most_ms``."""
    # growth^40 is past any longest wait; keeps the number small
    return int(min(first_ms * growth ** min(times, 40), most_ms))


class PolicyField(Value, frozen=True, kw_only=True):
    """One row of the table. ``name`` as in the model and the API (``beat_interval_ms``)."""

    section: str
    name: str
    kind: Any
    default: Any
    about: About

    @property
    def path(self) -> str:
        return f"{self.section}.{self.name}"

    @property
    def shown(self) -> str:
        """The path as people write it: ``detection.beat_interval``."""
        return shown_path(self.path)

    @property
    def name_shown(self) -> str:
        return short_name(self.name)

    def text(self, value: Any) -> str:
        """A value of this field as people write it."""
        return value_text(value, self.about.unit)

    @property
    def allowed(self) -> tuple[str, ...]:
        """What may be written, for errors and for the reference page."""
        if self.about.unit is not Unit.NONE:
            whole = " in whole seconds" if self.about.step == 1_000 else ""
            return (f"{self.text(self.about.low)} to {self.text(self.about.high)}{whole}",)
        return allowed_of(self.kind)

    def check(self, value: Any) -> None:
        """Raises InvalidInput naming the field, its value and its range."""
        if self.about.unit is Unit.NONE:
            return
        if not self.about.low <= value <= self.about.high:
            raise InvalidInput(
                f"{self.text(value)} is out of range", field=self.path, allowed=self.allowed
            )
        if value % self.about.step:
            raise InvalidInput(
                f"{self.text(value)} is not a whole number of {self.text(self.about.step)} steps",
                field=self.path,
                allowed=self.allowed,
            )


def value_text(value: Any, unit: Unit = Unit.NONE) -> str:
    """``1500`` ms -> ``1.5s``, ``30`` percent -> ``30%``, lists with commas, truth as yes and no."""
    if unit is Unit.MILLISECONDS:
        return format_duration_ms(value)
    if unit is Unit.PERCENT:
        return f"{value}%"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(value_text(each) for each in value) + "]"
    return str(value)


def allowed_of(kind: Any) -> tuple[str, ...]:
    """What a field of this type may hold, in words."""
    if get_origin(kind) is tuple:
        inner = allowed_of(get_args(kind)[0])
        return tuple(f"a list of: {word}" if not i else word for i, word in enumerate(inner))
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return tuple(kind)
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        names = ", ".join(short_name(name) for name in kind.__struct_fields__)
        return (f"entries of {names}",)
    names_of = {bool: ("true", "false"), int: ("a whole number",), str: ("text",)}
    return names_of.get(kind, ())


class Section(Value, frozen=True, kw_only=True):
    """One section of the policy: checks its ranges, then its own rules, when it is built.

    Ranges and rules may only be loosened within one major version of the agent protocol: a stored
    policy, or one that a newer server sends, is checked by the same code when it is read.
    """

    NAME: ClassVar[str] = ""
    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            field.check(getattr(self, field.name))
        for rule in self.RULES:
            rule.check(self.read)

    def read(self, path: str) -> Any:
        """The value at ``section.field`` (properties as well)."""
        section, _, name = path.partition(".")
        assert section == self.NAME, f"{path} is not in section {self.NAME}"
        return getattr(self, name)


@cache
def fields_of(section: type[Section]) -> tuple[PolicyField, ...]:
    """The rows of one section, in the order they are written."""
    hints = get_type_hints(section, include_extras=True)
    defaults = {field.name: field.default for field in msgspec.structs.fields(section)}
    rows = []
    for name, default in defaults.items():
        hint = hints[name]
        assert get_origin(hint) is Annotated, f"{section.NAME}.{name} has no range and meaning"
        kind, about = get_args(hint)
        assert isinstance(about, About)
        rows.append(
            PolicyField(section=section.NAME, name=name, kind=kind, default=default, about=about)
        )
    return tuple(rows)
