"""The checkers of the clusters' truth fire when their rule is broken, and only then."""

import pytest
from msgspec.structs import replace

from virtha.engine.events import SaveHost, StartCommand
from virtha.engine.records import OrderId
from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, HostId, Incarnation, Term
from virtha.scenario.language import parse
from virtha.sim.checkers import Violation
from virtha.sim.engine_table import Lead
from virtha.sim.play import Player
from virtha.sim.truth import POWER_ORDERS

RUNNING = "engine\nhosts h1 h2 h3\nvm web on=h1 ha\nstart web\nadvance 10s\n"


def played(lines: str) -> Player:
    player = Player()
    for step in parse(f"# a story\n{lines}").steps:
        player.do(step)
    return player


def start(player: Player, host: str) -> StartCommand:
    return StartCommand(
        order_id=OrderId("9.2"),
        vm_id=player.world.ids["web"],
        host_id=HostId(host),
        boot=BootId(f"{host}-boot-1"),
        incarnation=Incarnation(2),
        grant_ms=10_000,
        proofs=(),
    )


def test_a_start_while_another_host_has_it_is_a_violation():
    player = played(RUNNING)
    lead = player.world.server.lead
    with pytest.raises(Violation, match="while h1 has it"):
        player.truth.command_given(lead, start(player, "h2"))


def test_a_start_of_an_earlier_term_is_refused_by_the_agents():
    player = played(RUNNING)
    player.truth.command_given(player.world.server.lead._replace(term=Term(0)), start(player, "h2"))


def test_a_start_while_writes_wait_in_a_kernel_is_a_violation():
    player = played(f"{RUNNING}cut storage h1\nadvance 1s\nvirsh destroy web\n")
    with pytest.raises(Violation, match="has writes of it queued"):
        player.truth.command_given(player.world.server.lead, start(player, "h2"))


def test_shooting_a_host_that_everybody_sees_is_a_violation():
    player = played(RUNNING)
    with pytest.raises(Violation, match="most others see it alive"):
        player.truth.off_arrives(player.world.power.of("h1")[0])


@pytest.mark.parametrize(
    "fault",
    ["power-cut h1", "hang h1", "cut net h1\ncut storage h1"],
    ids=["no power", "hung", "cut off"],
)
def test_shooting_a_host_that_nobody_sees_is_none(fault: str):
    player = played(f"{RUNNING}{fault}\nadvance 100ms\n")
    player.truth.off_arrives(player.world.power.of("h1")[0])


def test_a_host_that_has_only_just_come_back_may_still_be_shot():
    player = played(f"{RUNNING}hang h1\nadvance 2s\nthaw h1\nadvance 1s\n")
    player.truth.off_arrives(player.world.power.of("h1")[0])


def test_more_hosts_shot_than_the_cap_allows_is_a_violation():
    player = played("engine\nhosts h1 h2 h3 h4 h5\nadvance 2s\n")
    for number in (1, 2, 3):
        player.truth.off_arrives(player.world.power.of(f"h{number}")[0])
    player.truth.off_arrives(player.world.power.of("h1")[0])  # the same boot once more
    with pytest.raises(Violation, match="4 hosts were ordered off, 3 may be"):
        player.truth.off_arrives(player.world.power.of("h4")[0])


def written(player: Player, number: int) -> None:
    """A power order of that number is written for h1, as a leader would."""
    server = player.world.server
    record = server.table.hosts[HostId("h1")]
    assert record.incident is not None and record.incident.fence is not None
    fence = replace(record.incident.fence, order_id=OrderId(f"9.{number}"))
    incident = replace(record.incident, fence=fence)
    player.truth.written_under(server.lead, (SaveHost(record=replace(record, incident=incident)),))


@pytest.mark.req("F9")
def test_power_orders_that_turn_in_circles_are_a_violation():
    player = played(f"{RUNNING}power-cut h1\nadvance 5s\n")
    for number in range(POWER_ORDERS - 1):
        written(player, number)
        written(player, number)  # the same one once more
    with pytest.raises(Violation, match="21 power orders were written for h1 in a minute"):
        written(player, POWER_ORDERS)


def test_records_of_an_earlier_term_are_a_violation():
    player = played(RUNNING)
    lead = player.world.server.lead
    with pytest.raises(Violation, match="after"):
        player.truth.written_under(lead._replace(term=Term(lead.term - 1)), ())


def test_a_leader_of_before_a_restore_has_nothing_to_write_after_it():
    player = played(RUNNING)
    lead = player.world.server.lead
    player.truth.written_under(
        Lead(lead.timeline + 1, Term(lead.term - 1)), ()
    )  # counts from its backup's
    with pytest.raises(Violation, match=f"term {lead.term} after .* of timeline 1"):
        player.truth.written_under(lead, ())


def test_two_copies_that_write_are_a_violation():
    player = played(RUNNING)
    world = player.world
    vm_id = world.ids["web"]
    world.hosts["h2"].grant(vm_id, Incarnation(2), until_ms=1 << 40)
    world.hosts["h2"].libvirt.start_paused(vm_id)
    with pytest.raises(Violation, match=r"disk of .* h2 .* writes while h1"):
        world.hosts["h2"].libvirt.run(vm_id)


def test_a_protected_vm_that_is_down_without_a_reason_is_a_violation():
    player = played(RUNNING)
    vm_id = player.world.ids["web"]
    player.world.hosts["h1"].libvirt.end_silently(vm_id, "unknown")  # and nobody is told
    player.world.server.vms[vm_id].report = None
    with pytest.raises(Violation, match="web is down and nobody says why"):
        player.truth.at_end()


# Bad input names the line


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("hosts h1\nengine\n", "before the first host"),
        ("engine\nhost h1 power=wheel\n", "no power device 'wheel'"),
        ("engine\nhosts h1\nbmc h1 sings\n", "is no behaviour"),
        ("engine\nhosts h1\nbmc h1 slow\n", "is no behaviour"),
        ("engine\nhosts h1\nbmc h1 dead device=x\n", "no device 'x'"),
        ("engine\nhosts h1\ncut moon h1\n", "no network 'moon'"),
        ("engine\nhosts h1\ncut net h9\n", "no 'h9' on that network"),
        ("engine\nhosts h1 h2\ncut net h1 h2\n", "one host, or one to another"),
        ("engine\nhosts h1\nhang h9\n", "no host 'h9'"),
        ("engine\nhosts h1\nfreeze h1 kernel\n", "no process 'kernel'"),
        ("engine\nhosts h1\nkill-server at=lunch\n", "no point 'lunch'"),
        ("engine\nhosts h1\nmaintenance h1 perhaps\n", "maintenance 'perhaps'"),
        ("hosts h1\nexplain h1\n", "explain needs an engine"),
        ("engine\nhosts h1\nfree web\n", "no VM 'web'"),
        ("engine\nhosts h1\nvm a on=h1 depends=b\n", "no VM 'b'"),
        ("engine\npolicy fencing.cap_count=0\nhosts h1\n", "cap_count"),
    ],
)
def test_what_makes_no_sense_is_refused(lines: str, message: str):
    with pytest.raises(InvalidInput, match=message) as refused:
        played(lines)
    assert refused.value.field is not None
