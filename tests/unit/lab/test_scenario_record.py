"""What a scenario file holds a lab to: each difference that matters is one, and what both worlds may do is none."""

from pathlib import Path

import pytest

from virtha.lab.scenario_player import require_playable
from virtha.lab.scenario_record import (
    EndOfVm,
    Expectation,
    Told,
    deviation,
    early_recovery,
    lanes_of,
    missing,
    place_differs,
    read_expectation,
)
from virtha.model.errors import InvalidInput
from virtha.scenario.language import parse

FILES = Path(__file__).parents[2] / "scenarios"
THREE = ("h1", "h2", "h3")
SUSPECTED = ("h1", "host.suspected")
JUDGED = ("h1", "host.judged_dead")
PROVEN = ("h1", "host.proven_dead")
BEGAN = ("web", "vm.recovery_started")


def _expected(name: str) -> Expectation:
    scenario = parse((FILES / f"{name}.txt").read_text())
    with_engine = any(step.verb == "engine" for step in scenario.steps)
    return read_expectation(scenario.expected, with_engine=with_engine)


def _told(*told: tuple[str, str]) -> list[Told]:
    return [Told(subject=subject, code=code) for subject, code in told]


def _differs(wanted: list[Told], came: list[Told], *, with_engine: bool = True) -> str:
    return deviation(
        lanes_of(wanted, with_engine=with_engine), lanes_of(came, with_engine=with_engine)
    )


def test_the_outcome_of_each_file_can_be_read() -> None:
    paths = sorted(FILES.glob("*.txt"))
    assert paths, "they are found"
    for path in paths:
        scenario = parse(path.read_text())
        found = read_expectation(scenario.expected, with_engine=True)
        questions = [step.words[0] for step in scenario.steps if step.verb == "explain"]
        assert [name for name, _ in found.explained] == questions, path.name
        ends = [line for line in scenario.expected if line.startswith("end ")]
        assert len(found.vms) == len(ends), path.name


def test_what_was_decided_is_read_with_values_that_have_blanks() -> None:
    found = _expected("two-hosts-one-hangs")
    lanes = lanes_of(found.told, with_engine=True)
    assert lanes[("h1", "verdict")] == [
        "host.suspected",
        "host.judged_dead",
        "fence.began action=power_off",
        "host.proven_dead proof=power_off",
    ]
    assert lanes[("h1", "presence")] == ["gone"], "without its agent first, by chance"
    assert lanes[("web", "way")] == [
        "vm.started",
        "vm.recovery_started attempt=1",
        "vm.started",
        "vm.recovered",
    ]
    assert found.vms == (
        EndOfVm(name="web", state="running", runs_on=("h2",), held_by=("h2",), incarnation=2),
    )
    assert [(end.name, end.verdict, end.reasons) for end in found.hosts] == [
        ("h1", "dead_proven", ("host.dead.proven",))
    ]


def test_what_a_host_tells_later_is_due_when_the_server_hears_of_it() -> None:
    found = _expected("isolated-host-restarts")
    assert [one.code for one in found.due(20_000)][-1] == "host.unreachable"
    assert "vm.crashed" in [one.code for one in found.due(36_000)]


@pytest.mark.parametrize(
    ("came", "differs"),
    [
        ([SUSPECTED, JUDGED, PROVEN], False),
        ([SUSPECTED, JUDGED], False),
        ([JUDGED], True),
        ([SUSPECTED, PROVEN], True),
        ([SUSPECTED, JUDGED, PROVEN, ("h1", "host.returned")], True),
        ([SUSPECTED, ("h2", "host.suspected")], True),
        ([SUSPECTED, ("h1", "fence.began")], True),
        ([SUSPECTED, ("h1", "host.connected"), JUDGED], False),
    ],
    ids=[
        "all of it",
        "the beginning of it",
        "without its beginning",
        "with a step left out",
        "more than the story has",
        "of a host that the story has nothing of",
        "another step at this place",
        "with what is not compared in between",
    ],
)
def test_what_came_is_held_against_the_story(came: list[tuple[str, str]], differs: bool) -> None:
    assert bool(_differs(_told(SUSPECTED, JUDGED, PROVEN), _told(*came))) is differs


def test_a_decision_of_another_kind_differs() -> None:
    def fence(action: str) -> list[Told]:
        return [Told(subject="h1", code="fence.began", fields={"action": action, "by": "h2"})]

    assert not _differs(fence("power_off"), fence("power_off"))
    assert "action=reboot" in _differs(fence("power_off"), fence("reboot"))


def test_without_an_engine_in_the_story_its_words_are_not_compared() -> None:
    came = _told(SUSPECTED, JUDGED, ("web", "vm.started"))
    assert not _differs(_told(("web", "vm.started")), came, with_engine=False)
    assert _differs(_told(("web", "vm.started")), came)


@pytest.mark.parametrize("between", [[], ["host.agent.down"]])
def test_a_host_is_gone_with_or_without_its_agent_first(between: list[str]) -> None:
    wanted = _told(("h1", "host.agent.down"), ("h1", "host.unreachable"))
    codes = [*between, "host.unreachable"]
    for end in range(1, len(codes) + 1):
        assert not _differs(wanted, _told(*(("h1", code) for code in codes[:end])))
    back = [("h1", code) for code in (*codes, "host.agent.down", "host.agent.up")]
    wanted += _told(("h1", "host.reachable"))
    assert _differs(wanted, _told(*back)), "it answers before its agent is missed"
    back.insert(-2, ("h1", "host.reachable"))
    assert not _differs(wanted, _told(*back))


def test_an_agent_that_is_down_is_not_a_host_that_is_gone() -> None:
    wanted = _told(("h1", "host.agent.down"), ("h1", "host.agent.up"))
    assert not _differs(wanted, wanted)
    assert _differs(wanted, _told(("h1", "host.unreachable")))


def test_what_is_missing_is_named() -> None:
    wanted = lanes_of(_told(SUSPECTED, JUDGED), with_engine=True)
    came = lanes_of(_told(SUSPECTED), with_engine=True)
    assert missing(wanted, came) == ["h1: host.judged_dead"]
    assert missing(wanted, wanted) == []


def test_a_recovery_before_its_proof_is_found_though_each_lane_is_the_storys() -> None:
    story = _told(SUSPECTED, JUDGED, PROVEN, BEGAN)
    early = _told(SUSPECTED, BEGAN, JUDGED, PROVEN)
    assert not _differs(story, early)
    assert early_recovery(story, story) == ""
    assert early_recovery(story, early) == (
        "recovery 1 of web began without host.proven_dead of h1"
    )


@pytest.mark.parametrize(
    ("runs_on", "copies", "holds"),
    [
        (("h2",), ["h2"], True),
        (("h2",), ["h3"], True),
        (("h2",), ["h1"], False),
        (("h2",), ["h2", "h3"], False),
        (("h2",), [], False),
        (("h1",), ["h1"], True),
        (("h1",), ["h2"], False),
        ((), [], True),
        ((), ["h1"], False),
    ],
)
def test_who_had_to_leave_may_run_on_any_other_host(
    runs_on: tuple[str, ...], copies: list[str], holds: bool
) -> None:
    end = EndOfVm(name="web", state="running", runs_on=runs_on, held_by=runs_on, incarnation=2)
    assert (place_differs(end, copies, "h1") == "") is holds


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("host-cut-management", 7, "'cut net h1'"),
        ("host-cut-and-bmc-cut", 7, "'cut net h1'"),
        ("fence-order-lost-answer", 9, "'cut bmc h1 to server'"),
        ("leader-killed-at-intents", 9, "'kill-server' with at="),
        ("bmc-level-two", 3, "power=bmc,outlets"),
        ("bmc-refuses", 7, "'bmc refuses'"),
        ("fence-action-nothing", 3, "'policy'"),
        ("vm-shut-down-on-purpose-then-host-dies", 7, "'shutdown'"),
        ("two-hosts-one-hangs", 3, "more hosts"),
        ("two-hosts-at-once", 3, "no h4"),
    ],
)
def test_what_a_lab_can_not_play_is_refused_by_name_and_line(
    name: str, line: int, said: str
) -> None:
    scenario = parse((FILES / f"{name}.txt").read_text())
    with pytest.raises(InvalidInput) as refused:
        require_playable(scenario, THREE)
    assert (refused.value.field, said in refused.value.message) == (f"line {line}", True)


def test_a_cable_is_not_pulled_where_an_engine_asks_neighbours() -> None:
    lines = ["# A cable.", "engine", "hosts h1 h2 h3", "cut-net h1"]
    with pytest.raises(InvalidInput, match="neighbours"):
        require_playable(parse("\n".join(lines)), THREE)
    del lines[1]
    require_playable(parse("\n".join(lines)), THREE)
