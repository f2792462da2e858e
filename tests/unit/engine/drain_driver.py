"""Helpers of the stories about planned moves: a host is emptied, a VM goes home."""

from engine_driver import Play, vm

from virtha.engine.events import (
    MaintenanceChanged,
    MigrationWord,
    SettleMigration,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.engine.records import VmStage
from virtha.model.ids import HostId, VmId
from virtha.model.policy import Policy
from virtha.model.vm import VmState


def playing(
    hosts: int = 4, *, on_h1: int = 1, policy: Policy | None = None, **settings: object
) -> Play:
    """v1 … run on h1; everybody is well."""
    vms = settings.pop("vms", None) or [vm(f"v{number}") for number in range(1, on_h1 + 1)]
    play = Play(hosts, vms=vms, policy=policy, **settings)
    for one in vms:
        play.run(one.vm_id, "h1")
    assert play.verdict("h1") is Verdict.ALIVE
    return play


def maintain(play: Play, host: str = "h1", *, on: bool = True, drain: bool = True) -> None:
    play.inbox.append(MaintenanceChanged(host_id=HostId(host), on=on, by="admin", drain=drain))
    play.tick()


def moved(play: Play, vm_id: str = "v1") -> bool:
    return play.vm_record(vm_id).stage is VmStage.SETTLED and play.where(vm_id) not in ([], ["h1"])


def settled_once(play: Play, vm_id: str = "v1") -> bool:
    """Runs somewhere, and that is all that anybody may hold."""
    record = play.vm_record(vm_id)
    holders = [copy.host_id for copy in record.copies]
    return record.stage is VmStage.SETTLED and holders == play.where(vm_id) != []


def told_why(play: Play, vm_id: str = "v1") -> bool:
    """It runs, or somebody can read why not, or nobody can know yet: its only host died within its suspicion time."""
    if play.where(vm_id) or play.why_vm(vm_id):
        return True
    holders = [copy.host_id for copy in play.vm_record(vm_id).copies]
    unjudged = (Verdict.ALIVE, Verdict.SUSPECT)
    return (
        len(holders) == 1
        and play.verdict(holders[0]) in unjudged
        and (not play.hosts[holders[0]].alive)
    )


def words(play: Play) -> list[tuple[HostId, MigrationWord]]:
    return [(one.host_id, one.word) for one in play.sent(SettleMigration)]


def report(play: Play, state: VmState, **more: object) -> None:
    host = play.hosts["h1"]
    play.inbox.append(
        VmSeen(
            host_id=host.id,
            boot=host.boot,
            vm_id=VmId("v1"),
            incarnation=host.running[VmId("v1")],
            state=state,
            **more,
        )
    )
    play.tick()
