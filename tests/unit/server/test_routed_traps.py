"""A trap tells of one event: what comes out of a silence in one message elsewhere is one trap each."""

from collections.abc import Callable

import pytest
from notified_world import ADMIN, NotifiedWorld
from routed_world import Story, happens, pass_time

from virtha.control.requests import MatcherRequest, ReceiverCreate, SilenceCreate
from virtha.model.codes import Severity
from virtha.model.notification import SnmpSettings, SnmpVersion
from virtha.model.routing import FateState


@pytest.mark.req("W7", "F4")
def test_what_had_no_group_of_its_own_is_a_trap_of_its_own(
    tell: Callable[[Story], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the groups that a route may have all that is silenced is in one; mail is told of that in one message."""
    monkeypatch.setattr("virtha.alerts.groups.PARKED_GROUPS_MAX", 3)

    async def story(world: NotifiedWorld) -> None:
        settings = SnmpSettings(host="192.0.2.1", version=SnmpVersion.V2C)
        made = ReceiverCreate(name="traps", settings=settings, secrets={"community": "c"})
        await world.control.receivers.create(ADMIN, made)
        wanted = {"codes": ("vm.*",), "severity": Severity.WARNING}
        await world.subscribe("traps", **wanted)
        await world.subscribe_mail(**wanted)
        await world.control.silences.create(
            ADMIN,
            SilenceCreate(
                reason="work", matcher=MatcherRequest(codes=("vm.*",)), duration_ms=60_000
            ),
        )
        crashed = [await happens(world, "vm.crashed", "h1", f"v{one}") for one in range(8)]
        await world.route_all()
        await pass_time(world, 70)
        traps = [view.delivery for view in await world.deliveries(receiver="traps")]
        assert [one.event_revision for one in traps] == crashed
        assert {one.about for one in traps} == {None}
        assert len(await world.deliveries(receiver="mail1")) == 4
        by_event = {one.event_revision: one.id for one in traps}
        for revision in crashed:
            fates = (await world.control.events.fates(revision)).routes
            mine = next(one for one in fates if one.subscription == "traps-1")
            assert (mine.state, mine.delivery_id) == (FateState.TOLD, by_event[revision])

    tell(story)
