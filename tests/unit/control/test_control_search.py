"""Lists by a search: beside their other filters, page by page, and what is wrong with a cursor."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from counted_statements import statements

from virtha.control.requests import ClusterCreate, EventQuery, SearchQuery, VmQuery
from virtha.control.views import Caller
from virtha.model.errors import InvalidInput
from virtha.model.facts import Happened
from virtha.model.ids import Incarnation
from virtha.model.user import Role
from virtha.model.vm import VmState

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
Tell = Callable[[Any], None]


async def names(world: Any, search: str, limit: int = 100, **wanted: Any) -> list[str]:
    """Of all pages."""
    found: list[str] = []
    after = None
    while True:
        query = VmQuery(search=search, limit=limit, after=after, **wanted)
        page = await world.control.vms.list(query)
        assert len(page.items) <= limit
        found += [view.vm.name for view in page.items]
        after = page.next
        if after is None:
            return found


def test_vms_are_found_beside_the_other_filters_and_page_by_page(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        for number, ha in enumerate((True, False, True, False, True)):
            await world.add_vm(f"vm{number}", ha=ha, vcpus=number % 2 + 1)
        for limit in (1, 2, 100):
            assert await names(world, "", limit) == ["vm0", "vm1", "vm2", "vm3", "vm4"]
            assert await names(world, "ha = true", limit) == ["vm0", "vm2", "vm4"]
            assert await names(world, "vcpus = 2", limit, ha=False) == ["vm1", "vm3"]
            assert await names(world, "Vms: status = down", limit, state=VmState.RUNNING) == []
            found = await names(world, "sortby vcpus desc", limit)
            assert found == ["vm1", "vm3", "vm0", "vm2", "vm4"]
        assert await names(world, "VM0") == []
        assert await names(world, "VM0", case_sensitive=False) == ["vm0"]
        assert await names(world, "sortby name desc page 2", 2) == ["vm2", "vm1"]

    tell(story)


@pytest.mark.req("W9")
def test_vms_are_found_by_their_last_watchdog_event(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm("calm")
        await world.add_vm("web1")
        vm_id, host = await world.run_vm("web1")
        assert await names(world, "last_event != null") == []
        fired = Happened(
            code="vm.watchdog.fired",
            vm_id=vm_id,
            incarnation=Incarnation(1),
            fields={"action": "reset", "model": "i6300esb"},
        )
        await host.tell(fired)
        assert await names(world, "last_event != null") == ["web1"]
        assert await names(world, "last_event = null") == ["calm"]
        assert await names(world, 'last_event > "2023-01-01"') == ["web1"]
        assert await names(world, "last_event = today and watchdog_events = 1") == ["web1"]
        assert await names(world, "last_event > -1h") == ["web1"]
        world.clock.advance(2 * 86_400_000)
        assert await names(world, "last_event > yesterday") == []
        assert await names(world, "last_event < yesterday") == ["web1"]

    tell(story)


@pytest.mark.parametrize("search", [None, "ha = true"])
def test_a_page_of_many_vms_takes_as_many_statements_as_one_of_few(
    tell: Tell, search: str | None
) -> None:
    """Whether another host could take each included: that is told of their cluster's hosts."""

    async def story(world: Any) -> None:
        for host in ("h1", "h2"):
            await world.join(host)
        await world.add_storage()
        counted = []
        for first, many in ((0, 1), (1, 4)):
            for number in range(first, first + many):
                await world.add_vm(f"vm{number:02}", ha=True)
            with statements(world.store) as made:
                page = await world.control.vms.list(VmQuery(search=search))
            assert len(page.items) == first + many
            counted.append(len(made))
        assert counted[0] == counted[1] < 20, counted

    tell(story)


def test_a_page_of_many_hosts_takes_as_many_statements_as_one_of_few(tell: Tell) -> None:
    async def story(world: Any) -> None:
        counted = []
        for first, many in ((0, 1), (1, 6)):
            for number in range(first, first + many):
                await world.join(f"h{number:02}")
            with statements(world.store) as made:
                page = await world.control.hosts.list(SearchQuery())
            assert len(page.items) == first + many
            counted.append(len(made))
        assert counted[0] == counted[1] < 12, counted

    tell(story)


def test_each_list_takes_a_search(tell: Tell) -> None:
    async def story(world: Any) -> None:
        control = world.control
        await world.join("h1")
        await world.join("h2")
        await world.add_storage()
        await world.add_vm("web1")
        await control.clusters.create(ADMIN, ClusterCreate(name="second"))

        async def found(part: Any, text: str, **more: Any) -> list[Any]:
            return list((await part.list(SearchQuery(search=text, **more))).items)

        hosts = await found(control.hosts, "number > 0 sortby name desc")
        assert [view.host.name for view in hosts] == ["h2", "h1"]
        (cluster,) = await found(control.clusters, "Vms.name = web1")
        assert cluster.name != "second"
        (storage,) = await found(control.storage, "name = ds* and type = directory")
        assert storage.domain.name == "ds1"
        assert await found(control.templates, "ha = true") == []
        users = await found(control.users, "role = administrator enabled = true sortby usrname")
        assert [user.name for user in users] == ["admin"]
        first = await control.clusters.list(SearchQuery(search="sortby name", limit=1))
        (last,) = await found(control.clusters, "sortby name", after=first.next)
        assert {first.items[0].name, last.name} == {cluster.name, "second"}

    tell(story)


def test_events_are_found_beside_the_other_filters(tell: Tell) -> None:
    async def story(world: Any) -> None:
        await world.join("h1")
        await world.add_storage()
        await world.add_vm("web1")
        await world.add_vm("web2")
        listed = world.control.events.list

        async def found(search: str, **more: Any) -> list[tuple[str, str | None]]:
            events = (await listed(EventQuery(search=search, **more))).items
            return [(event.code, event.fields.get("vm")) for event in events]

        made = [("vm.created", "web2"), ("vm.created", "web1")]
        assert await found("code = vm.created") == made
        assert await found("code = vm.created", order="asc") == made[::-1]
        assert await found("code = vm.created sortby time asc") == made[::-1]
        assert await found("code = vm.created", vm="web1") == made[1:]
        both = "event_vm = web2 and message = *web2* and usrname = admin"
        assert await found(both, code="vm.c*") == made[:1]
        first = await listed(EventQuery(search="code = vm.created", limit=1))
        rest = await listed(EventQuery(search="code = vm.created", after=int(first.next)))
        assert [event.fields["vm"] for event in rest.items] == ["web1"]
        assert rest.next is None

    tell(story)


@pytest.mark.bad_input("search that can't be read")
@pytest.mark.parametrize(
    ("after", "search"),
    [
        ("web1", ""),
        ("!", ""),
        ("A" * 5_000, ""),
        (base64.urlsafe_b64encode(b'{"value":1}').decode(), ""),
        (base64.urlsafe_b64encode(b'{"value":[],"name":"a"}').decode(), ""),
        (base64.urlsafe_b64encode(b'{"value":1e400,"name":"a"}').decode(), ""),
        (base64.urlsafe_b64encode(b'{"value":99999999999999999999,"name":"a"}').decode(), ""),
        (base64.urlsafe_b64encode(b'{"value":"\\ud800","name":"a"}').decode(), ""),
        (base64.urlsafe_b64encode(b'{"value":null,"name":"a"}').decode(), "page 2"),
    ],
)
def test_a_cursor_that_is_none_is_refused(tell: Tell, after: str, search: str) -> None:
    async def story(world: Any) -> None:
        with pytest.raises(InvalidInput) as caught:
            await world.control.vms.list(VmQuery(search=search, after=after))
        assert caught.value.field == "after"

    tell(story)
