"""Every field of the policy: both ends of its range, beyond them, and what the table says of it."""

import contextlib
from typing import Any, get_args, get_origin

import msgspec
import pytest

from virtha.model.errors import InvalidInput
from virtha.model.ids import InstallationId, Term
from virtha.model.orders import HostSettings
from virtha.model.policy import (
    FIELD_TABLE,
    SECTIONS,
    BrokenRule,
    FencingPolicy,
    Policy,
    PolicyField,
    QuietTime,
    RestartPolicy,
    Unit,
    Weekday,
    quiet_until_ms,
)
from virtha.model.policy.names import is_duration

pytestmark = pytest.mark.req("X6", "F2", "F4", "F7")

RANGED = [field for field in FIELD_TABLE.values() if field.about.unit is not Unit.NONE]
SECTION_OF = {section.NAME: section for section in SECTIONS}


def build(field: PolicyField, value: Any) -> object:
    return SECTION_OF[field.section](**{field.name: value})


@pytest.mark.parametrize("field", RANGED, ids=lambda field: field.path)
def test_below_and_above_its_range_a_field_is_refused(field: PolicyField) -> None:
    for value in (field.about.low - field.about.step, field.about.high + field.about.step):
        with pytest.raises(InvalidInput) as refused:
            build(field, value)
        assert not isinstance(refused.value, BrokenRule)
        assert refused.value.field == field.path
        assert refused.value.message == f"{field.text(value)} is out of range"
        (allowed,) = refused.value.allowed
        assert field.text(field.about.low) in allowed
        assert field.text(field.about.high) in allowed


@pytest.mark.parametrize("field", RANGED, ids=lambda field: field.path)
def test_both_ends_of_its_range_are_in_it(field: PolicyField) -> None:
    for value in (field.about.low, field.about.high):
        field.check(value)
        # In range, though not always together with the defaults of the other fields.
        with contextlib.suppress(BrokenRule):
            assert getattr(build(field, value), field.name) == value


@pytest.mark.parametrize("field", FIELD_TABLE.values(), ids=lambda field: field.path)
def test_the_table_says_all_of_it(field: PolicyField) -> None:
    assert field.about.meaning.endswith(".")
    assert field.about.source
    assert field.allowed
    assert getattr(SECTION_OF[field.section](), field.name) == field.default
    if field.about.unit is Unit.NONE:
        assert field.kind is not int, "a number has a range"
    else:
        assert field.kind is int
        assert field.about.low < field.about.high
        assert field.about.low <= field.default <= field.about.high
    assert is_duration(field.name) == (field.about.unit is Unit.MILLISECONDS)
    assert field.name.endswith("_percent") == (field.about.unit is Unit.PERCENT)


def test_the_table_is_the_document() -> None:
    document = msgspec.to_builtins(Policy())
    paths = {f"{section}.{name}" for section, fields in document.items() for name in fields}
    assert paths == set(FIELD_TABLE)
    assert {section.NAME for section in SECTIONS} == set(document)


def test_short_names_are_unique_within_a_section() -> None:
    shown = [field.shown for field in FIELD_TABLE.values()]
    assert len(set(shown)) == len(shown)


@pytest.mark.parametrize("field", FIELD_TABLE.values(), ids=lambda field: field.path)
def test_a_value_of_another_type_is_refused_when_decoded(field: PolicyField) -> None:
    wrong: Any = {"not": "this"}
    with pytest.raises(msgspec.ValidationError, match=field.name):
        msgspec.convert({field.section: {field.name: wrong}}, Policy)


def test_a_watchdog_counts_whole_seconds() -> None:
    with pytest.raises(InvalidInput) as refused:
        build(FIELD_TABLE["lease.watchdog_ms"], 5_500)
    assert refused.value.message == "5.5s is not a whole number of 1s steps"
    assert refused.value.allowed == ("2s to 10m in whole seconds",)


# Stored documents


@pytest.mark.parametrize(
    "stored",
    [
        "{}",
        '{"restart":{"enabled":false,"restarts_max":2}}',
        '{"restart":{"enabled":true,"restarts_max":4,"window_ms":600000,"delay_ms":1000,'
        '"delay_growth":3,"delay_ms_max":60000,"after_crash":true,"after_panic":true,'
        '"after_watchdog_poweroff":true,"after_guest_shutdown":false,"reset_loop_count":3,'
        '"reset_loop_window_ms":300000}}',
        '{"restart":{"restarts_max":2},"of_a_later_version":{"a":1},"lease":{"later_ms":1}}',
    ],
)
def test_documents_of_other_versions_decode(stored: str) -> None:
    policy = msgspec.json.decode(stored, type=Policy)
    assert policy.detection == Policy().detection
    assert policy.lease == Policy().lease
    kept = msgspec.json.decode(stored).get("restart", {})
    assert {name: getattr(policy.restart, name) for name in kept} == kept
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(policy), type=Policy) == policy


def test_settings_of_a_server_that_knew_only_restarts_are_read() -> None:
    """As they lie on hosts' disks and in the frames of an older server."""
    mine = Policy(restart=RestartPolicy(restarts_max=4))
    settings = HostSettings(
        revision=1, installation_id=InstallationId("i"), term=Term(1), policy=mine
    )
    stored = msgspec.to_builtins(settings)
    stored["policy"] = {"restart": stored["policy"]["restart"]}
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(stored), type=HostSettings) == settings


# Quiet times

MONDAY_MS = 4 * 86_400_000  # 5 January 1970
HOUR_MS = 3_600_000


def quiet(begin: str, hours: int, *days: Weekday) -> QuietTime:
    return QuietTime(days=days, begin=begin, length_ms=hours * HOUR_MS)


@pytest.mark.parametrize(
    ("times", "hour", "until"),
    [
        ((quiet("22:00", 4),), 21, None),
        ((quiet("22:00", 4),), 22, 26),
        ((quiet("22:00", 4),), 25, 26),
        ((quiet("22:00", 4),), 26, None),
        ((quiet("22:00", 4),), 24 * 7 + 1, 24 * 7 + 2),
        ((quiet("22:00", 4, Weekday.SUNDAY),), 1, 2),  # began in the week before
        ((quiet("22:00", 4, Weekday.SUNDAY),), 24 * 6 + 23, 24 * 7 + 2),
        ((quiet("22:00", 4, Weekday.SUNDAY),), 24 * 5 + 23, None),
        ((quiet("08:00", 2), quiet("10:00", 2)), 9, 12),
        ((), 9, None),
        ((quiet("00:00", 167, Weekday.MONDAY),), 100, 167),
    ],
)
def test_when_a_quiet_time_ends(times: tuple[QuietTime, ...], hour: int, until: int | None) -> None:
    ends = quiet_until_ms(times, MONDAY_MS + hour * HOUR_MS)
    assert ends == (None if until is None else MONDAY_MS + until * HOUR_MS)


@pytest.mark.parametrize(
    ("begin", "length_ms", "says"),
    [
        ("24:00", HOUR_MS, "'24:00' is no time of day"),
        ("9:00", HOUR_MS, "'9:00' is no time of day"),
        ("noon", HOUR_MS, "'noon' is no time of day"),
        ("09:00", 59_999, "out of range"),
        ("09:00", 7 * 24 * HOUR_MS + 1, "out of range"),
    ],
)
def test_a_wrong_quiet_time_is_refused(begin: str, length_ms: int, says: str) -> None:
    with pytest.raises(InvalidInput, match=says) as refused:
        QuietTime(begin=begin, length_ms=length_ms)
    assert refused.value.field == "fencing.quiet_times"
    assert refused.value.allowed


def test_the_enumerations_are_read_by_their_values() -> None:
    decoded = msgspec.json.decode(
        '{"action":"reboot","unreachable":["storage_fence","wait"],'
        '"quiet_times":[{"days":["friday"],"begin":"18:30","length_ms":60000}]}',
        type=FencingPolicy,
    )
    assert get_origin(FIELD_TABLE["fencing.unreachable"].kind) is tuple
    assert get_args(FIELD_TABLE["fencing.unreachable"].kind)[0] is type(decoded.unreachable[0])
    assert str(decoded.quiet_times[0]) == "friday 18:30 for 1m"
