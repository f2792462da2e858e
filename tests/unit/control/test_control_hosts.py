"""Scan, adopt, release; status, hold, policy: what concerns hosts and the whole installation."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from virtha.control.requests import (
    AdoptRequest,
    HoldPut,
    SearchQuery,
    VmChange,
    VmQuery,
    VmStart,
    WatchdogRequest,
)
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput, NotFound, Refused, Stale
from virtha.model.facts import ForeignDomain, HostReport, Released, Result, StorageReport, VmReport
from virtha.model.host import HostCapabilities, HostState
from virtha.model.ids import ClusterId, DiskId, Incarnation, Revision, StorageDomainId, VmId
from virtha.model.operation import OperationState
from virtha.model.orders import AdoptVm, ReleaseVm, ScanForeign
from virtha.model.policy import PermissionGrade, Policy, RecoveryPolicy, RestartPolicy
from virtha.model.user import Role
from virtha.model.vm import Disk, Reason, Vm, VmState

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
MIB = 1 << 20
Tell = Callable[[Any], None]


def foreign(
    number: int, storage: str, *, state: str = "running", path: str | None = None
) -> ForeignDomain:
    name = f"old{number}"
    return ForeignDomain(
        name=name,
        state=state,
        changes=("guest agent channel added",),
        vm=Vm(
            id=VmId(f"00000000-0000-0000-0000-00000000000{number}"),
            name=name,
            cluster_id=ClusterId(""),
            memory_bytes=256 * MIB,
            disks=(
                Disk(
                    id=DiskId(f"disk{number}"),
                    name="vda",
                    storage_domain_id=StorageDomainId(storage),
                    path=path or f"{name}.qcow2",
                    size_bytes=0,
                ),
            ),
        ),
    )


@pytest.mark.req("A8")
def test_adopting_all_takes_what_can_be_adopted(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        await world.add_vm("old3")
        operation = await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(all=True, ha=True))
        assert isinstance(host.orders[-1].body, ScanForeign)
        lxc = ForeignDomain(vm=None, name="lxc", state="running", obstacles=("no QEMU domain",))
        await host.answer(
            foreign=(
                foreign(1, storage),
                foreign(2, storage, state="shutoff"),
                foreign(3, storage),  # its name is taken
                foreign(4, "elsewhere"),
                lxc,
            )
        )
        first = host.orders[-1].body
        assert isinstance(first, AdoptVm) and first.vm.name == "old1"
        view = await world.control.vms.get("old1")
        assert view.status.holders == (host.id,), "a holder before the order goes out"
        assert view.vm.ha and view.vm.adopted and view.status.wanted_up
        await host.answer(changes=("autostart turned off",))
        await host.answer(
            result=Result.REFUSED, code="order.refused.not_here", message="libvirt says no"
        )
        ended = await world.control.operations.get(operation.id)
        assert ended.state is OperationState.FAILED and "libvirt says no" in ended.message
        with pytest.raises(NotFound):
            await world.control.vms.get("old2")
        found = await world.control.operations.foreign(operation.id)
        assert len(found.items) == 5
        assert found.changes == ("old1: autostart turned off",)
        (event,) = await world.events("vm.adopted")
        assert event.fields["changes"] == "autostart turned off"

    tell(story)


def test_adopting_by_name_says_what_is_in_the_way(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        for request in (AdoptRequest(), AdoptRequest(all=True, names=("x",))):
            with pytest.raises(InvalidInput):
                await world.control.hosts.adopt(ADMIN, "h1", request)
        for name, told in (("nope", "no unmanaged domain nope"), ("old4", "on no storage domain")):
            operation = await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(names=(name,)))
            await host.answer(foreign=(foreign(1, storage), foreign(4, "elsewhere")))
            ended = await world.control.operations.get(operation.id)
            assert ended.state is OperationState.FAILED and told in ended.message
        assert (await world.control.vms.list(VmQuery())).items == ()

    tell(story)


def test_a_dry_run_keeps_nothing(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        request = AdoptRequest(names=("old1",), dry_run=True)
        operation = await world.control.hosts.adopt(ADMIN, "h1", request)
        await host.answer(foreign=(foreign(1, storage),))
        assert host.orders[-1].body.dry_run
        await host.answer(changes=("autostart would be turned off",))
        assert (await world.control.operations.get(operation.id)).state is OperationState.DONE
        assert (await world.control.vms.list(VmQuery())).items == ()
        assert await world.events("vm.adopted") == []

    tell(story)


def test_release_gives_an_adopted_vm_back(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        await world.add_vm("mine")
        with pytest.raises(Refused):
            await world.control.vms.release(ADMIN, "mine")
        operation = await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(names=("old1",)))
        await host.answer(foreign=(foreign(1, storage),))
        await host.answer()
        assert (await world.control.operations.get(operation.id)).state is OperationState.DONE
        operation = await world.control.vms.release(ADMIN, "old1")
        assert isinstance(host.orders[-1].body, ReleaseVm)
        await host.answer()
        with pytest.raises(NotFound):
            await world.control.vms.get("old1")
        (released,) = await world.events("vm.released")
        assert (released.host_id, released.user) == (host.id, "admin")
        before = json.loads(str(released.fields["before"]))
        assert before["name"] == "old1" and before["adopted"] is True

    tell(story)


def test_an_adopted_vm_starts_only_where_its_xml_is(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        storage = (await world.add_storage()).domain.id
        other = await world.join("h2")
        await other.tell(StorageReport(storage_domain_id=storage, usable=True))
        await world.control.hosts.adopt(ADMIN, "h1", AdoptRequest(names=("old1",), ha=True))
        await host.answer(foreign=(foreign(1, storage, state="shutoff"),))
        await host.answer()
        vm_id = (await world.control.vms.get("old1")).vm.id
        await host.tell(Released(vm_id=vm_id, incarnation=Incarnation(1)))
        with pytest.raises(Refused) as refused:
            await world.control.vms.start(ADMIN, "old1", VmStart(host="h2"))
        assert refused.value.code == "problem.no_host_fits"
        await world.control.vms.start(ADMIN, "old1", VmStart())
        assert world.links.delivered[-1][0] == host.id
        view = await world.control.vms.get("old1")
        assert "protection.single_host" in [reason.code for reason in view.protection]

    tell(story)


async def _protected_vm(world: Any) -> Any:
    await world.join("h1")
    await world.join("h2")
    await world.add_storage()
    await world.add_vm(watchdog=WatchdogRequest(model="i6300esb", action="reset"))
    return (await world.run_vm())[1]


async def _codes(world: Any) -> list[str]:
    view = await world.control.vms.get("web1")
    return [reason.code for reason in view.protection]


def test_status_says_why_a_vm_is_not_protected(tell: Tell) -> None:
    async def story(world: Any) -> None:
        assert (await world.control.status.get()).verdict == "empty"
        host = await _protected_vm(world)
        status = await world.control.status.get()
        assert (status.verdict, status.totals.vms_protected) == ("protected", 1)
        assert status.vms[0].protection_text == ("protected",)
        for state, code in (
            (HostState.AGENT_DOWN, "protection.agent_down"),
            (HostState.UNREACHABLE, "protection.host_unreachable"),
        ):
            await world.control.hosts.presence_changed(host.id, state)
            assert code in await _codes(world)
            assert (await world.control.status.get()).verdict == "unprotected"
        await world.control.hosts.presence_changed(host.id, HostState.UP)
        await host.tell(HostReport(capabilities=HostCapabilities(memory_bytes=8 << 30)))
        assert {"protection.gate", "protection.libvirt"} <= set(await _codes(world))

    tell(story)


@pytest.mark.req("X1", "X5")
@pytest.mark.parametrize(
    ("cluster", "limit", "code", "verdict"),
    [
        ("fence", "fence", "protection.ok", "protected"),
        ("fence", "move", "protection.ok", "protected"),
        ("fence", "restart", "protection.grade", "degraded"),
        ("restart", "fence", "protection.grade", "degraded"),
        ("restart", "observe", "protection.ignored", "unprotected"),
    ],
)
def test_a_grade_that_leaves_it_down_with_its_host_is_said(
    tell: Tell, cluster: str, limit: str, code: str, verdict: str
) -> None:
    async def story(world: Any) -> None:
        await _protected_vm(world)
        await world.control.clusters.put_policy(
            ADMIN, "default", Policy(recovery=RecoveryPolicy(grade=PermissionGrade(cluster)))
        )
        await world.control.vms.change(ADMIN, "web1", VmChange(grade=PermissionGrade(limit)))
        assert await _codes(world) == [code]
        assert (await world.control.status.get()).verdict == verdict

    tell(story)


def test_status_tells_weak_from_unprotected(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _protected_vm(world)
        other = next(one for one in world.hosts.values() if one is not host)
        other.vanish()
        assert await _codes(world) == ["protection.single_host"]
        assert (await world.control.status.get()).verdict == "degraded"
        await world.control.vms.remove_watchdog(ADMIN, "web1")
        assert await _codes(world) == ["protection.no_watchdog", "protection.single_host"]
        vm_id = (await world.control.vms.get("web1")).vm.id
        limit = Reason(code="restart.blocked.limit", fields={"count": 5, "window": "10m"})
        await host.tell(
            VmReport(vm_id=vm_id, incarnation=Incarnation(1), state=VmState.DOWN, reasons=(limit,)),
            Released(vm_id=vm_id, incarnation=Incarnation(1)),
        )
        assert {"protection.exhausted", "protection.not_running"} <= set(await _codes(world))
        assert (await world.control.status.get()).verdict == "unprotected"

    tell(story)


@pytest.mark.req("X3")
def test_settings_are_for_hosts_whose_guardian_alone_is_there_too(tell: Tell) -> None:
    """Its session tells it of another pace; what is the agent's is told by the next hello."""

    async def story(world: Any) -> None:
        await _protected_vm(world)
        first, *others = world.hosts.values()
        world.links.connected.clear()
        world.links.guardians = {first.id}
        world.links.configured.clear()
        await world.control.hold.set(ADMIN, HoldPut(reason="switch maintenance"))
        assert others
        assert {host_id for host_id, _ in world.links.configured} == {first.id}

    tell(story)


def test_hold_reaches_every_host_and_shows(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _protected_vm(world)
        with pytest.raises(InvalidInput):
            await world.control.hold.set(ADMIN, HoldPut(reason="  "))
        await world.control.hold.set(ADMIN, HoldPut(reason="switch maintenance"))
        for one in world.hosts.values():
            assert world.links.settings_of(one.id).hold == "switch maintenance"
        assert "protection.hold" in await _codes(world)
        assert (await world.control.status.get()).verdict == "unprotected"
        await world.reopen()
        assert (await host.hello()).settings.hold == "switch maintenance"
        await world.control.hold.lift(ADMIN)
        assert (await world.control.hold.get()).reason is None
        assert (await world.codes())[-1] == "hold.lifted"

    tell(story)


def test_a_policy_reaches_hosts_with_a_higher_revision(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        cluster = await world.control.clusters.get("default")
        before = await world.control.hosts.settings_for_host(host.id)
        policy = Policy(restart=RestartPolicy(enabled=False))
        with pytest.raises(Stale):
            await world.control.clusters.put_policy(ADMIN, "default", policy, Revision(0))
        await world.control.clusters.put_policy(ADMIN, "default", policy, cluster.revision)
        sent = world.links.settings_of(host.id)
        assert sent.policy == policy and sent.revision > before.revision

    tell(story)


def test_settings_tell_each_host_what_it_holds_and_what_not(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await _protected_vm(world)
        other = next(one for one in world.hosts.values() if one is not host)
        vm_id = (await world.control.vms.get("web1")).vm.id
        holding = await world.control.hosts.settings_for_host(host.id)
        assert [held.vm.id for held in holding.vms] == [vm_id] and holding.foreign_vms == ()
        empty = await world.control.hosts.settings_for_host(other.id)
        assert empty.vms == () and empty.foreign_vms == (vm_id,)
        assert [domain.name for domain in empty.storage_domains] == ["ds1"]

    tell(story)


@pytest.mark.req("W2", "W4")
def test_capabilities_offer_what_fits_and_is_accepted(tell: Tell) -> None:
    async def story(world: Any) -> None:
        offers = {
            (offer.architecture, offer.machine): offer
            for offer in (await world.control.hosts.capabilities()).watchdogs
        }
        assert offers["x86_64", "q35"].accepted == offers["x86_64", "q35"].models
        await world.join("h1")
        view = await world.control.hosts.capabilities()
        offers = {(offer.architecture, offer.machine): offer for offer in view.watchdogs}
        assert [model.value for model in offers["x86_64", "q35"].accepted] == ["i6300esb", "ib700"]
        assert "itco" in [model.value for model in offers["x86_64", "q35"].models]
        assert msgspec.json.encode(view)

    tell(story)


@pytest.mark.req("G2", "J1")
def test_a_host_view_tells_what_is_heard_now_beside_the_state_that_stands(tell: Tell) -> None:
    async def story(world: Any) -> None:
        host = await world.join("h1")
        seen = await world.control.hosts.get("h1")
        assert (seen.status.state, seen.agent_connected, seen.beating) == (HostState.UP, True, True)
        # The guardian is silent for longer than a grant would bear.
        world.clock.advance(5_001)
        assert not (await world.control.hosts.get("h1")).beating
        host.beat()
        # A session that just broke: the state stands, for the host may be back in a moment.
        host.vanish()
        (seen,) = (await world.control.hosts.list(SearchQuery())).items
        assert (seen.status.state, seen.agent_connected) == (HostState.UP, False)

    tell(story)
