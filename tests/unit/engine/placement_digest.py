"""Prints a digest of one large plan; run under several hash seeds."""

import hashlib
import json
import random

import msgspec

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Capacity, Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.placement import VmToPlace, plan_placements
from virtha.model.ids import HostId, VmId
from virtha.model.policy import RecoveryPolicy
from virtha.model.time import Millis

GIB = 1 << 30
FEATURES = [Feature(FeatureKind.TAG, name) for name in ("a", "b", "c", "d")]


def main() -> None:
    chance = random.Random(7)
    capacity = Capacity()
    groups = [
        AffinityGroup(
            id=AffinityGroupId(f"g{at}"),
            name=f"g{at}",
            kind=chance.choice(list(AffinityKind)),
            hard=chance.random() < 0.5,
        )
        for at in range(12)
    ]

    def some(values, most):
        return chance.sample(values, chance.randint(0, most))

    for number in range(1, 61):
        capacity.host_changed(
            TargetHost(
                id=HostId(f"h{number}"),
                name=f"h{number}",
                number=number,
                memory_bytes=chance.choice((16, 32, 64)) * GIB,
                cpus=8,
                features=frozenset(some(FEATURES, 4)),
                unfit=chance.choice([None] * 9 + list(Unfit)),
            )
        )
    for at in range(200):
        vm = HeldVm(
            id=VmId(f"r{at}"),
            memory_bytes=GIB * chance.randint(1, 8),
            groups=tuple(group.id for group in some(groups, 2)),
        )
        capacity.vm_started(HostId(f"h{chance.randint(1, 60)}"), vm)
    vms = [
        VmToPlace(
            id=VmId(f"v{at}"),
            name=f"v{at}",
            memory_bytes=GIB * chance.randint(1, 24),
            features=frozenset(some(FEATURES, 2)),
            groups=tuple(some(groups, 2)),
            excluded=frozenset(HostId(f"h{one}") for one in some(range(1, 61), 3)),
        )
        for at in range(150)
    ]
    plan = plan_placements(capacity, vms, policy=RecoveryPolicy(), now=Millis(0), progress={})
    digest = hashlib.sha256(msgspec.json.encode(plan)).hexdigest()
    print(json.dumps({"digest": digest, "blocked": len(plan.blocked)}))


if __name__ == "__main__":
    main()
