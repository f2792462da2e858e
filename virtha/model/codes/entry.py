"""What one entry of the registry holds."""

import string
from enum import StrEnum

from virtha.model.value import Value


class Severity(StrEnum):
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"
    ALERT = "alert"


class Kind(StrEnum):
    EVENT = "event"
    REASON = "reason"
    PROBLEM = "problem"


class Code(Value, frozen=True, kw_only=True):
    """One code. ``fields`` must name all that the template uses; more are allowed."""

    name: str
    number: int
    kind: Kind
    severity: Severity
    template: str
    fields: tuple[str, ...] = ()
    help: str = ""
    """What an administrator should do; shown in the reference page and by `virtha explain`."""

    def __post_init__(self) -> None:
        used = {name for _, name, _, _ in string.Formatter().parse(self.template) if name}
        missing = used - set(self.fields)
        assert not missing, f"{self.name}: the template uses undeclared fields {sorted(missing)}"


def event(
    number: int, name: str, severity: Severity, template: str, *fields: str, help: str = ""
) -> Code:
    """One line of the registry's tables."""
    return Code(
        name=name,
        number=number,
        kind=Kind.EVENT,
        severity=severity,
        template=template,
        fields=fields,
        help=help,
    )


def reason(
    number: int, name: str, severity: Severity, template: str, *fields: str, help: str = ""
) -> Code:
    """One line of the registry's tables."""
    return Code(
        name=name,
        number=number,
        kind=Kind.REASON,
        severity=severity,
        template=template,
        fields=fields,
        help=help,
    )
