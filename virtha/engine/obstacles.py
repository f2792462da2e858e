"""Why a VM fits on no host, told per kind of obstacle: how many hosts it keeps out, and what is missing.

Each host counts once, for the first thing in its way: not a target, lacks something, tried already, an affinity rule, too
little memory. What stands last in that order stands first in the answer: those hosts are nearest to fitting.
Looked at when a plan is complete, so that the figures are true together; worked out once for VMs of one shape.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from virtha.engine.affinity import AffinityGroup
from virtha.engine.capacity import Entry, Feature, FeatureKind, HostClass, Unfit
from virtha.engine.overlay import ANY_FREE, NOBODY, Overlay, Requirement
from virtha.model.ids import HostId, StorageDomainId
from virtha.model.size import format_size
from virtha.model.value import Scalar, Value
from virtha.model.vm import Reason

NEAREST = 3
"""How many of the nearest hosts are named: enough to see whether one VM less would do."""

_HARDWARE = (FeatureKind.ARCHITECTURE, FeatureKind.WATCHDOG, FeatureKind.BRIDGE)


class Near(Value, frozen=True, kw_only=True):
    """A host that lacks nothing but memory."""

    host_id: HostId
    name: str
    free_bytes: int
    short_bytes: int


class Against(NamedTuple):
    """Why a VM can't start: reasons, nearest obstacle first; and the hosts that lack only memory."""

    reasons: tuple[Reason, ...]
    nearest: tuple[Near, ...] = ()


class Bounds(NamedTuple):
    """On which hosts the hard rules let a VM be. ``together``: None where no rule binds it to hosts."""

    together: frozenset[HostId] | None
    apart: frozenset[HostId]


class _Lacking(NamedTuple):
    """What keeps out hosts before anything of the VM but its requirement is looked at."""

    matching_hosts: int
    features: tuple[Reason, ...]
    unfit: tuple[Reason, ...]


def bounds_of(overlay: Overlay, groups: Sequence[AffinityGroup]) -> Bounds:
    together: frozenset[HostId] | None = None
    apart: set[HostId] = set()
    for group in groups:
        members = overlay.members(group.id)
        if group.hard_apart:
            apart.update(members)
        elif group.hard_together and members:
            together = frozenset(members) if together is None else together & members.keys()
    return Bounds(together, frozenset(apart) if apart else NOBODY)


class Obstacles:
    """``storage_names``: for people; a domain that isn't in it is shown by its id."""

    def __init__(self, overlay: Overlay, storage_names: Mapping[StorageDomainId, str]) -> None:
        self._overlay = overlay
        self._storage_names = storage_names
        self._lacking: dict[Requirement, _Lacking] = {}
        self._known: dict[object, Against] = {}

    def of(
        self,
        requirement: Requirement,
        memory_bytes: int,
        excluded: frozenset[HostId],
        groups: Sequence[AffinityGroup],
    ) -> Against:
        hard = tuple(group for group in groups if group.hard)
        shape = (requirement, memory_bytes, excluded, tuple(group.id for group in hard))
        known = self._known.get(shape)
        if known is None:
            known = self._known[shape] = self._work_out(requirement, memory_bytes, excluded, hard)
        return known

    def _work_out(
        self,
        requirement: Requirement,
        memory_bytes: int,
        excluded: frozenset[HostId],
        hard: Sequence[AffinityGroup],
    ) -> Against:
        lacking = self._lacking.get(requirement)
        if lacking is None:
            lacking = self._lacking[requirement] = self._lack(requirement)
        together, apart = bounds_of(self._overlay, hard)
        tried = {host_id for host_id in excluded if self._matches(host_id, requirement)}
        bound: set[HostId] | None = None
        if together is not None:
            bound = {one for one in together - tried if self._matches(one, requirement)}
        left = lacking.matching_hosts - len(tried)
        reasons: list[Reason] = []
        if bound is not None:
            reasons.append(self._not_together(hard, together or NOBODY, left - len(bound)))
            left = len(bound)
        kept_apart = {one for one in apart - tried if self._matches(one, requirement)}
        if bound is not None:
            kept_apart &= bound
        if kept_apart:
            reasons.insert(0, self._not_apart(hard, kept_apart))
            left -= len(kept_apart)
        nearest = self._nearest(requirement, memory_bytes, tried | kept_apart, bound)
        if nearest:
            reasons.insert(0, _no_capacity(memory_bytes, nearest[0], left))
        if tried:
            reasons.append(_reason("recovery.blocked.tried", hosts=len(tried)))
        reasons += (*lacking.features, *lacking.unfit)
        if not reasons:
            reasons.append(_reason("recovery.blocked.no_host", hosts=0, why="none"))
        return Against(tuple(reasons), nearest)

    def _matches(self, host_id: HostId, requirement: Requirement) -> bool:
        ledger = self._overlay.capacity.ledgers.get(host_id)
        return ledger is not None and ledger.group is not None and requirement.met_by(ledger.group)

    # Memory

    def _nearest(
        self,
        requirement: Requirement,
        memory_bytes: int,
        skip: Collection[HostId],
        bound: Collection[HostId] | None,
    ) -> tuple[Near, ...]:
        overlay = self._overlay
        found: list[Entry] = []
        if bound is not None:
            ledgers = [overlay.capacity.ledgers[one] for one in bound if one not in skip]
            entries = [
                (-overlay.free_of(one), one.target.number, one.host_id, one)
                for one in ledgers
                if one.target is not None
            ]
            found = sorted(entries)[:NEAREST]
        else:
            passed = set(skip)
            while len(found) < NEAREST:
                heads = overlay.most_free(requirement, False, ANY_FREE, passed)
                if not heads:
                    break
                found.append(min(heads))
                passed.add(found[-1][2])
        return tuple(
            Near(
                host_id=host_id,
                name=ledger.target.name if ledger.target is not None else host_id,
                free_bytes=-negated,
                short_bytes=memory_bytes + negated,
            )
            for negated, _, host_id, ledger in found
        )

    # Affinity

    def _not_together(
        self, hard: Sequence[AffinityGroup], together: Collection[HostId], hosts: int
    ) -> Reason:
        binding = [one for one in hard if one.hard_together and self._overlay.members(one.id)]
        return _reason(
            "recovery.blocked.affinity",
            group=", ".join(sorted(one.name for one in binding)),
            bound_to=", ".join(self._names(together)) or "none",
            hosts=hosts,
        )

    def _not_apart(self, hard: Sequence[AffinityGroup], hosts: Collection[HostId]) -> Reason:
        keeping = sorted(
            group.name
            for group in hard
            if group.hard_apart and not self._overlay.members(group.id).keys().isdisjoint(hosts)
        )
        return _reason("recovery.blocked.anti_affinity", group=", ".join(keeping), hosts=len(hosts))

    def _names(self, hosts: Collection[HostId]) -> list[str]:
        targets = [(self._overlay.capacity.target(host_id), host_id) for host_id in sorted(hosts)]
        named = [(one.number, one.name) if one else (0, host_id) for one, host_id in targets]
        return [name for _, name in sorted(named)]

    # What hosts lack

    def _lack(self, requirement: Requirement) -> _Lacking:
        matching = 0
        unfit: dict[Unfit, int] = {}
        lacks: dict[tuple[str, str], int] = {}
        most_cpus = 0
        for group in self._overlay.capacity.classes.values():
            hosts = len(group.entries)
            if group.key.unfit is not None:
                unfit[group.key.unfit] = unfit.get(group.key.unfit, 0) + hosts
            elif requirement.met_by(group):
                matching += hosts
            else:
                lack = self._first_lack(requirement, group)
                lacks[lack] = lacks.get(lack, 0) + hosts
                if lack[0] == "recovery.blocked.cpus":
                    most_cpus = max(most_cpus, group.key.cpus)
        order = sorted(lacks, key=lambda lack: (_LACKS.index(lack[0]), lack[1]))
        return _Lacking(
            matching,
            tuple(
                _reason(code, needed=requirement.vcpus, most=most_cpus, hosts=lacks[code, what])
                if code == "recovery.blocked.cpus"
                else _reason(code, missing=what, hosts=lacks[code, what])
                for code, what in order
            ),
            tuple(
                _reason("recovery.blocked.no_host", hosts=unfit[why], why=why.word)
                for why in Unfit
                if why in unfit
            ),
        )

    def _first_lack(self, requirement: Requirement, group: HostClass) -> tuple[str, str]:
        """The code, and the names of what is missing."""
        missing = sorted(requirement.features - group.key.features)
        for code, kinds in (
            ("recovery.blocked.storage", (FeatureKind.STORAGE, FeatureKind.CEPH)),
            ("recovery.blocked.tags", (FeatureKind.TAG,)),
            ("recovery.blocked.hardware", _HARDWARE),
        ):
            named = sorted(self._name(one) for one in missing if one.kind in kinds)
            if named:
                return code, ", ".join(named)
        return "recovery.blocked.cpus", ""

    def _name(self, feature: Feature) -> str:
        if feature.kind is FeatureKind.STORAGE:
            return self._storage_names.get(StorageDomainId(feature.name), feature.name)
        named = feature.kind in _HARDWARE or feature.kind is FeatureKind.CEPH
        return f"{feature.kind} {feature.name}" if named else feature.name


_LACKS = (
    "recovery.blocked.cpus",
    "recovery.blocked.hardware",
    "recovery.blocked.tags",
    "recovery.blocked.storage",
)
"""Nearest first."""


def _no_capacity(memory_bytes: int, nearest: Near, hosts: int) -> Reason:
    return _reason(
        "recovery.blocked.no_capacity",
        needed=format_size(memory_bytes),
        host=nearest.name,
        free=format_size(max(nearest.free_bytes, 0)),
        short=format_size(nearest.short_bytes),
        hosts=hosts,
    )


def _reason(code: str, **fields: Scalar) -> Reason:
    return Reason(code=code, fields=fields)
