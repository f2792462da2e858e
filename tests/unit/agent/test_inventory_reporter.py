"""The inventory is told from a list that is younger than everything told before it."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from virtha.agent.files import Files
from virtha.agent.reports import InventoryReporter
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import FactBody, Inventory
from virtha.model.ids import VmId
from virtha.ports.hypervisor import HypervisorError

WEB1 = DomainReport(vm_id=VmId("web1"), name="web1", state=DomainState.RUNNING)
GONE = DomainReport(vm_id=VmId("web1"), name="web1", state=DomainState.SHUTOFF)


class SlowCatalog:
    """Lists what was there when it was asked, and answers when it is let."""

    def __init__(self) -> None:
        self.now = WEB1
        self.asked = 0
        self.fails = False
        self.may_answer = asyncio.Event()

    async def domains(self) -> tuple[DomainReport, ...]:
        self.asked += 1
        seen = self.now
        await self.may_answer.wait()
        if self.fails:
            raise HypervisorError("libvirt is away")
        return (seen,)


class Told:
    def __init__(self) -> None:
        self.facts: list[FactBody] = []

    async def emit(self, facts: list[FactBody]) -> None:
        self.facts += facts


class Rig:
    def __init__(self, path: Path) -> None:
        self.catalog, self.told = SlowCatalog(), Told()
        self.reporter = InventoryReporter(path / "revision", self.catalog, self.told, Files())
        self.task = asyncio.create_task(self.reporter.run())

    async def until(self, condition: Callable[[], bool]) -> None:
        for _ in range(12_000):
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("not within 60 s")

    def states(self) -> list[DomainState]:
        return [fact.domains[0].state for fact in self.told.facts if isinstance(fact, Inventory)]


@pytest.mark.req("A8")
def test_a_list_older_than_a_change_is_never_told(tmp_path: Path) -> None:
    async def story() -> None:
        rig = Rig(tmp_path)
        rig.reporter.changed()
        await rig.until(lambda: rig.catalog.asked == 1)
        # Its VM ends, and its release is told, while libvirt's older answer is under way.
        rig.catalog.now = GONE
        rig.reporter.changed()
        rig.catalog.may_answer.set()
        await rig.until(lambda: rig.told.facts != [])
        rig.task.cancel()
        assert rig.states() == [DomainState.SHUTOFF]
        assert rig.reporter.revision == 1

    asyncio.run(story())


def test_what_can_not_be_listed_is_listed_at_the_next_change(tmp_path: Path) -> None:
    async def story() -> None:
        rig = Rig(tmp_path)
        rig.catalog.may_answer.set()
        rig.catalog.fails = True
        rig.reporter.changed()
        await rig.until(lambda: rig.catalog.asked == 1)
        rig.catalog.fails = False
        rig.reporter.changed()
        await rig.until(lambda: rig.told.facts != [])
        rig.reporter.changed()
        await rig.until(lambda: rig.catalog.asked == 3)
        rig.task.cancel()
        assert rig.states() == [DomainState.RUNNING], "the same list is told once"

    asyncio.run(story())
