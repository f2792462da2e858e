"""Which faults strike when: drawn from a seed, from nothing else, so that the same seed gives the same list.

Chaos goes in rounds. Each has one main fault, mostly some more about the same time, and operators who go on with their work;
then all is healed, and all VMs have to be back. What carries it out is ``chaos_faults.py``.
"""

from collections.abc import Collection, Iterator, Sequence
from enum import StrEnum
from random import Random

from msgspec.structs import replace

from virtha.model.value import Value


class FaultKind(StrEnum):
    POWER_CUT = "power_cut"
    """Seen: its connections break."""
    POWER_CUT_SILENT = "power_cut_silent"
    HOST_HUNG = "host_hung"
    """All its processes stand still; thawed, they go on as if nothing had been."""
    NETWORK_CUT = "network_cut"
    STORAGE_STALL = "storage_stall"
    """Of one host: its FUSE process stands still, nothing fails."""
    BMC_DEAD = "bmc_dead"
    BMC_SLOW = "bmc_slow"
    AGENT_KILLED = "agent_killed"
    GUARDIAN_KILLED = "guardian_killed"
    GUARDIAN_FROZEN = "guardian_frozen"
    LIBVIRTD_KILLED = "libvirtd_killed"
    LIBVIRTD_HUNG = "libvirtd_hung"
    QEMU_KILLED = "qemu_killed"
    SERVER_KILLED = "server_killed"
    VM_MOVED = "vm_moved"
    """No fault: an operator at work, as the next."""
    VM_STOPPED = "vm_stopped"
    """And started again."""


class Shape(Value, frozen=True, kw_only=True):
    """What a kind looks like when it is drawn."""

    weight: int
    lasts_s: tuple[int, ...] = ()
    """One of these; then what broke is mended, as far as it is still there."""
    stays: int = 0
    """In so many of 100 it lasts until the round is healed."""
    amounts_ms: tuple[int, ...] = ()


SHAPES: dict[FaultKind, Shape] = {
    FaultKind.POWER_CUT: Shape(weight=3, lasts_s=(6, 12, 25), stays=60),
    FaultKind.POWER_CUT_SILENT: Shape(weight=4, lasts_s=(6, 12, 25), stays=60),
    # Around each bound: of suspicion (3 s), of the verdict (12 s), of the watchdog (10 s), long after all of them.
    FaultKind.HOST_HUNG: Shape(weight=4, lasts_s=(2, 5, 9, 14, 25, 40), stays=20),
    FaultKind.NETWORK_CUT: Shape(weight=4, lasts_s=(2, 5, 9, 20, 40), stays=30),
    FaultKind.STORAGE_STALL: Shape(weight=4, lasts_s=(5, 30)),
    FaultKind.BMC_DEAD: Shape(weight=2, lasts_s=(10, 30), stays=60),
    FaultKind.BMC_SLOW: Shape(weight=2, lasts_s=(20,), stays=70, amounts_ms=(800, 2_500, 6_000)),
    FaultKind.AGENT_KILLED: Shape(weight=3, lasts_s=(0, 3, 15)),
    FaultKind.GUARDIAN_KILLED: Shape(weight=2, lasts_s=(0, 3, 15)),
    FaultKind.GUARDIAN_FROZEN: Shape(weight=2, lasts_s=(2, 7, 14, 30)),
    FaultKind.LIBVIRTD_KILLED: Shape(weight=2, lasts_s=(0, 3, 15)),
    FaultKind.LIBVIRTD_HUNG: Shape(weight=2, lasts_s=(4, 12, 40)),
    FaultKind.QEMU_KILLED: Shape(weight=3),
    FaultKind.SERVER_KILLED: Shape(weight=3, lasts_s=(0, 3, 15)),
    FaultKind.VM_MOVED: Shape(weight=0),
    FaultKind.VM_STOPPED: Shape(weight=0, lasts_s=(0, 5, 15)),
}
OPERATORS_WORK = (FaultKind.VM_MOVED, FaultKind.VM_STOPPED)
WHOLE_HOST = frozenset(
    {
        FaultKind.POWER_CUT,
        FaultKind.POWER_CUT_SILENT,
        FaultKind.HOST_HUNG,
        FaultKind.NETWORK_CUT,
    }
)
"""One host of all is always spared these: with nobody left there is nothing to decide."""
_OF_A_VM = frozenset({FaultKind.QEMU_KILLED, *OPERATORS_WORK})
_MAIN_AT_S = (3, 10)
_BESIDE_S = (-3, 12)
"""From the main fault: what comes with it may come before, in the midst of the fence, or at the starts elsewhere."""
_WORK_AT_S = (0, 25)
_SETTLES_S = (25, 55)
"""From the last fault to the healing: a host's death is judged, proven and recovered in 10 to 45 s."""


class Strike(Value, frozen=True, kw_only=True):
    """Times in ms from the round's beginning."""

    at_ms: int
    kind: FaultKind
    target: str
    """A host, a VM, or the server."""
    lasts_ms: int | None = None
    """None: for good, or until the round is healed."""
    amount_ms: int = 0
    """How slow a BMC is."""

    def __str__(self) -> str:
        lasts = "" if self.lasts_ms is None else f" for {self.lasts_ms / 1_000:g} s"
        amount = f" by {self.amount_ms} ms" if self.amount_ms else ""
        return f"{self.at_ms / 1_000:5.1f} s {self.kind.value} {self.target}{amount}{lasts}"


class Round(Value, frozen=True, kw_only=True):
    number: int
    strikes: tuple[Strike, ...]
    """In the order of time."""
    heal_at_ms: int

    def stretched(self, factor: float) -> "Round":
        """All its times so many times as long: on a slow machine a guest that has been started elsewhere boots for longer
        than its former host hangs."""

        def longer(one: Strike) -> Strike:
            lasts_ms = None if one.lasts_ms is None else round(one.lasts_ms * factor)
            return replace(one, at_ms=round(one.at_ms * factor), lasts_ms=lasts_ms)

        strikes = tuple(longer(one) for one in self.strikes)
        return replace(self, strikes=strikes, heal_at_ms=round(self.heal_at_ms * factor))


class Scene(Value, frozen=True, kw_only=True):
    """Who can be struck, and by what."""

    hosts: tuple[str, ...]
    vms: tuple[str, ...]
    server: str
    kinds: frozenset[FaultKind] = frozenset(FaultKind)

    def targets(self, kind: FaultKind) -> Sequence[str]:
        if kind is FaultKind.SERVER_KILLED:
            return (self.server,)
        return self.vms if kind in _OF_A_VM else self.hosts


def draw_round(seed: int, number: int, scene: Scene) -> Round:
    """The ``number``-th round of ``seed``: each is drawn by itself, so that it is the same however the ones before went."""
    chance = Random(f"virtha chaos {seed} {number}")  # noqa: S311 - to be repeated, not to be secret
    faults = [kind for kind in FaultKind if SHAPES[kind].weight and kind in scene.kinds]
    main_ms = _milliseconds(chance, _MAIN_AT_S)
    drawn = [_draw(chance, scene, faults, main_ms)] if faults else []
    if drawn:
        for _ in range(chance.choice((0, 1, 1, 2, 2, 3))):
            at_ms = max(0, main_ms + _milliseconds(chance, _BESIDE_S))
            drawn.append(_draw(chance, scene, faults, at_ms))
    work = [kind for kind in OPERATORS_WORK if kind in scene.kinds]
    if work:
        drawn += [
            _draw(chance, scene, work, _milliseconds(chance, _WORK_AT_S))
            for _ in range(chance.choice((0, 1, 2)))
        ]
    kept = _possible(sorted(drawn, key=lambda one: one.at_ms), len(scene.hosts))
    last_ms = max((one.at_ms for one in kept), default=0)
    return Round(
        number=number, strikes=kept, heal_at_ms=last_ms + _milliseconds(chance, _SETTLES_S)
    )


def rounds(seed: int, scene: Scene) -> Iterator[Round]:
    """Without end."""
    number = 0
    while True:
        number += 1
        yield draw_round(seed, number, scene)


def _milliseconds(chance: Random, span_s: tuple[int, int]) -> int:
    """In tenths of a second, so that the list can be read."""
    return chance.randint(span_s[0] * 10, span_s[1] * 10) * 100


def _draw(chance: Random, scene: Scene, kinds: Sequence[FaultKind], at_ms: int) -> Strike:
    weights = [SHAPES[kind].weight or 1 for kind in kinds]
    (kind,) = chance.choices(kinds, weights)
    shape = SHAPES[kind]
    lasts_ms = chance.choice(shape.lasts_s) * 1_000 if shape.lasts_s else None
    if chance.randrange(100) < shape.stays:
        lasts_ms = None
    return Strike(
        at_ms=at_ms,
        kind=kind,
        target=chance.choice(scene.targets(kind)),
        lasts_ms=lasts_ms,
        amount_ms=chance.choice(shape.amounts_ms) if shape.amounts_ms else 0,
    )


def _possible(drawn: Collection[Strike], hosts: int) -> tuple[Strike, ...]:
    """Without those that strike what the same fault has struck already, and without the one that would take the last host."""
    kept: list[Strike] = []
    for one in drawn:
        down = {other.target for other in kept if other.kind in WHOLE_HOST}
        if one.kind in WHOLE_HOST and len(down | {one.target}) >= hosts:
            continue
        if all((other.kind, other.target) != (one.kind, one.target) for other in kept):
            kept.append(one)
    return tuple(kept)
