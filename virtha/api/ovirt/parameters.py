"""The parameters that oVirt's requests share: in the query, or as matrix parameters of the path (``vms;max=10``)."""

from dataclasses import dataclass, field

from virtha.api.ovirt.scalars import from_text
from virtha.api.ovirt.shape import Scalar
from virtha.model.errors import InvalidInput

Follow = dict[str, "Follow"]
FOLLOW_NAMES_MAX = 32
FOLLOW_DEPTH_MAX = 6
TEXT_MAX = 4_096


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """``max``: None and all below zero mean no limit, as in oVirt."""

    given: dict[str, str] = field(default_factory=dict)
    max: int | None = None
    search: str = ""
    case_sensitive: bool = True
    wait: bool = True
    """For the end of what is begun; not with ``async``."""
    follow: Follow = field(default_factory=dict)

    def flag(self, name: str, *, default: bool) -> bool:
        text = self.given.get(name)
        if text is None:
            return default
        # ``?detach_only`` alone is true, as in oVirt.
        return bool(from_text(Scalar.BOOLEAN, text or "true", field=name))

    def integer(self, name: str) -> int | None:
        text = self.given.get(name)
        if text is None:
            return None
        value = from_text(Scalar.INTEGER, text, field=name)
        assert isinstance(value, int)
        return value


def read_parameters(pairs: list[tuple[str, str]]) -> Parameters:
    """Unknown ones are ignored, of several the last holds. Raises InvalidInput."""
    given = dict(pairs)
    for name, text in given.items():
        if len(text) > TEXT_MAX:
            raise InvalidInput(
                f"has {len(text)} characters", field=name[:64], allowed=(f"up to {TEXT_MAX}",)
            )
    plain = Parameters(given=given)
    limit = plain.integer("max")
    return Parameters(
        given=given,
        max=limit if limit is not None and limit >= 0 else None,
        search=given.get("search", ""),
        case_sensitive=plain.flag("case_sensitive", default=True),
        wait=not plain.flag("async", default=False),
        follow=parse_follow(given.get("follow", "")),
    )


def parse_follow(text: str) -> Follow:
    """``nics,disk_attachments.disk`` to ``{nics: {}, disk_attachments: {disk: {}}}``. Raises InvalidInput."""
    wanted: Follow = {}
    paths = [path.strip() for path in text.split(",") if path.strip()]
    if len(paths) > FOLLOW_NAMES_MAX:
        raise InvalidInput(
            f"names {len(paths)} links", field="follow", allowed=(f"up to {FOLLOW_NAMES_MAX}",)
        )
    for path in paths:
        names = path.split(".")
        if len(names) > FOLLOW_DEPTH_MAX or not all(names):
            raise InvalidInput(
                f"'{path[:64]}' is no path of links",
                field="follow",
                allowed=(f"names with dots between them, up to {FOLLOW_DEPTH_MAX}",),
            )
        inner = wanted
        for name in names:
            inner = inner.setdefault(name, {})
    return wanted
