"""One lab for the whole folder: two hosts, one server. A lab that can't be built fails every test."""

import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from last_words import last_words
from mending import mend
from told_replays import replays_of, told_in_the_end

from virtha.lab import lab, state
from virtha.lab.lab import Lab
from virtha.lab.story import Story, no_restart_limit

HOSTS = 2
LAB_PATTERN = re.compile(r"/tmp/virtha-lab-test-(?:[a-z]+-)?(\d+)$")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is shown with what its lab has to say of it."""
    report = yield
    if report.failed and report.when == "call":
        made = [one for one in getattr(item, "funcargs", {}).values() if isinstance(one, Story)]
        labs = {one.lab.directory: one.lab for one in made}
        report.sections += [("the lab's last words", last_words(one)) for one in labs.values()]
    return report


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in replays_of(config):
        terminalreporter.write_line(line)


def _take_down_orphans() -> None:
    """Labs of test runs that were killed; those of runs that still live stay."""
    for directory in state.registered():
        match = LAB_PATTERN.match(str(directory))
        if match and not Path(f"/proc/{match.group(1)}").exists():
            lab.down(directory)


@pytest.fixture(scope="session")
def built_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """An error in the end, unless its engine's journal, replayed, decides the same."""
    _take_down_orphans()
    directory = Path(f"/tmp/virtha-lab-test-{os.getpid()}")
    with told_in_the_end(request, "the lab", directory, hosts=HOSTS) as made:
        yield made


@pytest.fixture(scope="session")
def session_story(built_lab: Lab) -> Iterator[Story]:
    story = Story(built_lab)
    story.set_policy(no_restart_limit())
    yield story
    story.close()


@pytest.fixture
def mended_story(session_story: Story) -> Iterator[Story]:
    """The lab, whole again after each test; its VMs stay."""
    lab.wait_storage(session_story.lab)
    yield session_story
    mend(session_story)


@pytest.fixture
def story(session_story: Story) -> Iterator[Story]:
    """The lab, whole again and without VMs after each test."""
    lab.wait_storage(session_story.lab)
    yield session_story
    mend(session_story)
    if session_story.api.get("/v1/hold")["reason"] is not None:
        session_story.api.request("DELETE", "/v1/hold")
    for item in session_story.api.get("/v1/vms")["items"]:
        session_story.delete_vm(item["vm"]["name"])
