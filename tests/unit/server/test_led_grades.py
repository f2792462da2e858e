"""A VM that is held to a lower grade than its cluster, on the real store with a real engine."""

from pathlib import Path

import pytest
from led_world import ADMIN, LedWorld, tell, two_hosts_and_a_vm, while_turning

from virtha.control.requests import DeathConfirmation, VmChange
from virtha.model.codes import REGISTRY
from virtha.model.policy import PermissionGrade
from virtha.model.vm import Reason


@pytest.mark.req("F9", "X1")
def test_a_vm_that_is_only_watched_is_not_started_elsewhere(tmp_path: Path) -> None:
    async def story(world: LedWorld) -> None:
        await two_hosts_and_a_vm(world)
        observe = VmChange(grade=PermissionGrade.OBSERVE)
        view = await world.control.vms.change(ADMIN, "web1", observe, None)
        assert view.vm.grade_max is PermissionGrade.OBSERVE
        assert Reason(code="protection.ignored") in view.protection
        await world.settle()
        h1, h2 = world.hosts["h1"], world.hosts["h2"]
        h1.vanish()
        await world.pass_time(90_000, beating=("h2",))
        (withheld,) = await world.events("fence.withheld")
        assert withheld.fields["why"] == "fence.blocked.not_needed", (
            "somebody is told that it waits"
        )
        assert "--grade" in REGISTRY["fence.blocked.not_needed"].help
        care = world.control.host_care
        ticket = await care.ask_about_death(ADMIN, "h1")
        said = DeathConfirmation(ticket=ticket.ticket, name="h1")
        await while_turning(world, care.confirm_death(ADMIN, "h1", said))
        await world.settle()
        assert h2.starts() == []
        (told,) = await world.events("vm.recovery_blocked")
        assert told.fields["why"] == "recovery.blocked.grade"
        fence = VmChange(grade=PermissionGrade.FENCE)
        view = await world.control.vms.change(ADMIN, "web1", fence, None)
        assert view.vm.grade_max is None
        await world.settle()
        assert len(h2.starts()) == 1

    tell(tmp_path, story)
