"""The stock oVirt SDK for Python, as its index has it, against a real server process over TLS. Only the hosts' VMs are played."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ovirtsdk4 as sdk
import pytest
from ovirtsdk4 import types
from own_bmc import PASSWORD as BMC_PASSWORD
from own_bmc import IpmiSim
from server_process import PASSWORD
from story import VIEWER_PASSWORD, Story
from test_notification_routes import MAIL

from virtha.lab.bmc import USER

pytestmark = pytest.mark.req("W3")
WAIT_S = 90.0
BLANK = types.Template(name="Blank")
RESET = types.Watchdog(action=types.WatchdogAction.RESET, model=types.WatchdogModel.I6300ESB)


def connect(story: Story, user: str = "admin@internal", password: str = PASSWORD) -> sdk.Connection:
    authority = story.server.root / "var/lib/virtha/server/authority/authority.crt"
    return sdk.Connection(
        url=f"{story.url}/ovirt-engine/api",
        username=user,
        password=password,
        ca_file=str(authority),
    )


def answered(story: Story, token: str) -> int:
    """By the status alone: refused, the SDK would sign in anew."""
    with story.server.rest() as client:
        headers = {"Authorization": f"Bearer {token}"}
        return client.get("/ovirt-engine/api", headers=headers).status_code


@pytest.fixture
def system(story: Story) -> Iterator[Any]:
    connection = connect(story)
    try:
        yield connection.system_service()
    finally:
        connection.close()


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def create(system: Any, name: str, **more: Any) -> tuple[types.Vm, Any]:
    vm = types.Vm(name=name, cluster=types.Cluster(name="default"), **{"template": BLANK, **more})
    made = system.vms_service().add(vm)
    service = system.vms_service().vm_service(made.id)
    until(lambda: service.get().status is types.VmStatus.DOWN)
    return made, service


def the_one(system: Any, name: str) -> types.Vm:
    (found,) = system.vms_service().list(search=f"name={name}")
    return found


def card_of(service: Any) -> tuple[types.WatchdogModel, types.WatchdogAction] | None:
    cards = service.watchdogs_service().list()
    assert len(cards) <= 1
    return (cards[0].model, cards[0].action) if cards else None


# The cases of the source document, under their names


@pytest.mark.req("W1")
def test_create_vm_with_watchdog_rest_api(system: Any) -> None:
    """Create vm with watchdog (REST-API): with the tag at its creation; the card is persisted."""
    made, service = create(system, "rest-create", watchdogs=[RESET])
    assert card_of(service) == (RESET.model, RESET.action)
    read = system._connection.follow_link(made.watchdogs)
    assert [one.model for one in read] == [RESET.model]


@pytest.mark.req("W1")
def test_create_vm_with_the_tag_as_the_source_document_writes_it(story: Story, system: Any) -> None:
    """``<watchdog>`` directly under the VM; and there it is shown again."""
    body = """<vm><name>rest-tag</name><cluster><name>default</name></cluster><template><name>Blank</name></template>
        <watchdog><model>i6300esb</model><action>reset</action></watchdog></vm>"""
    with story.rest() as client:
        headers = {"Content-Type": "application/xml"}
        answer = client.post("/api/vms", content=body, headers=headers)
        assert answer.status_code == 201, answer.text
        shown = client.get("/api/vms", params={"search": "name=rest-tag"}).text
    assert "<watchdog><action>reset</action><model>i6300esb</model></watchdog>" in shown
    assert 'rel="watchdogs"' in shown
    vm = the_one(system, "rest-tag")
    assert card_of(system.vms_service().vm_service(vm.id)) == (RESET.model, RESET.action)


@pytest.mark.req("W1")
@pytest.mark.bad_input("second watchdog", story=True)
def test_add_watchdog_to_existing_vm_rest_api(system: Any) -> None:
    """Add watchdog to existing VM (REST-API). A second one is refused, and the first stays."""
    _, service = create(system, "rest-add")
    assert card_of(service) is None
    cards = service.watchdogs_service()
    added = cards.add(RESET)
    assert added.vm.id == service.get().id and card_of(service) == (RESET.model, RESET.action)
    with pytest.raises(sdk.Error, match=r"problem\.watchdog\.second") as second:
        cards.add(
            types.Watchdog(action=types.WatchdogAction.NONE, model=types.WatchdogModel.I6300ESB)
        )
    assert second.value.code == 409
    one = cards.watchdog_service(added.id)
    changed = one.update(types.Watchdog(action=types.WatchdogAction.POWEROFF))
    assert (changed.model, changed.action) == (RESET.model, types.WatchdogAction.POWEROFF)
    assert card_of(service) == (RESET.model, types.WatchdogAction.POWEROFF)
    with pytest.raises(sdk.Error, match="Incomplete parameters"):
        cards.add(types.Watchdog(action=types.WatchdogAction.NONE))


@pytest.mark.req("W1")
@pytest.mark.bad_input("protection that is not kept", story=True)
def test_what_was_read_is_written_back_and_nothing_is_lost(system: Any) -> None:
    """The SDK sends links as it read them, with nothing in them: that is no wish to have none."""
    _, service = create(system, "rest-back", watchdogs=[RESET])
    vm = service.get()
    vm.description = "written back"
    assert service.update(vm).description == "written back"
    assert card_of(service) == (RESET.model, RESET.action)
    vm.delete_protected = True
    with pytest.raises(sdk.Error, match=r"delete_protected: another value is not kept"):
        service.update(vm)
    assert service.get().delete_protected is False


@pytest.mark.req("W1")
def test_remove_watchdog_from_vm_rest_api(story: Story, system: Any) -> None:
    """Remove watchdog from VM (REST-API): the element disappears."""
    made, service = create(system, "rest-remove", watchdogs=[RESET])
    cards = service.watchdogs_service()
    (card,) = cards.list()
    cards.watchdog_service(card.id).remove()
    assert card_of(service) is None
    with pytest.raises(sdk.NotFoundError):
        cards.watchdog_service(card.id).get()
    with pytest.raises(sdk.NotFoundError):
        cards.watchdog_service(card.id).remove()
    with story.rest() as client:
        shown = client.get(f"/api/vms/{made.id}").text
    assert "<watchdog>" not in shown and 'rel="watchdogs"' in shown


@pytest.mark.req("W1", "W5")
def test_create_template_with_watchdog_and_a_vm_with_watchdog_from_template(system: Any) -> None:
    """Create template with watchdog; Create vm with watchdog from template: both ways over REST."""
    made, _ = create(system, "rest-source", watchdogs=[RESET])
    templates = system.templates_service()
    template = templates.add(types.Template(name="rest-golden", vm=types.Vm(id=made.id)))
    service = templates.template_service(template.id)
    until(lambda: service.get().status is types.TemplateStatus.OK)
    assert card_of(service) == (RESET.model, RESET.action)
    child, child_service = create(
        system, "rest-child", template=types.Template(id=template.id), description="a child"
    )
    assert card_of(child_service) == (RESET.model, RESET.action)
    (card,) = service.watchdogs_service().list()
    service.watchdogs_service().watchdog_service(card.id).update(
        types.Watchdog(action=types.WatchdogAction.PAUSE)
    )
    _, later = create(system, "rest-later", template=types.Template(name="rest-golden"))
    assert card_of(later) == (RESET.model, types.WatchdogAction.PAUSE)
    assert card_of(child_service) == (RESET.model, RESET.action)  # it keeps what it was made with
    service.watchdogs_service().watchdog_service(card.id).remove()
    assert card_of(service) is None
    added = service.watchdogs_service().add(RESET)
    assert added.template.id == template.id
    with pytest.raises(sdk.Error, match=r"problem\.watchdog\.second"):
        service.watchdogs_service().add(RESET)
    own = types.Watchdog(action=types.WatchdogAction.DUMP, model=types.WatchdogModel.I6300ESB)
    _, with_own = create(system, "rest-own", template=template, watchdogs=[own])
    assert card_of(with_own) == (own.model, own.action)
    assert child.name == "rest-child"


# What clients do beside


def test_who_asks_and_what_there_is(story: Story) -> None:
    connection = connect(story)
    assert connection.test(raise_exception=True)
    api = connection.system_service().get()
    assert api.product_info.name == "virtha" and api.product_info.version.major == 4
    assert api.summary.hosts.total == 2 and api.authenticated_user.id
    assert connection.follow_link(api.special_objects.blank_template).name == "Blank"
    token = connection.authenticate()
    assert answered(story, token) == 200
    connection.close()
    assert answered(story, token) == 401
    with pytest.raises(sdk.AuthError, match="Cannot authenticate"):
        connect(story, password="wrong").authenticate()
    eve = connect(story, "eve@internal", VIEWER_PASSWORD)
    vms = eve.system_service().vms_service()
    assert [vm.name for vm in vms.list(search="name=web1")] == ["web1"]
    with pytest.raises(sdk.AuthError, match="operator") as forbidden:
        vms.vm_service(vms.list(search="name=web1")[0].id).start()
    assert forbidden.value.code == 403
    eve.close()


@pytest.mark.req("W4")
def test_capabilities_list_the_models_and_actions_as_the_source_document_has_it(
    story: Story,
) -> None:
    with story.rest() as client:
        text = client.get("/api/capabilities").text
    assert "<watchdog_models><watchdog_model>i6300esb</watchdog_model>" in text
    assert "<watchdog_model>ib700</watchdog_model>" in text
    for action in ("dump", "reset", "none", "pause", "poweroff"):
        assert f"<watchdog_action>{action}</watchdog_action>" in text


def test_a_vm_is_started_moved_to_no_host_and_stopped(story: Story, system: Any) -> None:
    _, service = create(system, "rest-power", memory=1 << 30, description="by the SDK")
    service.start()
    until(lambda: service.get().status is types.VmStatus.UP)
    vm = service.get(follow="host,cluster")
    assert vm.host.name == "h1" and vm.cluster.name == "default" and vm.start_time is not None
    assert system._connection.follow_link(service.get().host).name == "h1"
    with pytest.raises(sdk.Error, match="is running") as again:
        service.start()
    assert again.value.code == 409
    with pytest.raises(sdk.Error, match="suspended"):
        service.suspend()
    with pytest.raises(sdk.Error):
        service.remove()
    service.reboot()
    changed = service.update(
        types.Vm(memory=2 << 30, high_availability=types.HighAvailability(enabled=True))
    )
    assert changed.memory == 2 << 30 and changed.high_availability.enabled
    service.stop()
    until(lambda: service.get().status is types.VmStatus.DOWN)
    service.remove()

    def gone() -> bool:
        return system.vms_service().list(search="name=rest-power") == []

    until(gone)
    with pytest.raises(sdk.NotFoundError):
        service.get()


def test_disks_cards_and_snapshots_of_a_vm(system: Any) -> None:
    made, service = create(system, "rest-devices")
    disk = types.Disk(
        name="data",
        provisioned_size=1 << 30,
        format=types.DiskFormat.COW,
        storage_domains=[types.StorageDomain(name="ds1")],
    )
    attachments = service.disk_attachments_service()
    added = attachments.add(
        types.DiskAttachment(
            disk=disk, interface=types.DiskInterface.VIRTIO, bootable=True, active=True
        )
    )
    (attachment,) = attachments.list()
    assert attachment.id == added.id and attachment.interface is types.DiskInterface.VIRTIO
    shown = system.disks_service().disk_service(added.disk.id).get()
    assert (shown.name, shown.provisioned_size) == ("data", 1 << 30)
    nics = service.nics_service()
    (profile,) = system.vnic_profiles_service().list()
    nic = nics.add(types.Nic(name="nic1", vnic_profile=types.VnicProfile(id=profile.id)))
    assert nic.mac.address and nics.list()[0].id == nic.id
    eth0 = nics.add(types.Nic(name="eth0", vnic_profile=types.VnicProfile(id=profile.id)))
    with pytest.raises(sdk.Error, match=r"is called eth0 already"):
        nics.add(types.Nic(name="eth0", vnic_profile=types.VnicProfile(id=profile.id)))
    with pytest.raises(sdk.Error, match="br0"):
        nics.add(types.Nic(name="nic2", vnic_profile=types.VnicProfile(id=made.id)))
    snapshots = service.snapshots_service()
    snapshot = snapshots.add(types.Snapshot(description="before the change"))
    assert {one.description for one in snapshots.list()} == {"Active VM", "before the change"}
    snapshots.snapshot_service(snapshot.id).remove()
    nics.nic_service(nic.id).remove()
    assert [(one.id, one.name) for one in nics.list()] == [(eth0.id, "eth0")]
    attachments.attachment_service(added.id).remove()
    assert attachments.list() == []
    followed = service.get(follow="tags,permissions,graphics_consoles,host_devices,statistics")
    assert list(followed.host_devices) == [] and len(followed.graphics_consoles) == 1
    assert {one.name for one in followed.statistics} >= {"memory.installed"}


@pytest.mark.bad_input("some of a VM's disks", story=True)
def test_a_snapshot_of_some_disks_and_going_back_with_some_are_refused(system: Any) -> None:
    """Taking the others along would lose what was written to them since."""
    _, service = create(system, "rest-some-disks")
    attachments = service.disk_attachments_service()
    root, data = [
        attachments.add(
            types.DiskAttachment(
                disk=types.Disk(name=name, provisioned_size=1 << 30),
                interface=types.DiskInterface.VIRTIO,
            )
        )
        for name in ("root", "data")
    ]
    snapshots = service.snapshots_service()
    for more in (
        {"disk_attachments": [types.DiskAttachment(disk=types.Disk(id=root.id))]},
        {"disk_attachments": [types.DiskAttachment(id=data.id)]},
        {"disks": [types.Disk(id=root.id)]},
        {"disks": [types.Disk(name="root"), types.Disk(id=data.id)]},
        {"disks": []},
    ):
        with pytest.raises(sdk.Error, match=f"disks: .*not of some.*{root.id}") as refused:
            snapshots.add(types.Snapshot(description="before", **more))
        assert refused.value.code == 409
    assert [one.description for one in snapshots.list()] == ["Active VM"]
    both = [types.DiskAttachment(disk=types.Disk(id=one.id)) for one in (data, root)]
    taken = snapshots.add(types.Snapshot(description="before", disk_attachments=both))
    snapshot = snapshots.snapshot_service(taken.id)
    until(lambda: snapshot.get().snapshot_status is types.SnapshotStatus.OK)
    for disks in ([types.Disk(id=root.id)], [types.Disk(id=data.id)], []):
        with pytest.raises(sdk.Error, match=r"disks: .*not of some"):
            snapshot.restore(disks=disks)
    with pytest.raises(sdk.Error, match="restore_memory: another value is not kept"):
        snapshot.restore(restore_memory=True)
    jobs = [one.description for one in system.jobs_service().list()]
    assert not any("revert" in one for one in jobs), jobs
    snapshot.restore(disks=[types.Disk(id=root.id), types.Disk(id=data.id)])
    snapshot.restore(restore_memory=False)


def test_events_are_read_on_from_the_last_one(system: Any) -> None:
    events = system.events_service()
    (newest,) = events.list(max=1)
    create(system, "rest-events")
    after = events.list(from_=int(newest.id))
    assert after and all(int(one.id) > int(newest.id) for one in after)
    assert [int(one.id) for one in after] == sorted((int(one.id) for one in after), reverse=True)
    (created,) = [one for one in after if one.vm is not None and one.code == 2000]
    assert created.severity is types.LogSeverity.NORMAL and "rest-events" in created.description
    assert events.event_service(created.id).get().id == created.id
    (first,) = events.list(from_=int(newest.id), max=1)
    assert int(first.id) == min(int(one.id) for one in after)  # the oldest: who follows skips none


@pytest.mark.req("W9")
def test_searches_are_the_databases_with_the_fields_of_high_availability(system: Any) -> None:
    vms, events = system.vms_service(), system.events_service()
    for name in ("find-a", "find-b", "find-c"):
        create(system, name, watchdogs=[RESET] if name != "find-b" else [])

    def names(search: str, **more: Any) -> list[str]:
        return [vm.name for vm in vms.list(search=search, **more)]

    assert names("name = find-* and watchdog = i6300esb") == ["find-a", "find-c"]
    assert names("name = find-* and (watchdog = null or name = find-a)") == ["find-a", "find-b"]
    assert names("Vms: name = find-* sortby name desc", max=2) == ["find-c", "find-b"]
    assert names("name = find-* sortby name asc page 2", max=2) == ["find-c"]
    assert names("name = FIND-A", case_sensitive=False) == ["find-a"] and not names("name = FIND-A")
    assert names("name = find-a and Clusters.name = default and datacenter = default") == ["find-a"]
    with pytest.raises(sdk.Error, match=r"search: .*column 1"):
        vms.list(search="colour = red")
    blank = system.templates_service().list(search="name=Blank and datacenter=default")
    assert [one.name for one in blank] == ["Blank"]
    assert system.templates_service().list(search="name=find-a") == []
    assert [one.name for one in system.data_centers_service().list(search="name=def*")] == [
        "default"
    ]
    assert system.disks_service().list(search="name = none-such") == []
    usrname = system.users_service().list(search="usrname=eve@internal")
    assert [one.name for one in usrname] == ["eve"]
    mine = "event_vm = find-b and severity = normal"
    found = events.list(search=mine)
    assert found and {one.vm.id for one in found} == {the_one(system, "find-b").id}
    ids = [int(one.id) for one in found]
    assert ids == sorted(ids, reverse=True)
    oldest = ids[-1]
    assert [int(one.id) for one in events.list(search=mine, from_=oldest)] == ids[:-1]
    assert int(events.list(search=mine, from_=oldest - 1, max=1)[0].id) == oldest
    upward = events.list(search=f"{mine} sortby time asc", from_=oldest - 1)
    assert [int(one.id) for one in upward] == ids[::-1]
    assert [int(one.id) for one in events.list(search=f"{mine} page 1", max=1)] == ids[:1]
    with pytest.raises(sdk.Error, match=r"\[from: "):
        events.list(search=f"{mine} page 1", from_=oldest)


@pytest.mark.req("W7")
def test_a_user_is_subscribed_to_an_event_by_mail(story: Story, system: Any) -> None:
    with story.rest() as client:
        receiver = {"name": "mail1", "settings": MAIL}
        assert client.post("/v1/receivers", json=receiver).status_code == 201
        changed = client.patch("/v1/users/eve", json={"email": "eve@example.org"})
        assert changed.status_code == 200
    (eve,) = system.users_service().list(search="name=eve")
    service = system.users_service().user_service(eve.id).event_subscriptions_service()
    wanted = types.EventSubscription(
        event=types.NotifiableEvent.HA_VM_RESTART_FAILED,
        notification_method=types.NotificationMethod.SMTP,
    )
    made = service.add(wanted)
    (listed,) = service.list()
    assert (listed.id, listed.event, listed.address) == (made.id, wanted.event, "eve@example.org")
    with pytest.raises(sdk.Error, match="already"):
        service.add(wanted)
    with pytest.raises(sdk.Error, match=r"\[event: .*allowed: .*watchdog_event"):
        service.add(types.EventSubscription(event=types.NotifiableEvent.DWH_STOPPED))
    service.event_subscription_service(made.id).remove()
    assert service.list() == []
    with story.rest() as client:
        assert client.delete("/v1/receivers/mail1").status_code == 204


@pytest.mark.req("F5")
def test_fence_agents_are_managed_and_a_host_is_fenced(system: Any, tmp_path: Path) -> None:
    sim = IpmiSim(tmp_path)
    sim.start()
    try:
        (host,) = system.hosts_service().list(search="name=h2")
        service = system.hosts_service().host_service(host.id)
        agents = service.fence_agents_service()
        with pytest.raises(sdk.Error, match=r"Agent \[address, order, type, username, password\]"):
            agents.add(types.Agent(port=sim.port))
        agent = agents.add(
            types.Agent(
                address="127.0.0.1",
                port=sim.port,
                type="ipmilan",
                username=USER,
                password=BMC_PASSWORD,
                order=1,
                options=[types.Option(name="lanplus", value="1")],
            )
        )
        (listed,) = agents.list()
        assert (listed.type, listed.order, listed.password) == ("ipmilan", 1, None)
        assert service.get().power_management.enabled
        status = service.fence(fence_type="status")
        assert status.status is types.PowerManagementStatus.ON
        service.fence(fence_type="stop")
        assert (tmp_path / "power").read_text().strip() == "0"
        assert service.fence(fence_type="status").status is types.PowerManagementStatus.OFF
        with pytest.raises(sdk.Error, match="confirm-dead"):
            service.fence(fence_type="manual")
        one = agents.agent_service(agent.id)
        assert one.update(types.Agent(order=2)).order == 2
        assert (one.get().order, one.get().address) == (2, "127.0.0.1")
        with pytest.raises(sdk.Error, match=r"agent\.options\.colour"):
            one.update(types.Agent(options=[types.Option(name="colour", value="red")]))
        one.remove()
        assert agents.list() == []
    finally:
        sim.stop()


def test_clusters_hosts_storage_and_the_rest(system: Any) -> None:
    (cluster,) = system.clusters_service().list()
    assert cluster.fencing_policy.enabled and cluster.version.major == 4
    (center,) = system.data_centers_service().list()
    assert center.id == cluster.data_center.id and center.status is types.DataCenterStatus.UP
    attached = (
        system.data_centers_service().data_center_service(center.id).storage_domains_service()
    )
    assert [one.name for one in attached.list()] == ["ds1"]
    statuses = {one.name: one.status for one in system.hosts_service().list()}
    assert statuses["h1"] is types.HostStatus.UP
    other = system.clusters_service().add(
        types.Cluster(name="other", description="made by the SDK")
    )
    service = system.clusters_service().cluster_service(other.id)
    assert service.update(types.Cluster(description="changed")).description == "changed"
    service.remove()
    assert [one.id for one in system.cluster_levels_service().list()] == ["4.7"]
    assert {one.name for one in system.operating_systems_service().list()} >= {"other"}
    assert system.jobs_service().list(max=3)
    assert [one.name for one in system.users_service().list(search="name=eve")] == ["eve"]
    assert {one.name for one in system.roles_service().list()} == {
        "viewer",
        "operator",
        "administrator",
    }
    assert system.tags_service().list()[0].name == "root"
    assert system.networks_service().list()[0].name == "br0"
