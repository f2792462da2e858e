"""The guardian's core: beats, "agent down", and whom it kills."""

import random

import pytest

from virtha.model.ids import BootId, VmId
from virtha.model.time import Millis
from virtha.sentinel.guardian import (
    KILL_DEADLINE_MS,
    PULSE_FRESH_MS,
    UNGRANTED_MS,
    AgentGone,
    AgentPulse,
    Guardian,
    GuardianDecision,
    GuardianEvent,
    Kill,
    LinkLost,
    Paced,
    ProcessesSeen,
    QemuProcess,
    Report,
    SendBeat,
    Welcomed,
)

WEB = VmId("web")
QEMU = QemuProcess(pid=4711, start_ticks=100, vm_id=WEB)
UNKNOWN = "unknown"


def guardian() -> Guardian:
    return Guardian(BootId("boot-1"), Millis(0))


def step(core: Guardian, now: int, *events: GuardianEvent) -> GuardianDecision:
    return core.step(Millis(now), events)


def beats(decision: GuardianDecision) -> list[SendBeat]:
    return [each for each in decision.commands if isinstance(each, SendBeat)]


def kills(decision: GuardianDecision) -> list[Kill]:
    return [each for each in decision.commands if isinstance(each, Kill)]


def codes(decision: GuardianDecision) -> list[str]:
    return [each.code for each in decision.commands if isinstance(each, Report)]


def look(*processes: QemuProcess, managed: str = "web", granted: str = "") -> ProcessesSeen:
    def ids(text: str) -> frozenset[VmId] | None:
        return None if text == UNKNOWN else frozenset(VmId(each) for each in text.split())

    return ProcessesSeen(processes=processes, managed=ids(managed), granted=ids(granted))


def test_no_beat_without_a_session_and_none_after_it() -> None:
    core = guardian()
    assert step(core, 0, AgentPulse(inventory_revision=1)) == GuardianDecision()
    assert len(beats(step(core, 10, Welcomed(beat_interval_ms=1_000)))) == 1
    lost = step(core, 500, LinkLost())
    assert lost.commands == ()
    assert lost.wake_at is None


def test_beats_count_up_over_sessions_and_carry_what_the_grant_will_quote() -> None:
    core = guardian()
    first = beats(step(core, 5, AgentPulse(inventory_revision=7), Welcomed(beat_interval_ms=1_000)))
    step(core, 100, LinkLost())
    second = beats(step(core, 200, Welcomed(beat_interval_ms=1_000)))
    assert first == [
        SendBeat(
            sequence=1,
            boot=BootId("boot-1"),
            monotonic_ms=5,
            inventory_revision=7,
            agent_alive=True,
        )
    ]
    assert [beat.sequence for beat in second] == [2]


def test_another_pace_holds_from_the_next_moment_on_and_ends_with_the_session() -> None:
    core = guardian()
    step(core, 0, Welcomed(beat_interval_ms=4_000))
    paced = step(core, 100, Paced(beat_interval_ms=500))
    assert beats(paced) == [], "those of other hosts are told at the same moment"
    assert paced.wake_at == 600
    assert len(beats(step(core, 600))) == 1
    assert step(core, 700, Paced(beat_interval_ms=2_000)).wake_at == 1_100
    assert step(core, 1_100).wake_at == 3_100
    assert step(core, 1_200, LinkLost()).wake_at is None
    assert step(core, 1_300, Welcomed(beat_interval_ms=1_000)).wake_at == 2_300


def test_after_a_stall_one_beat_goes_out_not_those_that_were_missed() -> None:
    core = guardian()
    step(core, 0, Welcomed(beat_interval_ms=1_000))
    late = step(core, 60_000)
    assert len(beats(late)) == 1
    assert late.wake_at == 61_000


@pytest.mark.req("A8")
def test_a_silent_agent_is_told_at_once_not_with_the_next_beat() -> None:
    core = guardian()
    first = step(core, 0, AgentPulse(inventory_revision=1), Welcomed(beat_interval_ms=10_000))
    assert first.wake_at == PULSE_FRESH_MS
    stale = step(core, PULSE_FRESH_MS)
    assert [beat.agent_alive for beat in beats(stale)] == [False]
    back = step(core, PULSE_FRESH_MS + 1, AgentPulse(inventory_revision=1))
    assert [beat.agent_alive for beat in beats(back)] == [True]
    gone = step(core, PULSE_FRESH_MS + 2, AgentGone())
    assert [beat.agent_alive for beat in beats(gone)] == [False]


@pytest.mark.parametrize(
    ("looks", "killed_at"),
    [
        pytest.param([(0, look(QEMU))], None, id="one look never condemns"),
        pytest.param(
            [(0, look(QEMU)), (UNGRANTED_MS - 1, look(QEMU))], None, id="two looks too close"
        ),
        pytest.param(
            [(0, look(QEMU)), (UNGRANTED_MS, look(QEMU))], UNGRANTED_MS, id="two looks apart"
        ),
        pytest.param(
            [(0, look(QEMU)), (500, look(QEMU, granted="web")), (1_000, look(QEMU))],
            None,
            id="granted in between begins anew",
        ),
        pytest.param(
            [(0, look(QEMU)), (500, look(QEMU, granted=UNKNOWN)), (1_000, look(QEMU))],
            None,
            id="unknown in between begins anew",
        ),
        pytest.param(
            [(0, look(QEMU, managed=UNKNOWN)), (5_000, look(QEMU, managed=UNKNOWN))],
            None,
            id="unknown management never kills",
        ),
        pytest.param(
            [(0, look(QEMU, managed="db")), (5_000, look(QEMU, managed="db"))],
            None,
            id="not managed is none of ours",
        ),
        pytest.param(
            [
                (0, look(QEMU)),
                (1_000, look(QemuProcess(pid=4711, start_ticks=101, vm_id=WEB))),
            ],
            None,
            id="another process under the same pid",
        ),
    ],
)
def test_whom_it_kills(looks: list[tuple[int, ProcessesSeen]], killed_at: int | None) -> None:
    core = guardian()
    condemned = [(at, kill.process) for at, seen in looks for kill in kills(step(core, at, seen))]
    assert condemned == ([] if killed_at is None else [(killed_at, QEMU)])


def test_a_kill_is_confirmed_by_the_process_being_gone() -> None:
    core = guardian()
    step(core, 0, look(QEMU))
    assert codes(step(core, 1_000, look(QEMU))) == ["vm.unmanaged_copy"]
    assert kills(step(core, 1_500, look(QEMU))) == []
    assert codes(step(core, 2_000, look())) == ["host.guardian.killed_vm"]
    assert step(core, 9_000, look()).commands == ()


def test_an_unconfirmed_kill_is_repeated_and_told_but_not_on_unknown_grants() -> None:
    core = guardian()
    step(core, 0, look(QEMU))
    step(core, 1_000, look(QEMU))
    due = 1_000 + KILL_DEADLINE_MS
    assert step(core, due, look(QEMU, granted=UNKNOWN)).commands == ()
    assert step(core, due, look(QEMU, granted="web")).commands == ()
    again = step(core, due, look(QEMU))
    assert len(kills(again)) == 1
    assert codes(again) == ["host.guardian.kill_unconfirmed"]


def test_time_never_goes_back() -> None:
    core = guardian()
    step(core, 100)
    with pytest.raises(AssertionError, match="time went back"):
        step(core, 99)


@pytest.mark.req("X3")
def test_what_is_taken_in_passing_is_what_a_step_would_have_made_of_it() -> None:
    """At random: the guardian that takes what it can without a step beats, kills and waits as one that never does."""
    taken = 0
    for seed in range(40):
        chance = random.Random(seed)
        short, long = guardian(), guardian()
        looks = [look(QEMU, granted="web")] * 6 + [look(QEMU), look(granted=UNKNOWN)]
        rare: list[GuardianEvent] = [
            AgentGone(),
            LinkLost(),
            Welcomed(beat_interval_ms=1_000),
            Paced(beat_interval_ms=300),
        ]
        now, wake_at = Millis(0), None
        short.step(now, [rare[2]])
        long.step(now, [rare[2]])
        for _ in range(600):
            after = Millis(now + chance.choice((1, 250, 499, 500, 500, 500, 900)))
            now = after if wake_at is None else min(after, wake_at)
            event: GuardianEvent | None = None
            if now == after:
                pulse = AgentPulse(inventory_revision=chance.choice((7, 7, 7, 8)))
                event = chance.choice((pulse, pulse, pulse, *looks[chance.randrange(8) :][:3]))
                event = chance.choice(rare) if chance.random() < 0.02 else event
            said = long.step(now, [event] if event is not None else [])
            usual = isinstance(event, AgentPulse | ProcessesSeen)
            if usual and short.takes_in_passing(now, event):
                taken += 1
                assert not said.commands
                assert said.wake_at == wake_at
            else:
                assert short.step(now, [event] if event is not None else []) == said
            wake_at = said.wake_at
    assert taken > 4_000
