"""What the small world of what-if questions answers, and what comes of it: one switch of the inventory each."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from virtha.engine.events import OrderPower, Poison
from virtha.model.errors import InvalidInput
from virtha.model.policy import Policy
from virtha.model.policy.budget import Way, budget
from virtha.model.policy.profiles import PROFILES, Profile
from virtha.model.power import PowerAction
from virtha.model.proof import ProofKind
from virtha.model.time import parse_utc
from virtha.scenario.inventory import Inventory, read_inventory
from virtha.scenario.inventory_check import check_inventory
from virtha.sim.what_if import Failure, parse_failure, run_what_if
from virtha.sim.what_if_story import Outcome, Story, failure_text, story_timeline, tell_story

pytestmark = pytest.mark.req("X3")

NOON_MS = parse_utc("2026-01-07T12:00:00Z", field="at")


def cluster(
    *,
    power: str = "{}",
    host: str = "",
    hosts: int = 5,
    racks: int = 5,
    vm: str = "",
    vms: str = "",
    policy: str = "{}",
    top: str = "",
) -> Inventory:
    """``h1`` to ``hN`` dealt to racks ``a``, ``b``…; ``v`` runs on h1."""
    lines = [f"policy: {policy}", "storage: [ds1]", top, "hosts:"]
    for number in range(1, hosts + 1):
        rack = "abcdefghij"[(number - 1) % racks]
        lines.append(
            f"  - {{name: h{number}, rack: {rack}, memory: 64GiB, cpus: 16, power: {power} {host}}}"
        )
    lines += ["vms:", f"  - {{name: v, on: h1, memory: 4GiB, ha: yes {vm}}}", vms]
    found = read_inventory("\n".join(lines), file="i.yaml")
    check_inventory(found)
    return found


def ask(inventory: Inventory, *what: str, at_ms: int = NOON_MS, for_ms: int = 600_000) -> Story:
    failure = parse_failure(what or ("host=h1",), inventory)
    return tell_story(run_what_if(inventory, failure, at_ms=at_ms, for_ms=for_ms))


def codes(reasons: Any) -> list[str]:
    return [one.code for one in reasons]


@pytest.mark.req("X6")
@pytest.mark.parametrize("profile", Profile)
def test_a_power_cut_is_within_the_policys_budget(profile: Profile) -> None:
    story = ask(cluster(policy=f"{{profile: {profile}}}"))
    (vm,) = story.vms
    sums = budget(PROFILES[profile]).of(Way.POWER_CUT_SILENT)
    assert vm.runs_ms is not None
    assert sums.typical_ms / 2 < vm.runs_ms <= sums.worst_ms
    assert story.hosts[0].proof is ProofKind.POWER_OFF


@pytest.mark.parametrize("profile", Profile)
def test_a_dead_power_device_leaves_the_lease(profile: Profile) -> None:
    story = ask(cluster(policy=f"{{profile: {profile}}}", power="{answers: dead}"))
    (host,), (vm,) = story.hosts, story.vms
    policy = PROFILES[profile]
    assert host.proof is ProofKind.LEASE
    assert host.judged_ms is not None and host.poisoned_ms is not None
    assert host.proven_ms is not None and vm.runs_ms is not None
    # Never before all that the slot promises has passed; at most one look later than two.
    waited = host.proven_ms - host.poisoned_ms
    looks_ms = 2 * policy.lease.read_period_ms
    assert policy.lease.expiry_ms < waited <= policy.lease.expiry_ms + looks_ms + 100
    silence = max(policy.detection.dead_at_ms, policy.detection.session_silence_ms)
    assert host.judged_ms - host.silent_ms <= silence + policy.detection.check_interval_ms


@pytest.mark.req("X6")
@pytest.mark.parametrize("profile", Profile)
def test_the_budget_of_the_lease_is_an_upper_bound_step_by_step_in_every_phase(
    profile: Profile,
) -> None:
    """Whenever the host fails between two looks of the readers, and whenever it last beat before."""
    policy = PROFILES[profile]
    steps = {step.name: step.worst_ms for step in budget(policy).of(Way.LEASE).steps}
    judged_ms = steps["silence"] + steps["disk checks"]
    waits = ("self-fencing", "kill", "watchdog", "two looks", "clock drift")
    looks_ms = steps["poison"] + steps["poison seen"] + steps["last look"]
    period_ms, interval_ms = policy.lease.read_period_ms, policy.detection.beat_interval_ms
    longest = 0
    for number in (1, 5, 9):
        vms = f"  - {{name: w, on: h{number}, memory: 4GiB, ha: yes}}"
        inventory = cluster(
            policy=f"{{profile: {profile}}}", power="{answers: dead}", hosts=10, vms=vms
        )
        for shift_ms in range(0, period_ms + interval_ms, (period_ms + interval_ms) // 12 + 1):
            story = ask(inventory, f"host=h{number}", at_ms=NOON_MS + shift_ms)
            host, vm = story.hosts[0], story.vms[-1]
            assert host.judged_ms is not None and host.poisoned_ms is not None
            assert host.proven_ms is not None and vm.runs_ms is not None
            assert host.judged_ms <= judged_ms
            waited_ms = host.proven_ms - host.poisoned_ms
            assert policy.lease.expiry_ms < waited_ms <= sum(steps[one] for one in waits) + looks_ms
            assert vm.runs_ms - host.proven_ms <= steps["record the proof"] + steps["start"]
            longest = max(longest, vm.runs_ms)
    sums = budget(policy).of(Way.LEASE)
    # It is a bound, and none that is far from what happens: storage and database just never take their worst.
    assert sums.typical_ms < longest <= sums.worst_ms
    slow_ms = steps["poison"] + steps["record the poison"] + steps["record the proof"]
    assert longest >= sums.worst_ms - slow_ms - steps["start"] - interval_ms - 500


@pytest.mark.parametrize(
    ("power", "proof"),
    [
        ("{fed_by: own}", ProofKind.POWER_OFF),
        ("{fed_by: rack}", ProofKind.POWER_OFF),
        ("{fed_by: host}", ProofKind.LEASE),
        ("{answers: refuses}", ProofKind.LEASE),
        ("{answers: says_on}", ProofKind.LEASE),
        ("{tested: no, names_host: no}", ProofKind.LEASE),
        ("{names_host: no}", ProofKind.POWER_OFF),
        ("{status: no}", ProofKind.LEASE),
        ("{answer_time: 5s}", ProofKind.LEASE),
        ("[{answers: dead}, {fed_by: own}]", ProofKind.POWER_OFF),
        ("[[{}, {answers: says_on}]]", ProofKind.LEASE),
        ("[[{}, {}]]", ProofKind.POWER_OFF),
        ("[]", ProofKind.LEASE),
    ],
)
def test_how_one_dark_host_is_proven_dead(power: str, proof: ProofKind) -> None:
    story = ask(cluster(power=power))
    (host,), (vm,) = story.hosts, story.vms
    assert host.proof is proof
    assert vm.outcome is Outcome.RETURNS
    assert vm.runs_ms is not None and host.proven_ms is not None
    assert vm.runs_ms > host.proven_ms, "nothing starts before the proof"


def test_a_rack_takes_its_power_devices_with_it() -> None:
    inventory = cluster(power="{fed_by: rack}", racks=3, hosts=9)
    assert ask(inventory, "host=h1").hosts[0].proof is ProofKind.POWER_OFF
    story = ask(inventory, "rack=a")
    assert [host.name for host in story.hosts] == ["h1", "h4", "h7"]
    assert story.hosts[0].proof is ProofKind.LEASE


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"host": ", watchdog: no", "power": "[]"}, "lease.not_proof.no_watchdog"),
        ({"power": "[]", "policy": "{lease: {enabled: no}}"}, "fence.blocked.no_device"),
        ({"policy": "{recovery: {grade: move}}"}, "fence.blocked.grade"),
        ({"policy": "{fencing: {action: nothing}}"}, "fence.blocked.action_nothing"),
        ({"policy": "{fencing: {action: blink}}"}, "fence.blocked.action_blink"),
    ],
)
def test_a_host_that_is_not_proven_dead_says_why(change: dict[str, str], reason: str) -> None:
    story = ask(cluster(**change))
    (host,), (vm,) = story.hosts, story.vms
    assert host.proven_ms is None
    assert reason in codes(host.reasons)
    assert vm.outcome is Outcome.STAYS_DOWN
    assert codes(vm.reasons) == ["recovery.waiting.proof"]
    assert story.what_if.ended_ms == 600_000


def test_quiet_times_count_at_the_moment_that_was_asked_about() -> None:
    policy = '{fencing: {quiet_times: [{begin: "22:00", length: 8h}]}}'
    inventory = cluster(policy=policy)
    night_ms = parse_utc("2026-01-07T23:00:00Z", field="at")
    assert ask(inventory).vms[0].outcome is Outcome.RETURNS
    story = ask(inventory, at_ms=night_ms)
    assert story.vms[0].outcome is Outcome.STAYS_DOWN
    assert "fence.blocked.quiet_time" in codes(story.hosts[0].reasons)


def test_most_hosts_at_once_may_be_the_servers_own_trouble() -> None:
    inventory = cluster(racks=2, hosts=5)
    story = ask(inventory, "rack=a")
    assert {host.proven_ms for host in story.hosts} == {None}
    assert "fence.blocked.observer" in codes(story.hosts[0].reasons)
    with_reference = ask(cluster(racks=2, hosts=5, top="reference: yes"), "rack=a")
    assert with_reference.vms[0].outcome is Outcome.RETURNS


def test_a_cluster_of_two_has_no_third_slot_to_compare_with() -> None:
    inventory = cluster(hosts=2, power="{answers: dead}", top="reference: yes")
    story = ask(inventory)
    assert story.hosts[0].proof is ProofKind.LEASE
    assert story.vms[0].runs_on == "h2"


def test_who_is_not_protected_is_told_as_such() -> None:
    vms = "  - {name: w, on: h1, memory: 1GiB}\n  - {name: x, on: h1, memory: 1GiB, ha: yes, ignore: yes}"
    story = ask(cluster(vms=vms))
    assert {vm.name: vm.outcome for vm in story.vms} == {
        "v": Outcome.RETURNS,
        "w": Outcome.NOT_PROTECTED,
        "x": Outcome.NOT_PROTECTED,
    }
    assert [codes(vm.reasons) for vm in story.vms[1:]] == [
        ["protection.no_ha"],
        ["protection.ignored"],
    ]


def test_a_start_takes_as_long_as_the_inventory_says() -> None:
    story = ask(cluster(vm=", start_time: 7s, boot_time: 90s"))
    (vm,) = story.vms
    assert vm.ordered_ms is not None and vm.runs_ms is not None
    assert vm.runs_ms - vm.ordered_ms == 7_000
    assert vm.agent_ms == vm.runs_ms + 90_000


def test_a_start_that_outlasts_its_grant_fails_until_it_is_given_up() -> None:
    story = ask(cluster(vm=", start_time: 1m"))
    (vm,) = story.vms
    assert vm.outcome is Outcome.STAYS_DOWN
    assert vm.attempts == Policy().recovery.attempts_max
    assert codes(vm.reasons) == ["recovery.blocked.attempts"]


def test_a_vm_waits_for_what_it_depends_on() -> None:
    vms = (
        "  - {name: w, on: h1, memory: 1GiB, ha: yes, "
        "depends_on: [{vm: v, condition: guest_agent}]}"
    )
    first, then = ask(cluster(vms=vms, vm=", boot_time: 30s")).vms
    assert first.agent_ms is not None and then.ordered_ms is not None
    assert then.ordered_ms >= first.agent_ms
    assert codes(then.waited_for) == ["recovery.waiting.dependency"]


def test_hosts_that_nobody_lost_are_not_touched() -> None:
    """No order goes to a host that lives, and no start to one that does not."""
    inventory = cluster(racks=3, hosts=9)
    what_if = ask(inventory, "rack=a").what_if
    orders = [entry.command for entry in what_if.log if entry.command is not None]
    assert orders
    for order in orders:
        assert isinstance(order, OrderPower | Poison)
        assert order.host_id in what_if.failure.hosts
        assert not isinstance(order, OrderPower) or order.action is PowerAction.OFF
    for entry in what_if.log:
        if entry.notice is not None and entry.notice.code == "vm.recovery_started":
            assert entry.notice.fields["host"] not in what_if.failure.hosts


def test_who_watches_is_told_how_far_it_is() -> None:
    inventory, told = cluster(), list[int]()
    failure = parse_failure(["host=h1"], inventory)
    ended_ms = run_what_if(
        inventory, failure, at_ms=NOON_MS, for_ms=60_000, watch=told.append
    ).ended_ms
    assert told == sorted(told)
    assert told[0] < 0
    assert 0 <= ended_ms - told[-1] <= 1_000


def test_all_goes_well_before() -> None:
    log = ask(cluster()).what_if.log
    assert min(entry.at_ms for entry in log) > 0


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        (("host=h1",), Failure(hosts=("h1",))),
        (("rack=a,host=h2", "host=h2"), Failure(hosts=("h1", "h4", "h2"), racks=("a",))),
        ((" host=h2 , rack=c ",), Failure(hosts=("h2", "h3"), racks=("c",))),
    ],
)
def test_what_can_fail(what: tuple[str, ...], expected: Failure) -> None:
    assert parse_failure(what, cluster(racks=3)) == expected


@pytest.mark.parametrize("what", ["", "h1", "host=", "host=h9", "rack=z", "vm=v"])
def test_what_can_not_fail(what: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_failure((what,), cluster())
    assert caught.value.field == "--fail"
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("what", "text"),
    [
        ("host=h1", "host h1 loses power"),
        ("rack=a,host=h2", "rack a and host h2 lose power"),
        ("rack=a,rack=b,host=h3", "rack a, rack b and host h3 lose power"),
        (
            "host=h1,host=h2,host=h3,host=h4,host=h5",
            "host h1, host h2, host h3 and 2 more hosts lose power",
        ),
    ],
)
def test_the_question_in_words(what: str, text: str) -> None:
    inventory = cluster()
    story = ask(inventory, what, for_ms=1_000)
    assert failure_text(story.what_if) == text


def test_the_picture_leaves_out_what_is_too_much() -> None:
    vms = "  - {name: 'w{n}', count: 9, on: h1, memory: 1GiB}"
    picture = story_timeline(ask(cluster(vms=vms)), vms_max=2)
    assert [lane.name for lane in picture.lanes] == ["h1", "v", "w1"]


POWER = some.sampled_from(
    (
        "[]",
        "{}",
        "{fed_by: own}",
        "{answers: dead}",
        "{answers: refuses, fed_by: own}",
        "{answers: says_on}",
        "{names_host: no}",
        "{names_host: other}",
        "{tested: no, names_host: no}",
        "[{answers: dead}, {fed_by: own}]",
        "[[{}, {fed_by: own}]]",
    )
)


@some.composite
def inventories(draw: some.DrawFn) -> tuple[str, list[str]]:
    """A cluster with all that an inventory can say about hosts and VMs, and what fails."""
    count = draw(some.integers(2, 7))
    hosts = [f"h{n}" for n in range(1, count + 1)]
    profile = draw(some.sampled_from(list(Profile)))
    reference = draw(some.sampled_from(("yes", "no")))
    lines = [f"policy: {{profile: {profile}}}", "storage: [a, b]", f"reference: {reference}"]
    lines += ["groups:", "  - {name: apart, kind: apart, hard: yes}"]
    lines += ["  - {name: near, kind: together}", "hosts:"]
    for name in hosts:
        rack, tags = draw(some.sampled_from("xyz")), draw(some.sampled_from(("", "ssd")))
        watchdog = draw(some.sampled_from(("yes", "yes", "no")))
        lines.append(
            f"  - {{name: {name}, rack: {rack}, memory: 16GiB, cpus: 8, tags: [{tags}], "
            f"watchdog: {watchdog}, power: {draw(POWER)}}}"
        )
    lines.append("vms:")
    for number in range(draw(some.integers(1, 10))):
        needs = draw(some.lists(some.integers(0, number - 1), max_size=2)) if number else []
        condition = draw(some.sampled_from(("started", "guest_agent")))
        depends_on = ", ".join(f"{{vm: v{one}, condition: {condition}}}" for one in set(needs))
        lines.append(
            f"  - {{name: v{number}, on: {draw(some.sampled_from(hosts))}, "
            f"memory: {draw(some.sampled_from(('1GiB', '1.5GiB')))}, "
            f"ha: {draw(some.sampled_from(('yes', 'yes', 'no')))}, "
            f"priority: {draw(some.integers(0, 2))}, "
            f"tags: [{draw(some.sampled_from(('', '', 'ssd')))}], "
            f"storage: {draw(some.sampled_from(('a', 'b', '[a, b]')))}, "
            f"groups: [{draw(some.sampled_from(('', '', 'apart', 'near')))}], "
            f"start_time: {draw(some.sampled_from(('600ms', '600ms', '1m')))}, "
            f"depends_on: [{depends_on}]}}"
        )
    failing = draw(some.lists(some.sampled_from(hosts), min_size=1, max_size=4, unique=True))
    return "\n".join(lines), [f"host={name}" for name in failing]


@pytest.mark.req("X1")
@settings(max_examples=40, deadline=None)
@given(inventories())
def test_whatever_fails_each_vm_returns_after_the_proof_or_has_a_reason(
    question: tuple[str, list[str]],
) -> None:
    text, what = question
    inventory = read_inventory(text, file="i.yaml")
    story = ask(inventory, *what, for_ms=400_000)
    hosts = {host.name: host for host in story.hosts}
    for host in story.hosts:
        assert host.judged_ms is not None
        assert host.reasons
    for vm in story.vms:
        if vm.outcome is Outcome.RETURNS:
            proven_ms = hosts[vm.was_on].proven_ms
            assert proven_ms is not None and vm.ordered_ms is not None and vm.runs_ms is not None
            assert proven_ms <= vm.ordered_ms < vm.runs_ms
            assert vm.runs_on not in hosts
        else:
            assert vm.reasons
    assert story_timeline(story, vms_max=100).lanes
