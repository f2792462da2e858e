"""Whoever dies while a VM is copied, at whichever point: it has one writer, loses no record, and runs, or a reason is told."""

from collections.abc import Iterator

import pytest
from broken_moves import Phase, StoppedMove
from moving_guest import GENTLE_S, PATIENCE_S, last_record, records, writing_vm

from virtha.lab import faults, guest
from virtha.lab.disk_witnesses import DiskWitnesses
from virtha.lab.node import wait_until
from virtha.lab.records import begin_writing
from virtha.lab.story import Story
from virtha.model.errors import Failed

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900)]
VM = "mover4"
PROCESSES = ("source agent", "target agent", "source libvirtd", "target libvirtd", "server")
HOSTS = ("source host", "target host")
ALL = (*PROCESSES, *HOSTS)
WHO = {phase: (*ALL, "mover") for phase in Phase if phase is not Phase.SETTLED} | {
    Phase.SETTLED: ALL
}


@pytest.fixture(scope="module")
def written(session_story: Story) -> Iterator[Story]:
    """With one VM for the whole module: each start of a guest takes its time."""
    yield session_story
    if session_story.api.request("GET", f"/v1/vms/{VM}").status_code == 200:
        session_story.delete_vm(VM)


@pytest.fixture
def spent(session_story: Story, request: pytest.FixtureRequest) -> Iterator[None]:
    """A VM that was on two hosts which died within the hour would stay down (M5): a new one after each dead host."""
    yield
    if request.node.callspec.params["victim"] in HOSTS:
        session_story.delete_vm(VM)


@pytest.fixture
def at_home(written: Story, spent: None, mended_story: Story) -> Story:
    """The VM writes on h1, wherever the test before left it."""
    try:
        _bring_home(mended_story)
    except Failed:
        if mended_story.api.request("GET", f"/v1/vms/{VM}").status_code == 200:
            mended_story.delete_vm(VM)
        writing_vm(mended_story, VM, pause_s=GENTLE_S)
    return mended_story


def _bring_home(story: Story) -> None:
    if story.api.request("GET", f"/v1/vms/{VM}").status_code == 404:
        raise Failed("there is none yet")
    if story.api.vm(VM)["status"]["state"] == "down":
        story.start_vm(VM, host="h1")
    if story.wait_running(VM).name != "h1":
        story.api.operate(f"/v1/vms/{VM}/migrate", {"host": "h1"}, timeout_s=PATIENCE_S)
    guest.wait_for_agent(story.lab.host("h1"), VM, timeout_s=PATIENCE_S)
    if last_record(story, VM) is None:
        begin_writing(story, VM, after=records(story, VM).newest, pause_s=GENTLE_S)
    wait_until(lambda: (last_record(story, VM) or 0) > 0, f"{VM} writes", timeout_s=60.0)


@pytest.mark.req("L6", "X1")
@pytest.mark.bad_input("death in a move", story=True)
@pytest.mark.parametrize(
    ("phase", "victim"), [(phase, victim) for phase, victims in WHO.items() for victim in victims]
)
def test_a_vm_has_one_writer_whoever_dies(at_home: Story, phase: Phase, victim: str) -> None:
    story = at_home
    path = story.api.vm(VM)["vm"]["disks"][0]["path"]
    least = last_record(story, VM)
    assert least is not None
    revision = story.revision()
    move = StoppedMove(story, VM)
    with DiskWitnesses(story.lab, {VM: path}) as witnesses:
        try:
            move.reach(phase)
            _die(story, move, victim)
        finally:
            move.go_on()
        if victim in HOSTS:
            _host_comes_back(story, victim)
        move.hurry()
        ended = story.api.finish(move.operation, timeout_s=300.0)
        story.wait_state(VM, "running", timeout_s=180.0)
        host = story.lab.host_of(VM)
        assert story.lab.copies_of(VM) == [host.name]
        assert story.api.vm(VM)["holder_names"] == [host.name]
        guest.wait_for_agent(host, VM, timeout_s=PATIENCE_S)
        found = records(story, VM)
    disk = witnesses.of[VM]
    print(
        f"{victim} at '{phase}': {ended['state']} {ended['code']}, runs on {host.name}, "
        f"{'anew' if found.last is None else 'the same guest'}, written by {disk.writers}, "
        f"locked by {disk.locked}, {witnesses.looks} looks, twice {disk.twice}, {witnesses.error!r}; "
        f"records: at least {least}, {found}; "
        f"told: {', '.join(event['code'] for event in story.events(VM, revision))}"
    )
    assert witnesses.error is None
    assert witnesses.looks
    assert disk.twice == []
    # By one after the other: two writers would take turns again and again.
    assert len(disk.writers) <= 3, disk.writers
    assert disk.writers[-1] == host.name
    assert not found.lost
    assert found.newest >= least
    assert not found.is_older_than_its_disk


def _die(story: Story, move: StoppedMove, victim: str) -> None:
    """A process is there again at once; a host when the server has seen that it is gone."""
    side, _, service = victim.rpartition(" ")
    if victim == "mover":
        move.end_mover()
    elif victim == "server":
        faults.kill_server(story.lab)
        move.go_on()
        faults.start_server_again(story.lab)
    else:
        node = move.source if side == "source" else move.target
        if service == "host":
            faults.kill_host(story.lab, node.name, silent=True)
            return
        node.kill_service(service)
        move.go_on()
        node.start_service(service)


def _host_comes_back(story: Story, victim: str) -> None:
    """Until it does the VM runs at the other one, or somebody is told why not."""
    name = "h1" if victim.startswith("source") else "h2"

    def is_missed() -> bool:
        return bool(story.api.get(f"/v1/hosts/{name}")["status"]["state"] == "unreachable")

    wait_until(is_missed, f"{name} is unreachable", timeout_s=60.0)
    status = story.api.vm(VM)["status"]
    assert status["state"] == "running" or status["reasons"], status
    faults.boot_host(story.lab, name)
