"""The policy as people write it: durations, profiles, errors with file, line, column and field."""

from typing import Any

import pytest
import yaml
from msgspec.structs import replace

from virtha.model.errors import InvalidInput
from virtha.model.policy import (
    FIELD_TABLE,
    FencingPolicy,
    Policy,
    PolicyField,
    QuietTime,
    RestartPolicy,
    Unreachable,
    Weekday,
)
from virtha.model.policy.names import short_name
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.policy.text import (
    apply_changes,
    changes_from_assignment,
    changes_from_yaml,
    differences,
    document_of,
    policy_of,
    policy_to_yaml,
    read_policy,
)

pytestmark = pytest.mark.req("X6")

DEFAULT = document_of(Policy())


def given(text: str, base: dict[str, Any] | None = None) -> dict[str, Any]:
    return apply_changes(DEFAULT if base is None else base, changes_from_yaml(text, file="p.yaml"))


@pytest.mark.parametrize(
    ("field", "name"),
    [("delay_ms", "delay"), ("delay_ms_max", "delay_max"), ("restarts_max", "restarts_max")],
)
def test_names_of_durations(field: str, name: str) -> None:
    assert short_name(field) == name


def test_what_is_shown_can_be_given_back() -> None:
    custom = document_of(
        Policy(
            restart=RestartPolicy(delay_ms=1_500, restarts_max=2, enabled=False),
            fencing=FencingPolicy(
                unreachable=(Unreachable.STORAGE_FENCE, Unreachable.WAIT),
                quiet_times=(
                    QuietTime(days=(Weekday.FRIDAY,), begin="22:00", length_ms=3_600_000),
                    QuietTime(begin="08:30", length_ms=90_000),
                ),
            ),
        )
    )
    text = policy_to_yaml(custom)
    assert "delay: 1.5s" in text
    assert given(text) == custom
    # The API's own document is accepted as well.
    assert given(yaml.safe_dump(custom)) == custom


@pytest.mark.parametrize("profile", Profile)
def test_every_profile_survives_the_round_trip(profile: Profile) -> None:
    policy = PROFILES[profile]
    assert read_policy(policy_to_yaml(document_of(policy)), file="p.yaml") == policy


@pytest.mark.parametrize("field", FIELD_TABLE.values(), ids=lambda field: field.path)
def test_every_field_is_read_as_it_is_shown(field: PolicyField) -> None:
    """The text in lists and differences is text that can be typed, file or command line."""
    text = field.text(field.default)
    (from_file,) = changes_from_yaml(
        f"{field.section}:\n  {field.name_shown}: {text}\n", file="p.yaml"
    )
    (typed,) = changes_from_assignment(f"{field.shown}={text}")
    assert from_file.path == typed.path == field.path
    assert apply_changes(DEFAULT, [from_file]) == DEFAULT
    assert apply_changes(DEFAULT, [typed]) == DEFAULT


def test_what_is_not_given_stays() -> None:
    changed = given("restart:\n  window: 20m\n")
    assert changed["restart"] == {**DEFAULT["restart"], "window_ms": 1_200_000}
    assert {name: changed[name] for name in changed if name != "restart"} == {
        name: DEFAULT[name] for name in DEFAULT if name != "restart"
    }


def test_fields_of_a_later_server_are_kept() -> None:
    later = {**DEFAULT, "later": {"a_ms": 1}}
    assert given("restart:\n  window: 20m\n", later)["later"] == {"a_ms": 1}
    assert "later:\n  a: 1ms\n" in policy_to_yaml(later)


def test_a_profile_in_a_file_is_what_the_rest_counts_over() -> None:
    text = "detection:\n  hung_after: 8s\nprofile: fast\nfencing:\n  cap_count: 7\n"
    fast = PROFILES[Profile.FAST]
    wanted = replace(
        fast,
        detection=replace(fast.detection, hung_after_ms=8_000),
        fencing=replace(fast.fencing, cap_count=7),
    )
    assert read_policy(text, file="p.yaml") == wanted


def test_a_file_of_its_own_builds_on_balanced() -> None:
    assert read_policy("restart: {}\n", file="p.yaml") == Policy()


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("restart:\n  delay: 5s\n  dely: 1s\n", "restart.dely", "p.yaml:3:3: there is no 'dely'"),
        ("restrat: {}\n", "restrat", "p.yaml:1:1: there is no 'restrat'"),
        ("restart:\n  delay: soon\n", "restart.delay", "p.yaml:2:10: 'soon' is not a duration"),
        ("restart:\n  delay: 5\n", "restart.delay", "p.yaml:2:10: '5' is not a duration"),
        ("restart:\n\n  delay: 1.5\n", "restart.delay", "p.yaml:3:10: '1.5' is not a duration"),
        ("restart:\n  delay: 5 apples\n", "restart.delay", "p.yaml:2:10: '5 apples' is not a dur"),
        ("restart:\n  delay: 1.5ms\n", "restart.delay", "p.yaml:2:10: '1.5ms' is finer than"),
        ("restart:\n  enabled: maybe\n", "restart.enabled", "p.yaml:2:12: 'maybe' does not fit"),
        ("restart:\n  restarts_max: yes\n", "restart.restarts_max", "p.yaml:2:17: 'yes' does not"),
        ("restart:\n  restarts_max:\n", "restart.restarts_max", "p.yaml:2:16: '' does not fit"),
        ("restart:\n  restarts_max: 5s\n", "restart.restarts_max", "p.yaml:2:17: '5s' does not"),
        ("restart:\n  restarts_max: -1\n", "restart.restarts_max", "p.yaml:2:17: -1 is out of"),
        ("restart:\n  delay: 2m\n", "restart.delay", "p.yaml:2:10: restart.delay 2m must be"),
        ("restart:\n  delay: [1s]\n", "restart.delay", "p.yaml:2:10: this is one value"),
        ("restart:\n  delay: 1:30\n", "restart.delay", "p.yaml:2:10: '1:30' is not a duration"),
        ("restart:\n  restarts_max: 010\n", "restart.restarts_max", "p.yaml:2:17: '010' does not"),
        ("restart:\n  restarts_max: 2026-99-99\n", "restart.restarts_max", "does not fit"),
        ("restart: 5\n", "restart", "p.yaml:1:10: this is a section"),
        ("restart:\n  delay: 1s\n  delay_ms: 2\n", "restart.delay", "p.yaml:3:3: given already in"),
        ("fencing:\n  cap_count: 0\n", "fencing.cap_count", "p.yaml:2:14: 0 is out of range"),
        ("fencing:\n  brake_percent: 30s\n", "fencing.brake_percent", "p.yaml:2:18: '30s' does"),
        ("fencing:\n  brake_percent: 99%\n", "fencing.brake_percent", "p.yaml:2:18: 99% is out"),
        ("fencing:\n  action: power-off\n", "fencing.action", "p.yaml:2:11: 'power-off' does not"),
        ("fencing:\n  unreachable: wait\n", "fencing.unreachable", "p.yaml:2:16: this is a list"),
        ("fencing:\n  unreachable:\n  - leese\n  - wait\n", "fencing.unreachable",
         "p.yaml:3:5: 'leese' does not fit here"),
        ("fencing:\n  unreachable: [wait, lease]\n", "fencing.unreachable",
         "p.yaml:2:16: fencing.unreachable goes on after wait"),
        ("fencing:\n  quiet_times:\n  - begin: 25:00\n    length: 1h\n", "fencing.quiet_times",
         "p.yaml:3:5: '25:00' is no time of day"),
        ("fencing:\n  quiet_times:\n  - begin: 22:00\n    length: 5\n",
         "fencing.quiet_times.length", "p.yaml:4:13: '5' is not a duration"),
        ("fencing:\n  quiet_times:\n  - begin: 22:00\n", "fencing.quiet_times", "p.yaml:3:5: "),
        ("fencing:\n  quiet_times:\n  - beginn: 22:00\n", "fencing.quiet_times.beginn",
         "p.yaml:3:5: there is no 'beginn'"),
        ("fencing:\n  quiet_times: [night]\n", "fencing.quiet_times", "p.yaml:2:17: this must be"),
        ("lease:\n  watchdog: 7.5s\n", "lease.watchdog", "p.yaml:2:13: 7.5s is not a whole number"),
        ("profile: quick\n", "profile", "p.yaml:1:10: 'quick' does not fit"),
        ("profile: [fast]\n", "profile", "p.yaml:1:10: this is one value"),
        ("restart: [\n", "policy", "p.yaml:2:1: not valid YAML"),
        ("restart:\n\tdelay: 1s\n", "policy", "p.yaml:2:1: not valid YAML"),
        ("", "policy", "p.yaml: the document is empty"),
        ("- restart\n", "policy", "p.yaml:1:1: this must be sections"),
        ("!!python/object:os.system {}\n", "policy", "p.yaml:1:1: tags"),
        ("[" * 100_000, "policy", "p.yaml:1:51: nested deeper"),
        ("#" * (1 << 20) + "\n", "policy", "p.yaml:1:1: the document is larger than 1 MiB"),
    ],
)  # fmt: skip
def test_wrong_documents_name_place_and_field(text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        given(text)
    assert says in caught.value.message
    assert (caught.value.field or "policy") == field
    assert caught.value.fix or caught.value.allowed


@pytest.mark.parametrize(
    ("text", "place"),
    [
        # The rule is about both; the place is that of the one in the file.
        ("detection:\n  hung_after: 40s\n", "p.yaml:2:15: detection.hung_after 40s"),
        ("lease:\n  kill: 1s\n  watchdog: 2s\n  self_fence_after: 6s\n", "p.yaml:4:21: "),
        ("restart:\n  enabled: true\nfencing:\n  brake_window: 1s\n", "p.yaml:4:17: "),
        # A profile's own value that doesn't go with the rest.
        ("profile: conservative\nfencing:\n  brake_window: 29s\n", "p.yaml:1:1: "),
    ],
)
def test_impossible_relations_point_into_the_file(text: str, place: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        given(text)
    assert caught.value.message.startswith(place)
    assert "must be" in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize(
    ("given_name", "fix"),
    [
        ("detection.beat_intervall", "did you mean 'beat_interval'?"),
        ("detection.self_fence_after", "there is lease.self_fence_after"),
        ("fencin.action", "did you mean 'fencing'?"),
    ],
)
def test_the_nearest_name_is_offered(given_name: str, fix: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        changes_from_assignment(f"{given_name}=1s")
    assert caught.value.fix == fix
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("restart.delay=1.5s", "restart.delay_ms", 1_500),
        ("restart.delay_ms=20", "restart.delay_ms", 20),
        ("restart.enabled=false", "restart.enabled", False),
        ("restart.restarts_max=3", "restart.restarts_max", 3),
        ("fencing.brake_percent=25%", "fencing.brake_percent", 25),
        ("fencing.unreachable=[lease, wait]", "fencing.unreachable", ["lease", "wait"]),
        ("fencing.quiet_times=[{begin: 22:00, length: 8h}]", "fencing.quiet_times",
         [{"days": [], "begin": "22:00", "length_ms": 28_800_000}]),
        (" lease.kill =2s", "lease.kill_ms", 2_000),
    ],
)  # fmt: skip
def test_single_values(text: str, path: str, value: object) -> None:
    (change,) = changes_from_assignment(text)
    assert (change.path, change.value, change.at) == (path, value, None)


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("restart.delay", "policy", "is not FIELD=VALUE"),
        ("restart.dealy=1s", "restart.dealy", "there is no 'dealy'"),
        ("restart.delay.x=1s", "restart.delay", "there is nothing below it"),
        ("restart=1", "restart", "this is a section"),
        ("restart.delay=1x", "restart.delay", "'1x' is not a duration"),
        ("restart.delay=5", "restart.delay", "'5' is not a duration"),
        ("restart.delay=[", "restart.delay", "is no value"),
        ("restart.delay=", "restart.delay", "is not a duration"),
        ("fencing.unreachable=[x]", "fencing.unreachable", "'x' does not fit"),
        ("profile=quick", "profile", "'quick' does not fit"),
    ],
)
def test_wrong_single_values(text: str, field: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        changes_from_assignment(text)
    assert says in caught.value.message
    assert ":1:1" not in caught.value.message
    assert caught.value.field == field
    assert caught.value.fix or caught.value.allowed


def test_a_wrong_change_leaves_the_document_as_it_was() -> None:
    before = document_of(Policy())
    with pytest.raises(InvalidInput):
        apply_changes(before, changes_from_assignment("detection.hung_after=40s"))
    assert before == DEFAULT


def test_differences_are_told_in_words() -> None:
    changed = policy_of(
        given("fencing:\n  action: reboot\n  unreachable: [wait]\nlease:\n  enabled: no\n")
    )
    assert [(one.shown, one.before, one.after) for one in differences(Policy(), changed)] == [
        ("fencing.action", "power_off", "reboot"),
        ("fencing.unreachable", "[next_level, lease, operator]", "[wait]"),
        ("lease.enabled", "yes", "no"),
    ]
    assert differences(changed, changed) == ()
