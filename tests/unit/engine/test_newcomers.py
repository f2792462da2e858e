"""Hosts that come within reach while others are silent: taken up late, and yet as if at once (J2)."""

import random

import pytest
from engine_driver import Play
from test_ring import opcodes

from virtha.engine.configured import EngineHost
from virtha.engine.events import BeatSeen, EngineEvent, SessionChanged
from virtha.engine.machine import Verdict
from virtha.engine.records import ClusterRecord, EngineRecords, HostRecord
from virtha.engine.state import ABSENT, Cluster, HostNode
from virtha.model.evidence import ProcessKind
from virtha.model.ids import HostId, Term
from virtha.model.policy import Policy
from virtha.model.time import Millis

PRESENT = (Verdict.ALIVE, Verdict.AGENT_DOWN)


class Eager:
    """What each silent host is to know, noted the moment that it happens."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.newcomers: dict[HostId, set[HostId]] = {one: set() for one in cluster.hosts}
        self.rounds: dict[HostId, int] = dict.fromkeys(cluster.hosts, 0)

    def came(self, newcomer: HostId) -> None:
        cluster = self.cluster
        away_ms = cluster.now - cluster.fallen_ms.get(newcomer, cluster.now)
        outdated = away_ms > cluster.policy.detection.evidence_max_age_ms
        for host_id in cluster.absent:
            if outdated or newcomer not in self.newcomers[host_id]:
                self.newcomers[host_id].add(newcomer)
                self.rounds[host_id] = cluster.hosts[host_id].round


def turned(cluster: Cluster, eager: Eager, node: HostNode, verdict: Verdict) -> None:
    came = verdict in PRESENT and node.id not in cluster.present
    cluster.note_verdict(node, verdict)
    if came:
        eager.came(node.id)


@pytest.mark.req("F1")
def test_what_is_taken_up_late_is_what_came_at_once():
    chance = random.Random(1)
    verdicts = (*PRESENT, *sorted(ABSENT), Verdict.ISOLATED)
    for _ in range(60):
        records = EngineRecords(cluster=ClusterRecord(term=Term(1)))
        cluster = Cluster(policy=Policy(), records=records, now=Millis(0))
        for number in range(1, chance.randrange(2, 8)):
            host_id = HostId(f"h{number}")
            config = EngineHost(host_id=host_id, name=host_id, number=number)
            node = HostNode(config, HostRecord(host_id=host_id), cluster.now)
            cluster.hosts[host_id] = node
            cluster.list_host(node)
        eager = Eager(cluster)
        for _ in range(80):
            cluster.now = Millis(cluster.now + chance.choice((1, 1, 20_000, 90_000)))
            node = cluster.hosts[chance.choice(sorted(cluster.hosts))]
            match chance.randrange(8):
                case 0:
                    cluster.take_up(node)
                    node.round += 1
                case 1:
                    cluster.forget_investigation(node)
                    eager.newcomers[node.id].clear()
                case 2:
                    cluster.all_take_up()
                case _:
                    turned(cluster, eager, node, chance.choice(verdicts))
            looked_at = cluster.hosts[chance.choice(sorted(cluster.hosts))]
            cluster.take_up(looked_at)
            assert looked_at.newcomers == eager.newcomers[looked_at.id]
            if looked_at.newcomers:
                assert looked_at.newcomer_round == eager.rounds[looked_at.id]


def cost_of_the_return(hosts: int) -> float:
    """Opcodes per host of the step in which all beat again."""
    play = Play(hosts, vms=[])
    names = [f"h{number}" for number in range(1, hosts + 1)]
    play.inbox += [
        SessionChanged(
            host_id=HostId(name), process=process, boot=play.hosts[name].boot, up=False, broken=True
        )
        for name in names[1:]
        for process in ProcessKind
    ]
    play.engine.step(Millis(play.now + 1), play.inbox)
    assert play.engine.verdict(HostId("h2")) in ABSENT
    beats: list[EngineEvent] = [
        BeatSeen(host_id=HostId(name), boot=play.hosts[name].boot, agent_alive=True)
        for name in names
    ]
    _, counted = opcodes(lambda: play.engine.step(Millis(play.now + 2), beats))
    assert play.engine.verdict(HostId("h2")) is Verdict.ALIVE
    return counted / hosts


def test_a_large_cluster_that_comes_back_as_a_whole_costs_as_much_per_host():
    assert cost_of_the_return(100) < 1.2 * cost_of_the_return(20)
