"""Small worlds in which every rule of placement meets every other."""

from hypothesis import strategies as st
from placement_oracle import World

from virtha.engine.affinity import AffinityGroup, AffinityGroupId, AffinityKind
from virtha.engine.capacity import Feature, FeatureKind, HeldVm, TargetHost, Unfit
from virtha.engine.dependencies import Dependency, StartCondition
from virtha.engine.placement import Purpose, VmToPlace
from virtha.model.ids import HostId, VmId
from virtha.model.policy import DependencyExpired, RecoveryPolicy

GIB = 1 << 30
FEATURES = (
    Feature(FeatureKind.TAG, "ssd"),
    Feature(FeatureKind.STORAGE, "ds1"),
    Feature(FeatureKind.BRIDGE, "br0"),
)
WAIT_MS = 60_000
NOW_MS = 100_000


@st.composite
def _often(draw, strategy, usual, weight=5):
    """``usual`` in most draws: a world in which everything is odd tests little."""
    return draw(strategy) if draw(st.integers(0, weight)) == weight else usual


@st.composite
def _groups(draw):
    kinds = draw(
        st.lists(st.tuples(st.sampled_from(AffinityKind), st.booleans()), min_size=3, max_size=3)
    )
    return [
        AffinityGroup(id=AffinityGroupId(f"g{at}"), name=f"group {at}", kind=kind, hard=hard)
        for at, (kind, hard) in enumerate(kinds)
    ]


@st.composite
def _host(draw, number):
    return TargetHost(
        id=HostId(f"h{number}"),
        name=f"host{number}",
        number=number,
        memory_bytes=draw(st.sampled_from((8, 16, 16, 16, 24))) * GIB
        + draw(st.integers(0, 2)) * GIB // 64,
        reserved_bytes=draw(_often(st.just(2 * GIB), 0)),
        cpus=draw(_often(st.just(2), 8)),
        features=frozenset(draw(_often(st.sets(st.sampled_from(FEATURES)), set(FEATURES)))),
        unfit=draw(_often(st.sampled_from(Unfit), None, 5)),
    )


def _dependencies(number):
    known = [VmId(f"v{at}") for at in range(number)]
    others = [VmId("running"), VmId("starting"), VmId("gone")]
    return st.lists(
        st.builds(
            lambda vm_id, condition: Dependency(vm_id=vm_id, name=vm_id, condition=condition),
            st.sampled_from(known * 2 + others),
            st.sampled_from(StartCondition),
        ),
        max_size=2,
    )


@st.composite
def _vm(draw, number, groups, hosts):
    return VmToPlace(
        id=VmId(f"v{number}"),
        name=f"vm{number}",
        memory_bytes=draw(st.sampled_from((1, 2, 4, 4, 8, 12))) * GIB,
        vcpus=draw(_often(st.just(4), 1)),
        priority=draw(st.integers(0, 2)),
        purpose=draw(_often(st.just(Purpose.ORDER), Purpose.RECOVERY)),
        features=frozenset(draw(_often(st.sets(st.sampled_from(FEATURES)), set(), 2))),
        groups=tuple(
            draw(_often(st.lists(st.sampled_from(groups), unique=True, max_size=2), [], 2))
        ),
        depends_on=tuple(draw(_often(_dependencies(number), []))),
        waits_since_ms=draw(_often(st.just(NOW_MS - WAIT_MS), None)),
        attempts=draw(_often(st.just(1), 0)),
        excluded=frozenset(draw(_often(st.sets(st.sampled_from(hosts)), set())))
        if hosts
        else frozenset(),
        preferred=draw(_often(st.sampled_from(hosts), None)) if hosts else None,
    )


@st.composite
def worlds(draw):
    hosts = [draw(_host(number)) for number in range(1, draw(_often(st.integers(0, 2), 5)) + 1)]
    ids = [host.id for host in hosts]
    groups = draw(_groups())
    running = []
    for at in range(draw(st.integers(0, 8)) if hosts else 0):
        members = draw(_often(st.lists(st.sampled_from(groups), unique=True, max_size=2), [], 2))
        held = HeldVm(
            id=VmId(f"r{at}"),
            memory_bytes=draw(st.sampled_from((1, 2, 4, 6))) * GIB,
            groups=tuple(group.id for group in members),
        )
        running.append((draw(st.sampled_from(ids)), held, draw(_often(st.just(True), False))))
    vms = [draw(_vm(number, groups, ids)) for number in range(draw(st.integers(2, 9)))]
    return World(
        hosts=tuple(hosts),
        running=tuple(running),
        vms=tuple(draw(st.permutations(vms))),
        policy=RecoveryPolicy(
            starts_per_host=draw(st.integers(1, 4)),
            starts_per_cluster=draw(st.integers(4, 8)),
            reserve_hosts=draw(st.integers(0, 2)),
            memory_overcommit_percent=draw(_often(st.sampled_from((50, 150)), 100)),
            spread=draw(_often(st.just(False), True, 1)),
            dependency_wait_ms=WAIT_MS,
            dependency_expired=draw(st.sampled_from(DependencyExpired)),
        ),
        progress={VmId("running"): frozenset(StartCondition), VmId("starting"): frozenset()},
        now_ms=NOW_MS,
    )
