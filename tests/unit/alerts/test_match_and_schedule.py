"""Who is told of an event, and when it is tried again."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.alerts.match import (
    about_receiver,
    check_patterns,
    default_severity,
    fits,
    is_own,
    matches,
)
from virtha.alerts.schedule import (
    AWAY_FIRST_MS,
    AWAY_MAX_MS,
    LATER_FIRST_MS,
    LATER_MAX_MS,
    away_ms,
    later_ms,
)
from virtha.model.codes import EVENTS, Severity
from virtha.model.errors import InvalidInput
from virtha.model.event import Event
from virtha.model.ids import ClusterId, HostId, ReceiverId, Revision, SubscriptionId, VmId
from virtha.model.notification import Subscription

ALL = Subscription(
    id=SubscriptionId("s"),
    name="s",
    receiver_id=ReceiverId("r"),
    severity=Severity.INFO,
    since=Revision(10),
)
FIRED = Event(
    revision=Revision(11),
    code="vm.watchdog.fired",
    severity=Severity.WARNING,
    message="",
    cluster_id=ClusterId("c"),
    host_id=HostId("h"),
    vm_id=VmId("v"),
)

changed = msgspec.structs.replace


@pytest.mark.req("W7")
@pytest.mark.parametrize(
    ("limits", "wanted"),
    [
        ({}, True),
        ({"codes": ("vm.watchdog.*",)}, True),
        ({"codes": ("*",)}, True),
        ({"codes": ("host.*", "vm.watchdog.fired")}, True),
        ({"codes": ("vm.watchdog",)}, False),
        ({"codes": ("host.*",)}, False),
        ({"severity": Severity.WARNING}, True),
        ({"severity": Severity.ERROR}, False),
        ({"cluster_id": ClusterId("c")}, True),
        ({"cluster_id": ClusterId("other")}, False),
        ({"host_id": HostId("h"), "vm_id": VmId("v")}, True),
        ({"host_id": HostId("h"), "vm_id": VmId("other")}, False),
        ({"enabled": False}, False),
        ({"since": Revision(11)}, False),
    ],
)
def test_all_limits_must_fit(limits: dict[str, object], wanted: bool) -> None:
    assert matches(changed(ALL, **limits), FIRED) is wanted


def test_an_event_that_names_no_vm_fits_no_vm() -> None:
    assert not matches(changed(ALL, vm_id=VmId("v")), changed(FIRED, vm_id=None))


def test_what_is_about_a_receiver_never_goes_through_it() -> None:
    away = changed(FIRED, code="notify.receiver_away", fields={"receiver_id": "r"})
    assert is_own(away.code) and about_receiver(away) == "r"
    assert not matches(ALL, away)
    assert matches(changed(ALL, receiver_id=ReceiverId("other")), away)
    # A field of that name elsewhere means nothing.
    assert matches(ALL, changed(FIRED, fields={"receiver_id": "r"}))


@pytest.mark.req("W7", "F4")
def test_every_event_can_be_subscribed() -> None:
    for code in EVENTS:
        assert check_patterns((code.name,), Severity.INFO) == (code.name,)
        assert fits(code.name.rsplit(".", 1)[0] + ".*", code.name)
    # Watchdog, crash, recovery and fencing, by their groups.
    for pattern in ("vm.watchdog.*", "vm.crashed", "vm.restart.*", "fence.*", "*"):
        assert check_patterns((pattern,), Severity.WARNING) == (pattern,)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("vm.watchdog.fierd", "did you mean vm.watchdog.fired?"),
        ("vm.wachdog.*", "did you mean vm.watchdog.*?"),
        ("", "virtha codes"),
        ("*.fired", "virtha codes"),
        ("restart.crash", "virtha codes"),
    ],
)
def test_a_pattern_that_can_never_match_is_refused(pattern: str, says: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_patterns(("vm.*", pattern), Severity.INFO)
    assert wrong.value.field == "codes[1]" and says in wrong.value.fix


def test_a_severity_that_a_code_never_has_is_refused() -> None:
    with pytest.raises(InvalidInput) as wrong:
        check_patterns(("hold.*", "hold.lifted"), Severity.WARNING)
    assert wrong.value.field == "codes[1]" and "info" in wrong.value.fix
    assert default_severity(("hold.lifted",)) is Severity.INFO
    assert default_severity(()) is Severity.WARNING


def test_too_many_patterns_and_doubles() -> None:
    assert check_patterns(("vm.*", "vm.*"), Severity.INFO) == ("vm.*",)
    with pytest.raises(InvalidInput):
        check_patterns(tuple(f"vm.{number}*" for number in range(101)), Severity.INFO)


@given(count=st.integers(min_value=1, max_value=10_000))
def test_pauses_grow_and_end(count: int) -> None:
    assert LATER_FIRST_MS <= later_ms(count) <= later_ms(count + 1) <= LATER_MAX_MS
    assert AWAY_FIRST_MS <= away_ms(count) <= away_ms(count + 1) <= AWAY_MAX_MS
