"""A BMC's manners, what it is asked, and the lab's state that it shares with others: without a lab."""

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from virtha.lab import state
from virtha.lab.bmc import Bmc, BmcFault, BmcManners, BmcRequest
from virtha.lab.chassis import Chassis
from virtha.lab.demo import KEYS
from virtha.lab.disk_witnesses import STRANGER, DiskStory
from virtha.lab.lab import Lab
from virtha.lab.namespaces import identify
from virtha.lab.node import wait_until

PATIENCE_S = 60.0


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab on paper. Its host is on: a process that does nothing is its first one."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        nodes = (
            state.NodeState(name="s1", number=1, kind="server"),
            state.NodeState(name="h1", number=1, kind="host", init=identify(process.pid)),
        )
        (tmp_path / "h1").mkdir()
        state.write_state(state.LabState(id="vl1", directory=str(tmp_path), nodes=nodes))
        yield Lab.open(tmp_path)
        process.kill()


@pytest.fixture
def bmc(lab: Lab) -> Bmc:
    """Its chassis serves."""
    made = lab.bmc("h1")
    made.make_files()
    threading.Thread(target=Chassis(lab, "h1").serve, daemon=True).start()
    return made


def ask(bmc: Bmc, words: str) -> str:
    """As its program does."""
    with socket.socket(socket.AF_UNIX) as line:
        line.settimeout(PATIENCE_S)
        line.connect(str(bmc.chassis_socket))
        line.sendall(words.encode())
        line.shutdown(socket.SHUT_WR)
        return line.recv(200).decode()


def test_it_tells_the_truth_or_what_it_was_told_to(bmc: Bmc, lab: Lab) -> None:
    assert ask(bmc, "get power") == "power:1"
    bmc.behave(BmcManners(fault=BmcFault.LIAR))
    assert ask(bmc, "get power") == "power:0"
    assert ask(bmc, "set power 0") == "done"
    bmc.behave(BmcManners(fault=BmcFault.IDLE))
    assert ask(bmc, "set power 0") == "done"
    assert ask(bmc, "get power") == "power:1"
    assert lab.host("h1").is_on()
    assert ask(bmc, "set boot pxe") == "no"
    assert [(one.order, one.done) for one in bmc.requests() if one.order] == [
        ("off!", False),
        ("off!", False),
        ("set boot pxe", False),
    ]
    bmc.begin_anew()
    assert bmc.requests() == [] and bmc.manners() == BmcManners()


def test_it_stops_at_the_request_that_was_named_before_or_after_it_is_carried_out(bmc: Bmc) -> None:
    bmc.behave(BmcManners(hold="get power", hold_nth=2))
    assert ask(bmc, "get power") == "power:1"
    assert not bmc.is_held
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(ask(bmc, "get power")))
    asking.start()
    wait_until(lambda: bmc.is_held, "it is held", timeout_s=PATIENCE_S)
    assert answers == [] and len(bmc.requests()) == 1, "asked, and not done"
    # It goes on to the next hold, and does not count as held meanwhile.
    bmc.behave(BmcManners(hold="get power", hold_after=True))
    asking.join(PATIENCE_S)
    assert answers == ["power:1"] and not bmc.is_held
    asking = threading.Thread(target=lambda: answers.append(ask(bmc, "get power")))
    asking.start()
    wait_until(lambda: bmc.is_held, "it is held", timeout_s=PATIENCE_S)
    assert len(answers) == 1 and len(bmc.requests()) == 3, "done, and not answered"
    bmc.behave(BmcManners())
    asking.join(PATIENCE_S)
    assert len(answers) == 2 and not bmc.is_held


@pytest.mark.parametrize(
    ("words", "found_on", "order"),
    [
        ("get power", True, ""),
        ("set power 0", True, "off!"),
        ("set power 0", False, "off"),
        ("set power 1", False, "on"),
        ("set identify 60 0", True, "blink"),
        ("set reset 1", True, "set reset 1"),
    ],
)
def test_orders_have_words(words: str, found_on: bool, order: str) -> None:
    assert BmcRequest(at_ms=0, words=words, found_on=found_on, done=True).order == order


def test_who_changes_a_lab_at_the_same_time_loses_nothing(lab: Lab) -> None:
    """A command's view of a node is old when a BMC has switched it meanwhile: only what is changed is written."""
    old = lab.host("h1")
    Lab.open(lab.directory).change_node("h1", init=None)
    lab.change_node("h1", cable_up=False)
    found = state.read_state(lab.directory).node("h1")
    assert (found.init, found.cable_up) == (None, False)
    assert old.state.cable_up and not lab.host("h1").is_on()

    def many(name: str) -> None:
        for number in range(50):
            lab.change_node(name, number=number)

    threads = [threading.Thread(target=many, args=(name,)) for name in ("h1", "s1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [node.number for node in lab.state.nodes] == [49, 49]


@pytest.mark.parametrize(
    ("writers", "twice", "count"),
    [
        (["h1"], [], 0),
        (["h1", "h2"], [], 0),
        (["h1", "h2", "h1"], [], 1),
        (["h1", "h2", "h1", "h2"], [], 2),
        (["h1", f"{STRANGER}17"], [], 1),
        (["h1", "h2"], ["look 3: h1, h2"], 1),
    ],
)
def test_double_runs_are_counted(writers: list[str], twice: list[str], count: int) -> None:
    disk = DiskStory("web1", Path("/disk"), "/shared/disk")
    disk.writers, disk.twice = writers, twice
    assert disk.double_runs == count


def test_the_demos_last_line_has_the_story_of_a_host() -> None:
    assert {"host_power_loss_s", "host_vms_recovered", "double_runs"} <= set(KEYS)
    assert len(set(KEYS)) == len(KEYS)


def test_a_state_of_before_bmcs_can_still_be_taken_down(tmp_path: Path) -> None:
    old = {
        "id": "vl1",
        "directory": str(tmp_path),
        "nodes": [{"name": "h1", "number": 1, "kind": "host"}],
    }
    (tmp_path / state.STATE_NAME).write_bytes(msgspec.json.encode(old))
    assert state.read_state(tmp_path).node("h1").bmc is None
