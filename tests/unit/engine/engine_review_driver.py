"""What the tests of the engine's review share: a cluster that is well, and the moves that its hosts make."""

from engine_driver import Play

from virtha.engine.events import (
    OrderPower,
    StartCommand,
    StartEnded,
    VmSeen,
)
from virtha.engine.machine import Verdict
from virtha.model.evidence import IdentityMatch
from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.policy import FencingPolicy, Policy
from virtha.model.vm import VmState


def playing(hosts: int = 4, *, fencing: FencingPolicy | None = None, **settings: object) -> Play:
    """v1 runs on h1, v2 on h2; everybody is well."""
    policy = Policy() if fencing is None else Policy(fencing=fencing)
    play = Play(hosts, policy=policy, **settings)
    play.run("v1", "h1")
    play.run("v2", "h2")
    assert play.verdict("h1") is Verdict.ALIVE
    return play


def named(play: Play) -> Play:
    """Each power device names its host: two that fall silent at once are not taken for swapped."""
    for host in play.hosts.values():
        host.bmc_identity = IdentityMatch.MATCH
        play.test_power(host)
    play.tick()
    return play


def seen(
    play: Play,
    host: str,
    vm_id: str,
    state: VmState = VmState.RUNNING,
    incarnation: int | None = None,
) -> None:
    """The host's sentinel reports it; its QEMU is there if it is up."""
    played = play.hosts[host]
    number = incarnation or int(play.vm_record(vm_id).incarnation) or 1
    if state is not VmState.DOWN:
        played.running[VmId(vm_id)] = Incarnation(number)
    play.inbox.append(
        VmSeen(
            host_id=played.id,
            boot=played.boot,
            vm_id=VmId(vm_id),
            incarnation=Incarnation(number),
            state=state,
        )
    )


def released(play: Play, host: str, vm_id: str, incarnation: int) -> None:
    played = play.hosts[host]
    played.running.pop(VmId(vm_id), None)
    play._release(played, VmId(vm_id), Incarnation(incarnation))


def ended(play: Play, start: StartCommand, result: Result) -> None:
    play.inbox.append(
        StartEnded(
            order_id=start.order_id,
            host_id=start.host_id,
            vm_id=start.vm_id,
            incarnation=start.incarnation,
            result=result,
        )
    )


def starting(play: Play, *, dead: str = "h1") -> StartCommand:
    """v1's host is cut; its start elsewhere is ordered and nobody answers."""
    for host in play.hosts.values():
        host.start_result = None
    play.hosts[dead].cut()
    play.until(lambda: play.sent(StartCommand) != [])
    start = play.sent(StartCommand)[0]
    assert isinstance(start, StartCommand)
    return start


def third(play: Play, *besides: str) -> str:
    return next(name for name in sorted(play.hosts, reverse=True) if name not in besides)


def unanswered_offs(play: Play, count: int = 1) -> None:
    """The first ``count`` power orders get lost."""
    lost: list[object] = []

    def lose(command: object) -> bool:
        if isinstance(command, OrderPower) and len(lost) < count:
            lost.append(command)
            return True
        return False

    play.on_command = lose
