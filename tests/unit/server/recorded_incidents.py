"""What the record of a host's failure must say, at the end of stories that real leaders play on a real store (X4)."""

from led_world import LedWorld
from sqlalchemy import update

from virtha.control.incident_views import IncidentStage, IncidentView
from virtha.control.requests import IncidentQuery
from virtha.model.facts import Happened
from virtha.model.ids import VmId
from virtha.model.incident import PathState
from virtha.store.schema import incident

BY_POWER = [
    "incident.last_sign",
    "host.suspected",
    "host.judged_dead",
    "fence.began",
    "incident.fence.intended",
    "incident.fence.sent",
    "incident.fence.accepted",
    "incident.vm.lost",
    "incident.fence.read_off",
    "incident.fence.confirmed",
    "host.proven_dead",
    "incident.vm.ready",
    "vm.recovery_started",
    "vm.recovered",
    "vm.agent.connected",
    "host.returned",
    "incident.closed",
]
"""From the last beat to the host's return, where nothing fails."""


async def the_incident(world: LedWorld, **wanted: object) -> IncidentView:
    """The one that there is."""
    page = await world.control.incidents.list(IncidentQuery(**wanted))
    (only,) = page.items
    found = await world.control.incidents.get(only.id)
    assert found.incident == only, "a list shows what the incident itself shows"
    return found


def codes(view: IncidentView) -> list[str]:
    return [line.code for line in view.timeline]


def after_ms(view: IncidentView, code: str) -> int:
    (line,) = [one for one in view.timeline if one.code == code]
    return line.after_ms


async def only_h2s_guest_agent_counts(world: LedWorld) -> None:
    """It answers from where the VM was started; what the dead host's outbox still brings is no answer."""
    view = await the_incident(world, host="h1", open=True)
    assert view.incident.stage is IncidentStage.AWAITING_HOST
    (way,) = view.vms
    assert (way.vm, way.state, way.host, way.answer_ms) == ("web1", PathState.RUNS, "h2", None)
    world.clock.now += 700
    await _answers(world, "h1", way.vm_id)
    (still,) = (await the_incident(world)).vms
    assert still == way
    for _ in range(2):
        await _answers(world, "h2", way.vm_id)
    world.clock.now += 1


async def _answers(world: LedWorld, host: str, vm_id: VmId) -> None:
    await world.hosts[host].tell(Happened(code="vm.agent.connected", vm_id=vm_id))


async def it_is_told_from_the_last_beat_to_the_hosts_return(world: LedWorld) -> None:
    view = await the_incident(world, vm="web1", open=False)
    assert codes(view) == BY_POWER
    by_wall = {line.code for line in view.timeline if line.clock == "wall"}
    assert by_wall == {"host.suspected", "vm.agent.connected"}
    (way,) = view.vms
    assert way.state is PathState.ANSWERS and way.attempts == 1 and way.code is None
    assert way.runs_after_ms == after_ms(view, "vm.recovered")
    took = {one.name: one.ms for one in view.phases}
    proven_after_ms = after_ms(view, "host.proven_dead")
    assert took == {
        "detect": after_ms(view, "host.judged_dead"),
        "prove": proven_after_ms - view.incident.silent_ms,
        "fence": proven_after_ms - after_ms(view, "incident.fence.intended"),
        "start": way.runs_after_ms - proven_after_ms,
        "guest": way.answer_ms,
        "all": way.runs_after_ms,
    }
    assert way.answer_ms is not None and way.answer_ms >= 700
    assert view.incident.stage is IncidentStage.CLOSED and view.incident.closed is not None
    assert view.incident.vms.answering == view.incident.vms.all == 1
    (judged,) = [line for line in view.timeline if line.code == "host.judged_dead"]
    assert [one.code for one in judged.reasons][:1] == ["host.dead.unproven"]
    said = {(one.via, one.said) for one in judged.seen}
    assert {("power", "on"), ("session of its agent", "broke")} <= said
    for code in ("host.judged_dead", "host.proven_dead", "vm.recovered", "host.returned"):
        (event,) = await world.events(code)
        assert event.fields["incident_id"] == view.incident.id, event


async def make_unreadable(world: LedWorld) -> None:
    """Recoveries wait for no record."""
    async with world.store.write() as tx:
        await tx.connection.execute(update(incident).values(body='{"id":'))
