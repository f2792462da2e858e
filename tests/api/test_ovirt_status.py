"""Words for states: each is one of the stock SDK's, each state gives the one that is meant, and what is shown as such is what a search
for the word finds."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from ovirtsdk4 import types
from test_ovirt_requests import send
from test_routes import join_host

from virtha.api.ovirt.host_node import host_status
from virtha.api.ovirt.jobs import job_node
from virtha.api.ovirt.snapshots import snapshot_node
from virtha.api.ovirt.vm_node import template_node, vm_status
from virtha.control.views import HostView, MaintenanceView, TemplateView
from virtha.engine.events import SaveHost
from virtha.engine.machine import Verdict
from virtha.engine.records import Drain, HostRecord, Incident
from virtha.model.host import Host, HostState, HostStatus
from virtha.model.ids import (
    BootId,
    ClusterId,
    HostId,
    OperationId,
    SnapshotId,
    TemplateId,
    VmId,
)
from virtha.model.machine import MachineType
from virtha.model.operation import Operation, OperationState, OperationStep
from virtha.model.ovirt_words import HOST_STATUSES, TEMPLATE_STATUSES, VM_STATUSES
from virtha.model.proof import Proof, ProofKind
from virtha.model.snapshot import Snapshot, SnapshotState
from virtha.model.template import Template, TemplateState
from virtha.model.time import UtcMillis
from virtha.model.vm import Vm, VmState, VmStatus
from virtha.ports.leaders import NobodyLeads
from virtha.store.engine import save_intent
from virtha.store.hosts import save_host_status
from virtha.store.operations import save_operation
from virtha.store.templates import save_template
from virtha.store.vms import save_vm, save_vm_status

Play = Callable[..., Any]
World = Any
VM_TABLE: tuple[tuple[VmState, tuple[str, ...], str], ...] = (
    (VmState.UNKNOWN, (), "unknown"),
    (VmState.DOWN, (), "down"),
    (VmState.STARTING, (), "powering_up"),
    (VmState.RUNNING, (), "up"),
    (VmState.STOPPING, (), "powering_down"),
    (VmState.PAUSED, (), "paused"),
    (VmState.CRASHED, (), "not_responding"),
    (VmState.DOWN, ("vm.create",), "image_locked"),
    (VmState.DOWN, ("vm.delete",), "image_locked"),
    (VmState.DOWN, ("vm.snapshot",), "image_locked"),
    (VmState.DOWN, ("template.create",), "image_locked"),
    (VmState.DOWN, ("vm.start",), "wait_for_launch"),
    (VmState.DOWN, ("vm.recover",), "wait_for_launch"),
    (VmState.DOWN, ("vm.start", "vm.snapshot"), "image_locked"),
    (VmState.DOWN, ("vm.migrate", "vm.reboot", "vm.add"), "down"),
    (VmState.RUNNING, ("vm.migrate",), "migrating"),
    (VmState.RUNNING, ("vm.reboot",), "reboot_in_progress"),
    (VmState.RUNNING, ("vm.reset",), "reboot_in_progress"),
    (VmState.RUNNING, ("vm.reset", "vm.migrate"), "migrating"),
    (VmState.RUNNING, ("vm.snapshot", "vm.start", "vm.shutdown"), "up"),
    (VmState.STARTING, ("vm.start", "vm.create"), "powering_up"),
    (VmState.UNKNOWN, ("vm.migrate", "vm.recover"), "unknown"),
    (VmState.PAUSED, ("vm.migrate", "vm.reset"), "paused"),
)
# State, the leader's verdict, its VMs, maintenance (drain), word.
HOST_TABLE: tuple[tuple[HostState, Verdict | None, bool, bool | None, str], ...] = (
    (HostState.NEVER_SEEN, None, False, None, "connecting"),
    (HostState.UP, None, True, None, "up"),
    (HostState.UP, Verdict.ALIVE, False, None, "up"),
    (HostState.AGENT_DOWN, Verdict.AGENT_DOWN, True, None, "non_operational"),
    (HostState.UNREACHABLE, Verdict.DEAD_UNPROVEN, True, None, "non_responsive"),
    (HostState.UNREACHABLE, Verdict.ISOLATED, False, None, "non_responsive"),
    (HostState.UNREACHABLE, Verdict.DEAD_PROVEN, True, None, "down"),
    (HostState.UNREACHABLE, Verdict.DEAD_PROVEN, False, True, "down"),
    (HostState.UP, Verdict.ALIVE, False, False, "maintenance"),
    (HostState.UP, Verdict.ALIVE, True, False, "maintenance"),
    (HostState.UP, Verdict.ALIVE, False, True, "maintenance"),
    (HostState.UP, Verdict.ALIVE, True, True, "preparing_for_maintenance"),
    (HostState.AGENT_DOWN, Verdict.AGENT_DOWN, False, False, "maintenance"),
    (HostState.NEVER_SEEN, None, False, False, "maintenance"),
    (HostState.UNREACHABLE, Verdict.DEAD_UNPROVEN, False, False, "non_responsive"),
    (HostState.UNREACHABLE, Verdict.DEAD_UNPROVEN, True, True, "non_responsive"),
)
SUSPECTED: tuple[tuple[HostState, Verdict | None, bool, bool | None, str], ...] = (
    (HostState.UP, Verdict.SUSPECT, True, None, "connecting"),
    (HostState.UNREACHABLE, Verdict.SUSPECT, True, None, "connecting"),
    (HostState.UP, Verdict.SUSPECT, True, True, "preparing_for_maintenance"),
)
"""What no record says: not searched for."""


def words(kind: Any) -> set[str]:
    return {one.value for one in kind}


# What each state is called


def test_every_state_of_a_vm_has_one_of_the_sdks_words() -> None:
    for state, under_way, word in VM_TABLE:
        assert vm_status(state, set(under_way)) == word, (state, under_way)
    assert {row[0] for row in VM_TABLE} == set(VmState)
    assert {row[2] for row in VM_TABLE} == set(VM_STATUSES) <= words(types.VmStatus)


def host_view(state: HostState, verdict: Verdict | None) -> HostView:
    host_id = HostId("h1")
    return HostView(
        host=Host(id=host_id, name="h1", number=1, cluster_id=ClusterId("c1")),
        status=HostStatus(host_id=host_id, state=state),
        cluster_name="default",
        verdict=verdict.value if verdict is not None else None,
        vms=(),
        free_memory_bytes=0,
        agent_connected=False,
        beating=False,
    )


def test_every_state_of_a_host_has_one_of_the_sdks_words() -> None:
    for state, verdict, holds, drain, word in HOST_TABLE + SUSPECTED:
        care = MaintenanceView(
            host="h1", on=drain is not None, drain=bool(drain), vms=("web1",) if holds else ()
        )
        view = host_view(state, verdict)
        assert host_status(view, care) == word, (state, verdict, holds, drain)
        if drain is None:
            assert host_status(view, None) == word, (state, verdict)
    for state in HostState:
        assert host_status(host_view(state, None), None) in HOST_STATUSES
    assert {row[4] for row in HOST_TABLE} == set(HOST_STATUSES) <= words(types.HostStatus)


def template(name: str, state: TemplateState, cluster_id: str) -> Template:
    return Template(
        id=TemplateId(f"id-{name}"),
        name=name,
        cluster_id=ClusterId(cluster_id),
        description="",
        source_vm="web1",
        state=state,
        memory_bytes=1 << 30,
        vcpus=1,
        architecture="x86_64",
        machine=MachineType.Q35,
        created=UtcMillis(1),
    )


TEMPLATE_TABLE = {
    TemplateState.CREATING: "locked",
    TemplateState.READY: "ok",
    TemplateState.DELETING: "locked",
}
JOB_TABLE = {
    OperationState.PENDING: "started",
    OperationState.RUNNING: "started",
    OperationState.DONE: "finished",
    OperationState.FAILED: "failed",
    OperationState.CANCELLED: "aborted",
}
SNAPSHOT_TABLE = {
    SnapshotState.CREATING: "locked",
    SnapshotState.READY: "ok",
    SnapshotState.REVERTING: "in_preview",
    SnapshotState.DELETING: "locked",
}


def test_every_state_of_a_template_has_one_of_the_sdks_words() -> None:
    assert set(TEMPLATE_TABLE) == set(TemplateState)
    assert set(TEMPLATE_TABLE.values()) == set(TEMPLATE_STATUSES) <= words(types.TemplateStatus)
    for state, word in TEMPLATE_TABLE.items():
        view = TemplateView(template=template("t1", state, "c1"), cluster_name="default")
        assert template_node(view)["status"] == word


def test_every_state_of_a_job_and_of_a_snapshot_has_one_of_the_sdks_words() -> None:
    assert set(JOB_TABLE) == set(OperationState) and set(SNAPSHOT_TABLE) == set(SnapshotState)
    assert set(JOB_TABLE.values()) <= words(types.JobStatus) & words(types.StepStatus)
    assert set(SNAPSHOT_TABLE.values()) <= words(types.SnapshotStatus)
    for ended, word in JOB_TABLE.items():
        operation = Operation(id=OperationId("o1"), kind="vm.start", subject="v1", state=ended)
        assert job_node(operation)["status"] == word
    for state, word in SNAPSHOT_TABLE.items():
        snapshot = Snapshot(
            id=SnapshotId("s1"),
            vm_id=VmId("v1"),
            name="s1",
            description="",
            disks=("disk1",),
            created=UtcMillis(1),
            state=state,
        )
        assert snapshot_node(snapshot)["snapshot_status"] == word


def test_the_steps_of_a_job_have_its_words(play: Play) -> None:
    async def story(world: World) -> None:
        steps = tuple(OperationStep(name=state.value, state=state) for state in JOB_TABLE)
        async with world.store.write() as tx:
            made = Operation(id=OperationId("o1"), kind="vm.start", subject="v1", steps=steps)
            await save_operation(tx, made, "{}")
        answer = await send(world, "GET", "/jobs/o1/steps")
        assert re.findall("<status>(.*?)</status>", answer.text) == list(JOB_TABLE.values())

    play(story)


# What is shown is what is found


async def shown(world: World, path: str, search: str | None = None) -> dict[str, str]:
    """Names of what a search finds, and which status they are shown with."""
    query = "" if search is None else "?search=" + search.replace("=", "%3D").replace(" ", "%20")
    answer = await send(world, "GET", path + query)
    assert answer.status_code == 200, answer.text
    listed = re.split(r"<(?:vm|host|template) [^>]*id=", answer.text)[1:]
    one = re.compile(r"<name>(.*?)</name>.*<status>(.*?)</status>", re.DOTALL)
    found = [match.groups() for match in map(one.search, listed) if match is not None]
    return {str(name): str(status) for name, status in found}


async def each_is_found_by_its_status(
    world: World, path: str, expected: Mapping[str, str], statuses: tuple[str, ...]
) -> None:
    assert await shown(world, path) == expected
    assert set(expected.values()) == set(statuses), "each is there"
    for word in statuses:
        those = {name: status for name, status in expected.items() if status == word}
        others = {name: status for name, status in expected.items() if status != word}
        assert await shown(world, path, f"status = {word}") == those, word
        assert await shown(world, path, f"status != {word}") == others, word
    for end in ("asc", "desc"):
        ordered = await shown(world, path, f"name = * sortby status {end}")
        by_status = sorted(ordered.values(), reverse=end == "desc")
        assert list(ordered.values()) == by_status and ordered == expected


def test_a_vm_is_found_by_the_status_that_it_is_shown_with_and_by_no_other(play: Play) -> None:
    async def story(world: World) -> None:
        cluster = await world.control.clusters.get("default")
        expected = {}
        async with world.store.write() as tx:
            for number, (state, kinds, word) in enumerate(VM_TABLE):
                vm = Vm(
                    id=VmId(f"id-{number:02}"),
                    name=f"vm{number:02}",
                    cluster_id=cluster.id,
                    memory_bytes=1 << 30,
                )
                await save_vm(tx, vm)
                await save_vm_status(tx, VmStatus(vm_id=vm.id, state=state))
                expected[vm.name] = word
                over = [f"over-{kind}" for kind in ("vm.start", "vm.migrate", "vm.create")]
                for kind in (*kinds, *over):
                    operation = Operation(
                        id=OperationId(f"{number}-{kind}"),
                        kind=kind.removeprefix("over-"),
                        subject=vm.id,
                        state=OperationState.DONE
                        if kind.startswith("over-")
                        else OperationState.RUNNING,
                    )
                    await save_operation(tx, operation, "{}")
        await each_is_found_by_its_status(world, "/vms", expected, VM_STATUSES)

    play(story)


def test_a_host_is_found_by_the_status_that_it_is_shown_with_and_by_no_other(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts: dict[HostId, str] = {}
    monkeypatch.setattr(NobodyLeads, "verdict", lambda _, host_id: verdicts.get(host_id))

    async def story(world: World) -> None:
        expected, vms = {}, {}
        for number, row in enumerate(HOST_TABLE):
            joined = await join_host(world, f"h{number:02}")
            host = (await world.control.hosts.get(joined["host_id"])).host
            state, verdict, holds, drain, word = row
            expected[host.name] = word
            if verdict is not None:
                verdicts[host.id] = verdict.value
            async with world.store.write() as tx:
                await save_host_status(tx, HostStatus(host_id=host.id, state=state))
                dead = verdict is Verdict.DEAD_PROVEN
                judged = dead or verdict is Verdict.DEAD_UNPROVEN
                record = HostRecord(
                    host_id=host.id,
                    maintenance="admin" if drain is not None else None,
                    drain=Drain.DRAINING if drain else None,
                    incident=_incident(host.id, dead=dead) if judged else None,
                )
                await save_intent(tx, host.cluster_id, SaveHost(record=record))
                if holds:
                    vm = Vm(
                        id=VmId(f"id-{number}"),
                        name=f"vm-{host.name}",
                        cluster_id=host.cluster_id,
                        memory_bytes=1 << 30,
                    )
                    await save_vm(tx, vm)
                    status = VmStatus(
                        vm_id=vm.id, state=VmState.RUNNING, host_id=host.id, holders=(host.id,)
                    )
                    await save_vm_status(tx, status)
                    vms[vm.name] = word
        await each_is_found_by_its_status(world, "/hosts", expected, HOST_STATUSES)
        for word in HOST_STATUSES:  # of the one that a VM is on
            found = await shown(world, "/vms", f"Hosts.status = {word}")
            assert set(found) == {name for name, of in vms.items() if of == word}, word

    play(story)


def _incident(host_id: HostId, *, dead: bool) -> Incident:
    """A host is held to be proven dead exactly as long as its incident has a proof."""
    boot = BootId("boot-1")
    proof = Proof(kind=ProofKind.OPERATOR, host_id=host_id, boot=boot, at_ms=2)
    return Incident(
        number=1, boot=boot, silent_since_ms=1, began_ms=1, proofs=(proof,) if dead else ()
    )


def test_a_template_is_found_by_the_status_that_it_is_shown_with_and_by_no_other(
    play: Play,
) -> None:
    async def story(world: World) -> None:
        cluster = await world.control.clusters.get("default")
        async with world.store.write() as tx:
            for state in TemplateState:
                await save_template(tx, template(state.value, state, cluster.id))
        expected = {state.value: word for state, word in TEMPLATE_TABLE.items()} | {"Blank": "ok"}
        assert await shown(world, "/templates") == expected
        for word in TEMPLATE_STATUSES:
            those = {name: status for name, status in expected.items() if status == word}
            assert await shown(world, "/templates", f"status = {word}") == those

    play(story)


def test_a_word_that_nothing_is_shown_with_is_refused_with_those_that_there_are(
    play: Play,
) -> None:
    async def story(world: World) -> None:
        for path, word, there in (
            ("/vms", "suspended", "image_locked"),
            ("/vms", "running", "up"),
            ("/hosts", "reboot", "preparing_for_maintenance"),
            ("/templates", "illegal", "locked"),
        ):
            answer = await send(world, "GET", f"{path}?search=status%3D{word}")
            assert answer.status_code == 400 and "problem.search.syntax" in answer.text
            assert "column 8" in answer.text and there in answer.text

    play(story)


def test_the_native_search_has_both_its_own_words_and_those_of_the_clients(play: Play) -> None:
    async def story(world: World) -> None:
        cluster = await world.control.clusters.get("default")
        async with world.store.write() as tx:
            for state in VmState:
                vm = Vm(
                    id=VmId(f"id-{state}"),
                    name=state.value,
                    cluster_id=cluster.id,
                    memory_bytes=1 << 30,
                )
                await save_vm(tx, vm)
                await save_vm_status(tx, VmStatus(vm_id=vm.id, state=state))
            start = Operation(id=OperationId("o1"), kind="vm.start", subject="id-down")
            await save_operation(tx, start, "{}")
        for search, expected in (
            ("status=running", ["running"]),
            ("status=up", ["running"]),
            ("status=not_responding", ["crashed"]),
            ("status=unknown", ["unknown"]),
            ("status=down", ["down"]),  # as the native API shows it
            ("ovirt_status=down", []),
            ("ovirt_status=wait_for_launch", ["down"]),
        ):
            found = await world.ok("GET", "/v1/vms?search=" + search.replace("=", "%3D"))
            assert [one["vm"]["name"] for one in found["items"]] == expected, search

    play(story)
