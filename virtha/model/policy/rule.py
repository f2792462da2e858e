"""Relations between fields of the policy: compared sums that explain themselves.

A ``Relation`` compares two sums of durations (or two counts). It renders its own statement for the
reference page, and, when it doesn't hold, an error that shows both numbers with how they add up.
``Rule`` is the form for what is no comparison of sums.
"""

from collections.abc import Callable
from typing import Any

from virtha.model.errors import InvalidInput
from virtha.model.policy.names import is_duration, shown_path
from virtha.model.time import format_duration_ms
from virtha.model.value import Value

Read = Callable[[str], Any]
"""Reads ``section.field`` of the policy, or of the section, that is being checked."""


class BrokenRule(InvalidInput):
    """Several fields together are wrong. ``fields``: all of them, the one to mend first."""

    def __init__(self, message: str, *, fields: tuple[str, ...], fix: str) -> None:
        super().__init__(message, field=fields[0], fix=fix)
        self.fields = fields


class Sum(Value, frozen=True, kw_only=True):
    """``parts``: (factor, path); the factor may be a path as well. Of the sum, ``share_percent`` (a
    path) takes that many percent, ``plus_percent`` adds that many. Rounded up: every use of it is a
    time to wait for."""

    parts: tuple[tuple[int | str, str], ...]
    plus_percent: str = ""
    share_percent: str = ""
    constant_ms: int = 0
    """Added; ``constant_name`` says what it is."""
    constant_name: str = ""

    @property
    def fields(self) -> tuple[str, ...]:
        """All paths in it, each once."""
        factors = (factor for factor, _ in self.parts if isinstance(factor, str))
        more = (*factors, self.plus_percent, self.share_percent)
        paths = (*(path for _, path in self.parts), *(path for path in more if path))
        return tuple(dict.fromkeys(paths))

    def value(self, read: Read) -> int:
        total = sum(_factor(factor, read) * int(read(path)) for factor, path in self.parts)
        total += self.constant_ms
        if self.share_percent:
            return -(-total * int(read(self.share_percent)) // 100)
        if self.plus_percent:
            return -(-total * (100 + int(read(self.plus_percent))) // 100)
        return total

    def statement(self) -> str:
        """Without numbers: ``2 * detection.beat_interval``."""
        return self._joined(lambda path: "")

    def text(self, read: Read) -> str:
        """With every number, and the sum where there is more than one."""
        text = self._joined(lambda path: f" {self._number(int(read(path)), path)}")
        single = len(self.parts) == 1 and self.parts[0][0] == 1 and len(self.fields) == 1
        total = self._number(self.value(read), self.parts[0][1])
        return text if single else f"{text} = {total}"

    def _joined(self, number: Callable[[str], str]) -> str:
        words = [
            self._product(factor, number) + shown_path(path) + number(path)
            for factor, path in self.parts
        ]
        if self.constant_ms:
            words.append(f"{self.constant_name} {format_duration_ms(self.constant_ms)}")
        text = " + ".join(words)
        if self.plus_percent:
            text += f" + {shown_path(self.plus_percent)}{number(self.plus_percent)} of it"
        if self.share_percent:
            text = f"{shown_path(self.share_percent)}{number(self.share_percent)} of {text}"
        return text

    def _product(self, factor: int | str, number: Callable[[str], str]) -> str:
        if isinstance(factor, str):
            return f"{shown_path(factor)}{number(factor)} * "
        return f"{factor} * " if factor != 1 else ""

    def _number(self, value: int, path: str) -> str:
        if path in (self.plus_percent, self.share_percent):
            return f"{value}%"
        return format_duration_ms(value) if is_duration(path) else str(value)


def _factor(factor: int | str, read: Read) -> int:
    return factor if isinstance(factor, int) else int(read(factor))


def one(path: str, factor: int | str = 1) -> Sum:
    return Sum(parts=((factor, path),))


class Rule(Value, frozen=True, kw_only=True):
    """``broken`` answers what is wrong, or None. ``fields``: the first is named in the error.
    ``when``: a path and the value that it must have for the rule to count."""

    fields: tuple[str, ...]
    says: str
    why: str
    fix: str
    broken: Callable[[Read], str | None]
    when: tuple[str, Any] | None = None

    def check(self, read: Read) -> None:
        """Raises BrokenRule with both numbers, the reason and the fix."""
        if self.when is not None and read(self.when[0]) != self.when[1]:
            return
        wrong = self.broken(read)
        if wrong is not None:
            raise BrokenRule(f"{wrong}: {self.why}", fields=self.fields, fix=self.fix)


def relation(
    left: Sum,
    right: Sum,
    *,
    why: str,
    fix: str,
    strict: bool = True,
    when: tuple[str, Any] | None = None,
) -> Rule:
    """``left`` < ``right``, or ≤ where not ``strict``."""

    def broken(read: Read) -> str | None:
        low, high = left.value(read), right.value(read)
        if low < high or (low == high and not strict):
            return None
        must = "must be less than" if strict else "must be at most"
        return f"{left.text(read)} {must} {right.text(read)}"

    sign = "<" if strict else "≤"
    return Rule(
        fields=(*left.fields, *right.fields),
        says=f"{left.statement()} {sign} {right.statement()}",
        why=why,
        fix=fix,
        broken=broken,
        when=when,
    )
