"""Plays in which a host is shut out of its Ceph cluster, its power device being as dead as it."""

from engine_driver import Play, PlayedHost, on_ceph

from virtha.engine.cutting import StorageLetIn
from virtha.engine.events import StartCommand, StorageFence
from virtha.engine.records import StorageCut
from virtha.model.ceph import CephSight
from virtha.model.policy import FencingPolicy, Policy, Unreachable

WAYS = (Unreachable.NEXT_LEVEL, Unreachable.STORAGE_FENCE, Unreachable.OPERATOR)
ON = Policy(fencing=FencingPolicy(unreachable=WAYS))
C1 = "cluster-1"


def sight(host: PlayedHost, *, obstacle: str = "") -> CephSight:
    return CephSight(
        boot=host.boot, fsid=C1, addresses=(f"10.0.0.{host.number}",), obstacle=obstacle
    )


def playing(
    *vms,
    policy: Policy = ON,
    hosts: int = 4,
    domains: tuple[str, ...] = ("rbd1",),
    run: bool = True,
) -> Play:
    play = Play(hosts, policy=policy, vms=list(vms) or [on_ceph("v1")])
    play.tell_ceph(*domains)
    return run_all(play) if run else play


def run_all(play: Play) -> Play:
    for one in play.vms:
        play.run(one.vm_id, "h1")
    return play


def dies(play: Play, host: str = "h1") -> None:
    """It hangs, and its power device does not answer."""
    play.hosts[host].hang()
    play.hosts[host].bmc_dead = True


def fences(play: Play) -> list[StorageFence]:
    return [one for one in play.sent(StorageFence) if isinstance(one, StorageFence)]


def lifts(play: Play) -> list[StorageLetIn]:
    return [one for one in play.sent(StorageLetIn) if isinstance(one, StorageLetIn)]


def starts(play: Play) -> list[StartCommand]:
    return [one for one in play.sent(StartCommand) if isinstance(one, StartCommand)]


def cut(play: Play, host: str = "h1") -> StorageCut:
    (found,) = play.host_record(host).cuts
    return found


def fenced(play: Play) -> Play:
    """h1 is shut out, its VMs run elsewhere, and it hangs yet."""
    dies(play)
    play.hosts["h1"].running.clear()  # the play would see it twice; here it may live
    play.until(lambda: all(play.where(one.vm_id) for one in play.vms))
    return play


def thaws(play: Play) -> None:
    host = play.hosts["h1"]
    host.beating = host.answers_neighbours = host.answers_ping = True
    play.advance(10_000)
