"""What the simulator's leaders were told replays like the plays of the unit tests: as a journal from the field will."""

import sys
from pathlib import Path

import pytest

from virtha.engine.events import StartCommand
from virtha.engine.journal import SegmentReader
from virtha.engine.replay import Replay
from virtha.scenario.language import parse
from virtha.sim import failover
from virtha.sim.play import Player

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS / "unit" / "engine"))
from journalled_play import JournalledEngine, journalled  # noqa: E402 - found only through the path set above

SCENARIOS = (
    "host-power-cut",
    "bmc-level-two",
    "leader-killed-at-intents",
    "two-servers-think-they-lead",
    "target-dies-while-starting",
    "cap-reached",
)


@pytest.mark.req("X2")
@pytest.mark.parametrize("name", SCENARIOS)
def test_the_journal_of_a_scenario_decides_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (TESTS / "scenarios" / f"{name}.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(failover, "Engine", JournalledEngine)
    with journalled() as segments:
        Player().play(parse(text))
    assert segments, "the scenario has no engine"
    commands = []
    for segment in segments:
        reader = SegmentReader(bytes(segment))
        for turn in Replay(reader).turns():
            assert turn.difference is None and turn.failure == ""
            assert turn.decision is not None
            commands += turn.decision.commands
        assert reader.fault is None
    assert any(isinstance(command, StartCommand) for command in commands)
