"""The settings there are: type, range, default, where each may be set. Narrowest scope wins."""

from difflib import get_close_matches
from enum import StrEnum

from virtha.model.errors import InvalidInput, NotFound
from virtha.model.ids import ClusterId, HostId
from virtha.model.time import format_duration_ms, parse_duration_ms
from virtha.model.user import Setting, SettingScope
from virtha.model.value import Value
from virtha.store.installations import all_settings
from virtha.store.store import Transaction


class SettingKind(StrEnum):
    DURATION = "duration"
    INTEGER = "integer"


class KnownSetting(Value, frozen=True, kw_only=True):
    """``default``, ``low`` and ``high`` in milliseconds for durations."""

    key: str
    kind: SettingKind
    default: int
    low: int
    high: int
    scopes: tuple[SettingScope, ...]
    help: str
    zero: str = ""
    """What 0, below ``low``, means; empty: it is out of range."""

    def show(self, value: int) -> str:
        return format_duration_ms(value) if self.kind is SettingKind.DURATION else str(value)

    @property
    def allowed(self) -> str:
        zero = f", or 0: {self.zero}" if self.zero else ""
        return f"{self.show(self.low)} to {self.show(self.high)}{zero}"

    def parse(self, text: str) -> int:
        """Raises InvalidInput (field ``value``)."""
        if self.zero and text.strip() == "0":
            return 0
        if self.kind is SettingKind.DURATION:
            value = parse_duration_ms(text, field="value")
        else:
            try:
                value = int(text)
            except ValueError:
                raise InvalidInput(
                    f"'{text}' is no whole number", field="value", allowed=(self.allowed,)
                ) from None
        if not (self.low <= value <= self.high or (self.zero and value == 0)):
            raise InvalidInput(
                f"{self.key}: {self.show(value)} is out of range",
                field="value",
                allowed=(self.allowed,),
            )
        return value


DAY_MS = 86_400_000


def _duration(
    key: str,
    help: str,
    *,
    default_ms: int,
    between_ms: tuple[int, int],
    scopes: tuple[SettingScope, ...] = (SettingScope.GLOBAL,),
    zero: str = "",
) -> KnownSetting:
    low, high = between_ms
    return KnownSetting(
        key=key,
        kind=SettingKind.DURATION,
        default=default_ms,
        low=low,
        high=high,
        scopes=scopes,
        help=help,
        zero=zero,
    )


GRANT_DURATION = _duration(
    "grant.duration",
    "How long a host may take from its quoted beat until an ordered start's processors run.",
    default_ms=15_000,
    between_ms=(3_000, 120_000),
    scopes=(SettingScope.GLOBAL, SettingScope.CLUSTER, SettingScope.HOST),
)
ORDER_DEADLINE = _duration(
    "order.deadline",
    "An order that its host could not be given for this long is given up; its operation fails.",
    default_ms=600_000,
    between_ms=(10_000, DAY_MS),
)
EVENT_RETENTION = _duration(
    "event.retention",
    "How long events are kept.",
    default_ms=90 * DAY_MS,
    # The event stream can be resumed for 7 days (design, section 10).
    between_ms=(7 * DAY_MS, 3_650 * DAY_MS),
)
SESSION_LIFETIME = _duration(
    "session.lifetime",
    "How long a sign-in lasts.",
    default_ms=12 * 3_600_000,
    between_ms=(60_000, 30 * DAY_MS),
)
TOKEN_VOUCHED = _duration(
    "token.vouched.lifetime",
    "For how long after its user's last sign-in by the provider an access token that they made is good.",
    # As sessions: who has left is let in by nothing for longer than by those.
    default_ms=12 * 3_600_000,
    between_ms=(60_000, 366 * DAY_MS),
)
CLOCK_OFFSET_MAX = _duration(
    "clock.offset.max",
    "A host whose clock is further off than this is told of; nothing is decided by its clock.",
    default_ms=10_000,
    between_ms=(100, DAY_MS),
)
NOTIFICATION_EXPIRY = _duration(
    "notification.expiry",
    "A message that could not be delivered for this long is given up, and that is told.",
    default_ms=24 * 3_600_000,
    between_ms=(60_000, 7 * DAY_MS),  # its event is kept at least as long (event.retention)
)
NOTIFICATION_DEADLINE = _duration(
    "notification.deadline",
    "How long one attempt to deliver a message may take.",
    default_ms=15_000,
    between_ms=(1_000, 120_000),
)
NOTIFICATION_RETENTION = _duration(
    "notification.retention",
    "How long it is kept what became of each message.",
    default_ms=30 * DAY_MS,
    between_ms=(3_600_000, 3_650 * DAY_MS),
)
POWER_TEST_INTERVAL = _duration(
    "power.test.interval",
    "How often each power device is asked for its state while its host is up.",
    default_ms=6 * 3_600_000,
    between_ms=(600_000, 30 * DAY_MS),
    scopes=(SettingScope.GLOBAL, SettingScope.CLUSTER),
    zero="never",
)

KNOWN_SETTINGS: dict[str, KnownSetting] = {
    known.key: known
    for known in (
        CLOCK_OFFSET_MAX,
        EVENT_RETENTION,
        GRANT_DURATION,
        NOTIFICATION_DEADLINE,
        NOTIFICATION_EXPIRY,
        NOTIFICATION_RETENTION,
        ORDER_DEADLINE,
        POWER_TEST_INTERVAL,
        SESSION_LIFETIME,
        TOKEN_VOUCHED,
    )
}


def known_setting(key: str) -> KnownSetting:
    """Raises NotFound with the nearest key."""
    known = KNOWN_SETTINGS.get(key)
    if known is None:
        near = get_close_matches(key, KNOWN_SETTINGS, n=1, cutoff=0.4)
        raise NotFound(
            f"there is no setting '{key[:100]}'",
            field="key",
            allowed=tuple(KNOWN_SETTINGS),
            fix=f"did you mean {near[0]}?" if near else "",
        )
    return known


class SettingValues:
    """All settings of one snapshot, resolved."""

    def __init__(self, settings: tuple[Setting, ...]) -> None:
        self._values = {(one.key, one.scope, one.subject): one.value for one in settings}

    def get(
        self,
        known: KnownSetting,
        *,
        host_id: HostId | None = None,
        cluster_id: ClusterId | None = None,
    ) -> int:
        for scope, subject in (
            (SettingScope.HOST, host_id or ""),
            (SettingScope.CLUSTER, cluster_id or ""),
            (SettingScope.GLOBAL, ""),
        ):
            text = self._values.get((known.key, scope, subject))
            if text is not None:
                return known.parse(text)
        return known.default


async def setting_values(tx: Transaction) -> SettingValues:
    return SettingValues(await all_settings(tx))
