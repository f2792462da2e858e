"""A snapshot holds all that an engine remembers: an engine made from it decides as the one it was taken of."""

from collections import Counter
from collections.abc import Sequence

import engine_driver
import msgspec
import pytest
from engine_driver import Play
from journalled_play import play_faults

from virtha.engine.engine import Engine
from virtha.engine.events import Decision, EngineEvent
from virtha.engine.records import ClusterRecord, EngineRecords
from virtha.engine.snapshot import EngineSnapshot, HostState, VmNodeState, cluster_of
from virtha.engine.state import Cluster, HostNode, VmNode
from virtha.model.ids import HostId, Term
from virtha.model.policy import Policy
from virtha.model.time import Millis

pytestmark = pytest.mark.req("X2")

encode = msgspec.msgpack.Encoder(order="deterministic").encode
decode = msgspec.msgpack.Decoder(EngineSnapshot).decode


class TwinnedEngine(Engine):
    """Before each step a twin is made from its snapshot, as bytes; both must decide the same, and remember the
    same after it. So, step by step, a twin made at any moment goes the same way to the end."""

    steps = 0

    def step(self, now: Millis, events: Sequence[EngineEvent]) -> Decision:
        twin = Engine.resumed(decode(encode(self.snapshot())))
        decision = super().step(now, events)
        assert twin.step(now, events) == decision
        mine, others = self.snapshot(), twin.snapshot()
        assert mine == others, [
            name for name in mine.__struct_fields__ if getattr(mine, name) != getattr(others, name)
        ]
        assert ledgers(twin) == ledgers(self)
        TwinnedEngine.steps += 1
        return decision


def ledgers(engine: Engine) -> object:
    """What is not stored but counted again."""
    cluster = engine._cluster
    cluster.capacity.settle()
    counted = {
        host_id: (ledger.target, ledger.used_bytes, ledger.vms, ledger.starting)
        for host_id, ledger in cluster.capacity.ledgers.items()
    }
    holders = {host_id: vms for host_id, vms in cluster.vms_on.items() if vms}
    groups = [vars(cluster)[name] for name in sorted(FOUND_AGAIN - {"rings", "vms_on", "capacity"})]
    rings = {name: list(ring) for name, ring in vars(cluster.rings).items()}
    return counted, holders, groups, rings, cluster.capacity.free_bytes


def test_a_twin_decides_the_same_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_driver, "Engine", TwinnedEngine)
    monkeypatch.setattr(TwinnedEngine, "steps", 0)
    told: Counter[str] = Counter()
    sent: Counter[str] = Counter()
    for seed in range(6):
        *_, play = play_faults(seed, ticks=500)
        told.update(play.told())
        sent.update(type(command).__name__ for _, command in play.commands)
    assert TwinnedEngine.steps > 6 * 500
    # The faults brought it where there is something to remember.
    assert {"Investigate", "ReadPower", "OrderPower", "StartCommand"} <= set(sent)
    assert {
        "host.judged_dead",
        "host.proven_dead",
        "fence.level_failed",
        "fence.brake.tripped",
        "vm.recovered",
        "vm.recovery_failed",
        "vm.quarantined",
    } <= set(told)


def test_a_twin_finishes_what_was_begun() -> None:
    """Taken in mid-fence and compared to the end, without looking in between."""
    play = Play(4)
    play.run("v1", "h1")
    play.advance(2_000)
    play.hosts["h1"].cut()
    play.until(lambda: "fence.began" in play.told())
    twin = Engine.resumed(decode(encode(play.engine.snapshot())))
    real = play.engine.step
    decisions: list[tuple[Decision, Decision]] = []

    def both(now: Millis, events: Sequence[EngineEvent]) -> Decision:
        decision = real(now, events)
        decisions.append((decision, twin.step(now, events)))
        return decision

    play.engine.step = both
    play.until(lambda: play.where("v1") != [])
    play.advance(2_000)
    assert all(one == other for one, other in decisions)
    assert any(one.commands for one, _ in decisions)
    assert twin.verdict(HostId("h1")) == play.verdict("h1")
    assert twin.explain_host(HostId("h1")) == play.engine.explain_host(HostId("h1"))
    assert twin.records() == play.engine.records()


def test_records_of_a_snapshot_are_those_of_the_engine() -> None:
    play = Play(3)
    play.run("v1", "h1")
    snapshot = play.engine.snapshot()
    assert snapshot.records == play.engine.records()


def test_a_snapshot_does_not_change_with_its_engine() -> None:
    play = Play(4)
    play.run("v1", "h1")
    play.hosts["h1"].cut()
    play.advance(4_000)
    snapshot = play.engine.snapshot()
    before = encode(snapshot)
    play.advance(20_000)
    assert encode(snapshot) == before
    assert play.engine.snapshot() != snapshot


# Nothing may be forgotten when the engine learns to remember more


def test_each_slot_of_a_node_is_in_the_snapshot() -> None:
    assert set(HostNode.__slots__) - set(HostState.__struct_fields__) == set()
    assert set(VmNode.__slots__) - set(VmNodeState.__struct_fields__) == set()


IN_SNAPSHOT = {
    "cut_removed",
    "fresh",
    "policy",
    "now",
    "record",
    "saved_record",
    "kept_hosts",
    "kept_vms",
    "began_ms",
    "paced_ms",
    "lease_until_ms",
    "reference",
    "reference_ms",
    "just_ordered",
    "storage_out",
    "not_shared",
    "steady_since_ms",
    "hosts",
    "vms",
    "fallen_ms",
    "awaited",
    "plan_wanted",
    "questions",
    "dirty_hosts",
    "dirty_vms",
    "_due",
}
FOUND_AGAIN = {
    "rings",
    "arrivals",
    "arrivals_from",
    "vms_on",
    "absent",
    "capacity",
    "ready",
    "unsettled",
    "migrating",
    "homesick",
    "paused",
    "drains",
}
EMPTY_BETWEEN_STEPS = {
    "changed_kept",
    "begun",
    "changed_hosts",
    "changed_vms",
    "notices",
    "commands",
    "dropped_hosts",
    "moves_asked",
    "outages_ending",
    "storage_told",
    "dropped_vms",
}


def test_each_attribute_of_the_cluster_is_accounted_for() -> None:
    records = EngineRecords(cluster=ClusterRecord(term=Term(1)))
    cluster = Cluster(policy=Policy(), records=records, now=Millis(5))
    known = IN_SNAPSHOT | FOUND_AGAIN | EMPTY_BETWEEN_STEPS
    assert set(vars(cluster)) == known, "put it into virtha/engine/snapshot.py, then name it here"


def test_an_engine_that_never_stepped_has_one_too() -> None:
    records = EngineRecords(cluster=ClusterRecord(term=Term(3)))
    engine = Engine(policy=Policy(), records=records, now=Millis(5))
    snapshot = engine.snapshot()
    assert snapshot.now == 5 and snapshot.records == records
    assert cluster_of(snapshot).record == records.cluster
    assert Engine.resumed(snapshot).step(Millis(5), ()) == engine.step(Millis(5), ())
