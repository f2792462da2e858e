"""Scenario files, played on real hosts as they are: what was recorded there in order, and the end, is what the simulator recorded."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from mending import mend
from told_replays import told_in_the_end

from virtha.lab.lab import Lab
from virtha.lab.scenario_player import ScenarioPlayer
from virtha.lab.story import Story, no_restart_limit
from virtha.scenario.language import Scenario, parse

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1_200)]
FILES = Path(__file__).parents[1] / "scenarios"
SOON = ("two-hosts-two-crashes", "two-hosts-one-hangs")
"""In `make test`; the session's lab has as many hosts."""
TWO_HOSTS = ("held-elsewhere",)
THREE_HOSTS = (
    "bmc-lies-off",
    "returns-after-recovery",
    "agent-dead-bmc-unreachable",
    "host-agent-down",
    "bmc-slow-1s",
    "server-down-while-host-dies",
    "hold-in-failure",
)
"""In a lab of their own."""


def _scenario(name: str) -> Scenario:
    return parse((FILES / f"{name}.txt").read_text())


def _play(story: Story, name: str) -> None:
    with ScenarioPlayer(story, _scenario(name)) as player:
        player.play()


@pytest.fixture
def stories(story: Story) -> Iterator[Story]:
    yield story
    story.set_policy(no_restart_limit())


@pytest.fixture(scope="module")
def lab_of_three(request: pytest.FixtureRequest) -> Iterator[Lab]:
    directory = Path(f"/tmp/virtha-lab-test-stories-{os.getpid()}")
    with told_in_the_end(request, "the three hosts' lab", directory, hosts=3) as made:
        yield made


@pytest.fixture
def three(lab_of_three: Lab) -> Iterator[Story]:
    """Whole again and without VMs after each test."""
    made = Story(lab_of_three)
    yield made
    mend(made)
    made.api.request("DELETE", "/v1/hold")
    for item in made.api.get("/v1/vms")["items"]:
        made.delete_vm(item["vm"]["name"])
    made.close()


@pytest.mark.req("F1", "F9", "X3")
@pytest.mark.parametrize(
    "name", [*SOON, *(pytest.param(name, marks=pytest.mark.long) for name in TWO_HOSTS)]
)
def test_a_story_of_the_simulator_on_two_real_hosts(stories: Story, name: str) -> None:
    _play(stories, name)


@pytest.mark.long
@pytest.mark.req("F1", "F2", "F9", "X3")
@pytest.mark.parametrize("name", THREE_HOSTS)
def test_a_story_of_the_simulator_on_three_real_hosts(three: Story, name: str) -> None:
    _play(three, name)
