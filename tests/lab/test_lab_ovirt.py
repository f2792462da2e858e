"""The stock oVirt SDK for Python over TLS, on real hosts: what it makes boots, its cards fire, and a BMC that it gives switches its host."""

import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import ovirtsdk4 as sdk
import pytest
from ovirtsdk4 import types

from virtha.lab import bmc, faults, guest
from virtha.lab.node import wait_until
from virtha.lab.story import Story, bmcs

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(900)]
PATIENCE_S = 120.0
RESET = types.Watchdog(action=types.WatchdogAction.RESET, model=types.WatchdogModel.I6300ESB)
HIGHLY = types.HighAvailability(enabled=True, priority=50)


@pytest.fixture
def system(story: Story) -> Iterator[Any]:
    server = story.lab.server
    shown_once = json.loads((server.directory / "secrets.json").read_text())
    url = f"https://127.0.0.1:{story.lab.state.forward_port}/ovirt-engine/api"
    authority = str(server.root / "var/lib/virtha/server/authority/authority.crt")
    connection = sdk.Connection(
        url=url, username="admin@internal", password=shown_once["password"], ca_file=authority
    )
    assert connection.test(raise_exception=True)
    yield connection.system_service()
    token = connection.authenticate()
    trusted = ssl.create_default_context(cafile=authority)
    headers = {"Authorization": f"Bearer {token}"}
    with httpx.Client(headers=headers, verify=trusted, trust_env=False) as beside:
        assert beside.get(url).status_code == 200
        connection.close()
        assert beside.get(url).status_code == 401, "it is signed out"


def _until(look: Callable[[], bool], what: str) -> None:
    wait_until(look, what, timeout_s=PATIENCE_S, pause_s=0.2)


def _in_state(service: Any, status: types.VmStatus) -> None:
    _until(lambda: service.get().status is status, f"the VM is {status}")


@pytest.mark.req("W3", "W1", "W5")
def test_a_vm_of_a_template_lives_under_the_sdk_and_its_watchdog_resets_it(
    story: Story, system: Any
) -> None:
    origin = story.create_vm("origin1", watchdog=None, start=False)
    templates, vms = system.templates_service(), system.vms_service()
    gold = templates.add(types.Template(name="gold", vm=types.Vm(id=origin["vm"]["id"])))
    template = templates.template_service(gold.id)
    _until(
        lambda: template.get().status is types.TemplateStatus.OK,
        "the template is made",
    )
    made = vms.add(
        types.Vm(
            name="sdk1",
            cluster=types.Cluster(name="default"),
            template=types.Template(name="gold"),
            high_availability=HIGHLY,
        )
    )
    service = vms.vm_service(made.id)
    _in_state(service, types.VmStatus.DOWN)
    _card_comes_changes_and_goes(service)
    service.watchdogs_service().add(RESET)
    service.start()
    _in_state(service, types.VmStatus.UP)
    host = story.wait_running("sdk1")
    story.wait_agent("sdk1")
    xml = host.run_checked(["virsh", "dumpxml", "sdk1"])
    assert "model='i6300esb' action='reset'" in xml
    vm = service.get()
    assert system._connection.follow_link(vm.host).name == host.name
    (card,) = system._connection.follow_link(vm.watchdogs)
    assert (card.model, card.action) == (RESET.model, RESET.action)
    assert service.get(follow="host").host.name == host.name
    (found,) = vms.list(search=f"host = {host.name} and watchdog = i6300esb and status = up")
    assert found.id == made.id and found.high_availability.enabled
    _its_card_fires(story, system, made.id)
    service.stop()
    _in_state(service, types.VmStatus.DOWN)
    assert story.lab.copies_of("sdk1") == []
    service.remove()
    _until(lambda: vms.list(search="name = sdk1") == [], "the VM is gone")
    template.remove()
    _until(lambda: templates.list(search="name = gold") == [], "the template is gone")


def _card_comes_changes_and_goes(service: Any) -> None:
    cards = service.watchdogs_service()
    assert cards.list() == []
    added = cards.add(RESET)
    one = cards.watchdog_service(added.id)
    changed = one.update(types.Watchdog(action=types.WatchdogAction.POWEROFF))
    assert changed.action is types.WatchdogAction.POWEROFF
    one.remove()
    assert cards.list() == []


def _its_card_fires(story: Story, system: Any, vm_id: str) -> None:
    events = system.events_service()
    (newest,) = events.list(max=1)
    before = story.look("sdk1").boots
    faults.hang_guest(story.lab, "sdk1")

    def told() -> bool:
        return any(
            one.vm is not None and one.vm.id == vm_id and "watchdog" in one.description
            for one in events.list(from_=int(newest.id))
        )

    _until(told, "an event tells that its watchdog fired")
    guest.wait_for_agent(story.lab.host_of("sdk1"), "sdk1", timeout_s=PATIENCE_S)
    assert story.look("sdk1").boots == before + 1


@pytest.mark.req("W3", "F5")
def test_the_sdk_manages_fence_agents_and_fences_a_host(story: Story, system: Any) -> None:
    story.create_vm("web1", host="h1")
    services = {
        host.name: system.hosts_service().host_service(host.id)
        for host in system.hosts_service().list()
    }
    with bmcs(story) as made:
        for name, one in made.items():
            # As set up natively, then given up, and set up anew as an oVirt client does it.
            agents = services[name].fence_agents_service()
            (native,) = agents.list()
            agents.agent_service(native.id).remove()
            added = agents.add(
                types.Agent(
                    address=one.address,
                    type="ipmilan",
                    username=bmc.USER,
                    password=one.password,
                    order=1,
                    options=[types.Option(name="cipher", value="3")],
                )
            )
            assert [listed.id for listed in agents.list()] == [added.id]
            agent = agents.agent_service(added.id)
            assert agent.update(types.Agent(order=2)).order == 2
            changed = agent.get()
            assert (changed.order, changed.address) == (2, one.address)
            assert services[name].fence(fence_type="status").status is (
                types.PowerManagementStatus.ON
            )
        with pytest.raises(sdk.Error, match="move them first"):
            services["h1"].fence(fence_type="stop")
        assert made["h1"].orders() == []
        boot = _boot(story, "h2")
        services["h2"].fence(fence_type="restart")
        orders = made["h2"].orders()
        assert (orders[0], orders[-1]) == ("off!", "on"), orders
        _until(
            lambda: (
                services["h2"].get().status is types.HostStatus.UP and _boot(story, "h2") != boot
            ),
            "h2 is up in another boot",
        )
        for name in made:
            agents = services[name].fence_agents_service()
            for listed in agents.list():
                agents.agent_service(listed.id).remove()
            assert agents.list() == []
    assert story.lab.copies_of("web1") == ["h1"]


def _boot(story: Story, host: str) -> str:
    return str(story.api.get(f"/v1/hosts/{host}")["status"]["boot"])
