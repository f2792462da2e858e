"""The second rule, in time: once all is well again, what is protected runs within twice the policy's time budget.

What takes longer must name what it waits for, and come to an end; what never will run names a reason that only a
person ends.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from virtha.model.codes import REGISTRY
from virtha.model.ids import VmId
from virtha.model.policy import Policy
from virtha.model.policy.budget import budget
from virtha.model.value import Value
from virtha.model.vm import Reason, VmState
from virtha.sim.checkers import Violation

if TYPE_CHECKING:
    from virtha.sim.power import PowerDevice
    from virtha.sim.server import ServerVm
    from virtha.sim.world import World

BUDGETS = 2
"""How many times the policy's budget a return may take once all is well."""
WAITS_MS = 600_000
"""Until also those run that name a pause before their next attempt: twice the longest pause."""
LASTS_MS = 600_000
"""The least that a world lasts."""
SETTLES_MS = 20_000
"""After all that was waited for has come: what it set off comes to rest."""
ASKED_BEATS = 3
CHANCE_MS = 130_000
"""A device that has not said *on* is asked each minute: by then twice."""
SINGLE_MS = 1_200_000
"""Of worlds without an engine: the longest delay before a local restart is a part of it."""
LASTING = frozenset(
    (
        "recovery.blocked.quarantine",
        "recovery.blocked.attempts",
        "recovery.not_due.given_back",
        "recovery.not_due.unprotected",
        "vm.down.as_ordered",
        "vm.down.guest_shutdown",
        "vm.down.destroyed_outside",
        "io_error.given_up",
        "io_error.left_paused",
        "vm.paused.as_ordered",
        "vm.paused.outside",
        "vm.paused.start_unfinished",
        "vm.paused.watchdog",
        "restart.blocked.grade",
        "restart.blocked.limit",
        "restart.blocked.not_ha",
        "restart.blocked.policy",
        "restart.blocked.stopped_on_purpose",
    )
)
"""Reasons that only a person ends. Of the others that a host gives, the server decides: it failed, its host went down, another
agent or boot saw its end."""
_FULL = (
    "recovery.blocked.anti_affinity",
    "recovery.blocked.no_capacity",
    "recovery.blocked.no_host",
)
_DOUBT = "recovery.waiting.doubt"
_DEPENDS = ("recovery.waiting.dependency", "recovery.blocked.dependency", "recovery.dependency.")
DECLARED = ("recovery.waiting.", "restart.waiting.", "fence.waiting.", "recovery.starting")
"""Waits that end by themselves and say so: pauses between attempts, turns, orders under way."""


class NotLive(Violation):
    """Nothing wrong was done; what should have come back did not."""


class Late(Value, frozen=True, kw_only=True):
    """A VM that took more than twice the budget, and what it named as the reason then."""

    vm: str
    reasons: tuple[str, ...]


def bound_ms(policy: Policy) -> int:
    """Twice the longest sum of all ways on which the policy acts by itself."""
    return BUDGETS * max((one.worst_ms for one in budget(policy).ways), default=0)


def must_run(world: "World") -> tuple[Late, ...]:
    """Lets time pass. Raises NotLive."""
    if not world.with_engine:
        world.kernel.advance(SINGLE_MS)
        _demand_single(world)
        return ()
    bound = bound_ms(world.server.policy)
    world.kernel.advance(bound)
    _demand_leader(world)
    late = _down(world)
    for one in late:
        if not any(code.startswith(DECLARED) for code in one.reasons):
            raise NotLive(f"{one.vm} does not run though all is well: {list(one.reasons)}")
    # What nobody waits for is not played to the end: of idle worlds nothing is learnt.
    rest = max(LASTS_MS - world.kernel.now, SETTLES_MS)
    world.kernel.advance(max(WAITS_MS - bound, rest) if late else rest)
    _demand_leader(world)
    for one in _down(world):
        raise NotLive(f"{one.vm} does not run though all is well: {list(one.reasons)}")
    return late


def _demand_leader(world: "World") -> None:
    failover = world.gateway.failover
    if failover is None or not failover.leader.alive:
        raise NotLive("nobody leads after all was healed")


def _down(world: "World") -> tuple[Late, ...]:
    """Those that should run, don't, and name nothing that lasts."""
    found = []
    for vm_id, known in world.server.vms.items():
        if not _wanted(known) or world.running_on(vm_id):
            continue
        reasons = reasons_of(world, vm_id)
        unknown = [code for code in reasons if code not in REGISTRY]
        if unknown:
            raise NotLive(f"{known.vm.name} has unknown reasons {unknown}")
        lasting = not LASTING.isdisjoint(reasons)
        excused = lasting or _has_no_place(world, known, reasons)
        if not (excused or awaits_a_person(world, _claims(world, vm_id))):
            found.append(Late(vm=known.vm.name, reasons=reasons))
    return tuple(found)


def reasons_of(world: "World", vm_id: VmId) -> tuple[str, ...]:
    known, codes = world.server.vms[vm_id], [why.code for why in _claims(world, vm_id)]
    if known.report is not None:
        codes += [why.code for why in known.report.reasons]
    return tuple(codes)


def _claims(world: "World", vm_id: VmId) -> tuple[Reason, ...]:
    failover = world.gateway.failover
    return () if failover is None else failover.engine.explain_vm(vm_id)


def _wanted(known: "ServerVm") -> bool:
    return known.vm.ha and known.wanted_up and known.managed


def _has_no_place(world: "World", known: "ServerVm", reasons: tuple[str, ...]) -> bool:
    """By the truth: each host has one that it must keep away from, or no room; or what it needs first is down as well."""
    if any(code.startswith(_FULL) for code in reasons):
        return all(_has_no_room(world, known, name) for name in world.hosts)
    if any(code.startswith(_DEPENDS) for code in reasons):
        return any(not world.running_on(each.vm_id) for each in known.placing.depends_on)
    return False


def awaits_a_person(world: "World", claims: Sequence[Reason]) -> bool:
    """``claims``: why the engine says that a VM is down. By the truth: it waits for a host that is off, and whose devices
    prove nothing by what they say (P1, P6). On each level one of them has lied about it, and nobody has tested it since, or
    could hardly be read while this boot was beating; another host fell with it whose devices are of another kind, and none of either names its host; or it fell before it
    told a restored database, and its devices don't name it.

    An engine that forgets what was tested claims the same: one level that proves is enough, and nobody has to come."""
    for why in claims:
        host = str(why.fields.get("host"))
        if host not in world.hosts or world.hosts[host].powered:
            continue
        devices, doubt = world.power.of(host), (why.code, why.fields.get("why"))
        fell = [one for one, other in world.hosts.items() if not other.powered and one != host]
        doubtful = any(one.lied or not _had_its_chance(world, one) for one in devices)
        untested = doubt == (_DOUBT, "proof.blocked.untested")
        if untested and doubtful and not _proves(world, host, fell):
            return True
        swapped = any(_may_be_swapped(world, host, other) for other in fell)
        if (
            doubt == (_DOUBT, "proof.blocked.swapped")
            and swapped
            and not _proves(world, host, fell)
        ):
            return True
        # A reading *on* of before the restore is none of the boot that was not told since (M2).
        unnamed = any(one.lied or not one.named for one in devices)
        if why.code == "recovery.waiting.restored" and unnamed:
            return True
    return False


def _proves(world: "World", name: str, fell: Sequence[str]) -> bool:
    """One of its levels: each device says what is true, and whose it is, or was tested, and so are as many of each that
    fell with it."""
    rivals = [one for one in fell if not _is_named(world, one)]
    for number in range(len(world.power.levels.get(name, ()))):
        own = _sound(world, name, number)
        others = [_sound(world, one, number) for one in rivals]
        if own and (all(one.named for one in own) or all(len(one) == len(own) for one in others)):
            return True
    return False


def _sound(world: "World", name: str, number: int) -> Sequence["PowerDevice"]:
    """The devices of that level; none, if one of them can't be believed."""
    levels = world.power.levels.get(name, ())
    feeds = levels[number].feeds if number < len(levels) else ()
    devices = [world.power.by_name[feed.device] for feed in feeds]
    believed = all(
        not one.lied and (one.named or (one.tested and _had_its_chance(world, one)))
        for one in devices
    )
    return devices if believed and all(feed.reads_state for feed in feeds) else ()


def _had_its_chance(world: "World", device: "PowerDevice") -> bool:
    """While the last boot of its host was beating it could be read from the first beat on, when it is asked, or for so long
    that it was asked again."""
    chances, beat_ms = device.chances, world.server.policy.detection.beat_interval_ms
    if chances.boot != device.host.boot:
        return False
    return chances.from_the_first >= ASKED_BEATS or chances.well * beat_ms >= CHANCE_MS


def _is_named(world: "World", name: str) -> bool:
    """It has devices, and each says whose it is: none of another host's is this one's."""
    devices = world.power.of(name)
    return bool(devices) and all(device.named for device in devices)


def _may_be_swapped(world: "World", one: str, other: str) -> bool:
    """Their levels differ in their numbers of feeds, and no device says whose it is: the engine counts per level."""
    shapes = [
        [len(level.feeds) for level in world.power.levels.get(each, ())] for each in (one, other)
    ]
    named = any(device.named for each in (one, other) for device in world.power.of(each))
    return shapes[0] != shapes[1] and not named


def _has_no_room(world: "World", known: "ServerVm", name: str) -> bool:
    """A host without power has none: all were switched on when all was healed, so a late order of ours ended it since, and
    nobody switches it on for VMs that it does not hold."""
    if not world.hosts[name].powered:
        return True
    there = [
        other
        for vm_id, other in world.server.vms.items()
        if other is not known and name in (*world.running_on(vm_id), *other.holders)
    ]
    apart = {group.id for group in known.placing.groups if group.hard}
    if any(apart & {group.id for group in other.placing.groups} for other in there):
        return True
    taken = sum(other.vm.memory_bytes for other in there)
    return taken + known.vm.memory_bytes > world.hosts[name].memory_bytes


def _demand_single(world: "World") -> None:
    """What is protected runs, or its reason is one that lasts; no order stays open."""
    server = world.server
    if server.pending:
        raise NotLive(f"orders never ended: {sorted(server.pending)}")
    for known in server.vms.values():
        report = known.report
        if report is None or report.state is not VmState.DOWN or not known.vm.ha:
            continue
        codes = [why.code for why in report.reasons]
        if any(code.startswith("restart.waiting") for code in codes):
            raise NotLive(f"{known.vm.name} still waits: {codes}")
        held = world.hosts[known.host].name in known.holders
        migrating = "restart.blocked.migrating" in codes
        if held and not migrating:
            raise NotLive(f"{known.vm.name} is down, given up, and still held: {codes}")
