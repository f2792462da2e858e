"""Guests and QEMUs that fail on real hosts: recorded, and back without anybody's help."""

import os

import pytest

from virtha.lab import faults, guest
from virtha.lab.node import wait_until
from virtha.lab.story import EVENT_TIMEOUT_S, Story
from virtha.lab.watching import LibvirtWitness

pytestmark = [pytest.mark.lab, pytest.mark.timeout(400)]
FIRES_WITHIN_S = 120.0
KILLS = int(os.environ.get("VIRTHA_LAB_KILLS", "7"))
"""One after the other while no server runs; `make verify` has the twenty of the acceptance run."""


@pytest.mark.req("W2", "W6", "W7", "W11", "A3", "A8", "W12")
def test_a_reset_a_killed_qemu_and_a_panic_of_one_vm(story: Story) -> None:
    vm_id = story.create_vm("web1", watchdog="i6300esb:reset")["vm"]["id"]
    story.wait_agent("web1")
    first = story.look("web1")
    assert (first.boots, first.bootstatus) == (1, 0)
    with LibvirtWitness(story.lab.host_of("web1")) as libvirt:
        # The watchdog daemon is killed: the card resets the guest, the manager knows.
        revision = story.revision()
        faults.hang_guest(story.lab, "web1")
        libvirt.wait_for("web1", "watchdog", timeout_s=FIRES_WITHIN_S)
        fired = story.wait_event("web1", "vm.watchdog.fired", after=revision)
        assert fired["fields"]["action"] == "reset"
        assert fired["fields"]["model"] == "i6300esb"
        assert (fired["severity"], fired["vm_id"]) == ("warning", vm_id)
        story.wait_agent("web1")
        second = story.look("web1")
        assert (second.boots, second.bootstatus) == (2, 32)
        view = story.api.vm("web1")
        assert view["status"]["watchdog_count"] == 1
        assert view["status"]["state"] == "running"
        assert not story.events("web1", revision, "vm.restart.ordered"), "a reset is no crash"

        # QEMU is killed: the agent starts it again at once, on the same disk.
        revision, seen = story.revision(), libvirt.mark()
        _, old, _ = faults.kill_qemu(story.lab, "web1")
        libvirt.wait_for("web1", "resumed", after=seen, timeout_s=EVENT_TIMEOUT_S)
        story.wait_event("web1", "vm.crashed", after=revision)
        story.wait_event("web1", "vm.restarted", after=revision)
        new = story.lab.host_of("web1").qemu_of("web1")
        assert new is not None
        assert new != old
        story.wait_agent("web1")
        assert story.look("web1").boots == 3

        # Its kernel panics: pvpanic tells, the VM is started anew, evidence is kept.
        revision = story.revision()
        faults.panic_guest(story.lab, "web1")
        story.wait_event("web1", "vm.panicked", after=revision)
        story.wait_event("web1", "vm.restarted", after=revision)
        story.wait_event("web1", "vm.evidence.kept", after=revision)
        story.wait_agent("web1")
        assert story.look("web1").boots == 4
    assert len(story.lab.copies_of("web1")) == 1


@pytest.mark.req("W2", "W6", "W7")
def test_a_poweroff_watchdog_on_machine_pc_with_ib700(story: Story) -> None:
    story.create_vm("db1", watchdog="ib700:poweroff", machine="pc")
    story.wait_agent("db1")
    revision = story.revision()
    faults.hang_guest(story.lab, "db1")
    fired = story.wait_event("db1", "vm.watchdog.fired", after=revision)
    assert fired["fields"]["action"] == "poweroff"
    story.wait_event("db1", "vm.restarted", after=revision)
    story.wait_agent("db1")
    assert story.look("db1").boots == 2
    codes = [event["code"] for event in story.events("db1", revision)]
    assert codes.count("vm.watchdog.fired") == 1
    assert "vm.crashed" not in codes, "a power-off by the card is no crash of QEMU"


@pytest.mark.req("W6", "W7")
def test_pause_dump_and_none(story: Story) -> None:
    # Longer than the twenty characters that libvirt puts into the names of its dumps.
    names = {action: f"w-{action}-of-the-watchdog" for action in ("pause", "dump", "none")}
    for action, name in names.items():
        story.create_vm(name, watchdog=f"i6300esb:{action}")
    for name in names.values():
        story.wait_agent(name)
    revision = story.revision()
    for name in names.values():
        faults.hang_guest(story.lab, name)
    for action, name in names.items():
        fired = story.wait_event(name, "vm.watchdog.fired", after=revision)
        assert fired["fields"]["action"] == action
    # none: nothing but the event; it runs on and its agent answers.
    assert guest.agent_answers(story.lab.host_of(names["none"]), names["none"])
    assert story.look(names["none"]).boots == 1
    for action in ("pause", "dump"):
        paused = story.wait_state(names[action], "paused")
        assert "vm.paused.watchdog" in {reason["code"] for reason in paused["status"]["reasons"]}
    # The guest's memory is where the event says.
    dumped = story.wait_event(names["dump"], "vm.dumped", after=revision)
    dump = story.lab.host_of(names["dump"]).path_inside(dumped["fields"]["path"])
    assert dump.stat().st_size > 1 << 20
    # The user resumes it, and it is the same guest as before.
    story.api.operate(f"/v1/vms/{names['pause']}/resume")
    story.wait_state(names["pause"], "running")
    story.wait_agent(names["pause"])
    assert story.look(names["pause"]).boots == 1


@pytest.mark.req("W6", "W12")
def test_a_dump_that_fails_is_told_as_such_and_names_no_older_file(story: Story) -> None:
    story.create_vm("nodump", watchdog="i6300esb:dump")
    host = story.lab.host_of("nodump")
    directory = "/var/lib/libvirt/qemu/dump"

    def fire() -> int:
        story.wait_agent("nodump")
        revision = story.revision()
        faults.hang_guest(story.lab, "nodump")
        story.wait_event("nodump", "vm.watchdog.fired", after=revision)
        return revision

    def start_again() -> None:
        # QEMU's card is off after it fired, and the guest's driver believes that it runs: a new start.
        story.wait_state("nodump", "paused")
        story.api.operate("/v1/vms/nodump/power-off")
        story.wait_state("nodump", "down")
        story.start_vm("nodump", host=host.name)

    first = story.wait_event("nodump", "vm.dumped", after=fire())
    start_again()
    # libvirt can't write there any more, and the first dump is still there.
    host.run_checked(["mount", "--bind", directory, directory])
    host.run_checked(["mount", "-o", "remount,bind,ro", directory])
    try:
        revision = fire()
        failed = story.wait_event("nodump", "vm.dump_failed", after=revision)
        assert directory in failed["fields"]["detail"]
        assert not story.events("nodump", revision, "vm.dumped")
    finally:
        host.run_checked(["umount", directory])
    start_again()
    last = story.wait_event("nodump", "vm.dumped", after=fire())
    assert last["fields"]["path"] != first["fields"]["path"]


@pytest.mark.req("W11")
def test_a_guest_that_never_opened_the_card_is_left_alone(story: Story) -> None:
    story.create_vm("calm", watchdog="i6300esb:reset")
    story.wait_agent("calm")
    # TERM disarms the card, as a clean stop of the daemon does: from here on nobody has it open.
    host = story.lab.host_of("calm")
    guest.execute(host, "calm", "killall -TERM watchdog")
    revision = story.revision()
    uptime = story.look("calm").uptime_s
    wait_until(
        lambda: story.look("calm").uptime_s > uptime + 10.0,
        "ten seconds of guest time go by",
        timeout_s=90.0,
        pause_s=0.5,
    )
    assert story.look("calm").boots == 1
    assert not story.events("calm", revision, "vm.watchdog.*")


@pytest.mark.req("A8", "W6")
def test_stops_on_purpose_are_not_undone(story: Story) -> None:
    story.create_vm("app1")
    story.wait_agent("app1")
    host = story.lab.host_of("app1")
    begin = story.revision()
    # The guest shuts itself down.
    guest.begin(host, "app1", "sleep 0.2; /sbin/shutdown -P")
    down = story.wait_state("app1", "down")
    assert "vm.down.guest_shutdown" in {reason["code"] for reason in down["status"]["reasons"]}
    # libvirt's own tools destroy it.
    story.start_vm("app1", host=host.name)
    host.run_checked(["virsh", "destroy", "app1"])
    down = story.wait_state("app1", "down")
    assert "vm.down.destroyed_outside" in {reason["code"] for reason in down["status"]["reasons"]}
    # The operator shuts it down (ACPI button and guest agent), then powers it off.
    story.start_vm("app1", host=host.name)
    story.wait_agent("app1")
    story.api.operate("/v1/vms/app1/shutdown")
    story.wait_state("app1", "down")
    story.start_vm("app1", host=host.name)
    story.api.operate("/v1/vms/app1/power-off")
    story.wait_state("app1", "down")
    codes = {event["code"] for event in story.events("app1", begin)}
    assert not codes & {"vm.restart.ordered", "vm.restarted", "vm.crashed"}
    assert story.lab.copies_of("app1") == []


@pytest.mark.req("A8")
def test_without_ha_a_crash_is_recorded_only(story: Story) -> None:
    story.create_vm("loose", ha=False)
    revision = story.revision()
    faults.kill_qemu(story.lab, "loose")
    story.wait_event("loose", "vm.crashed", after=revision)
    down = story.wait_state("loose", "down")
    codes = {reason["code"] for reason in down["status"]["reasons"]}
    assert "restart.blocked.not_ha" in codes
    assert story.lab.copies_of("loose") == []


@pytest.mark.req("X1")
def test_on_hold_nothing_is_restarted_and_the_reason_is_told(story: Story) -> None:
    story.create_vm("held")
    host = story.lab.host_of("held")
    story.lab.virtha("hold", "moving cables")
    settled = host.root / "var/lib/virtha/agent/settings.json"
    wait_until(
        lambda: b"moving cables" in host.path_inside(settled).read_bytes(),
        "the agent has the hold",
        timeout_s=60.0,
    )
    revision = story.revision()
    faults.kill_qemu(story.lab, "held")
    down = story.wait_state("held", "down")
    assert "restart.blocked.hold" in {reason["code"] for reason in down["status"]["reasons"]}
    assert story.lab.copies_of("held") == []
    story.lab.virtha("unhold")
    assert not [
        event
        for event in story.events("held", revision, "vm.restarted")
        if event["at"] < story.events("held", revision)[-1]["at"]
    ]


@pytest.mark.req("A8", "W7")
def test_with_the_server_stopped_a_killed_qemu_runs_again_each_time(story: Story) -> None:
    """How soon: `make bench NAME=crash_restart`."""
    vm_id = story.create_vm("alone")["vm"]["id"]
    revision = story.revision()
    host = story.lab.host_of("alone")
    record = host.root / f"var/lib/virtha/agent/records/{vm_id}.json"
    faults.kill_server(story.lab)
    taken = []
    with LibvirtWitness(host) as libvirt:
        for _ in range(KILLS):
            seen = libvirt.mark()
            _, _, killed_at = faults.kill_qemu(story.lab, "alone")
            runs = libvirt.wait_for("alone", "resumed", after=seen, timeout_s=EVENT_TIMEOUT_S)
            taken.append(runs.at_s - killed_at)
            # A kill in the same instant would be one of a restart that has not ended yet.
            wait_until(
                lambda: b'"state":"running"' in record.read_bytes(),
                "the agent has written down that it runs",
                timeout_s=60.0,
                pause_s=0.005,
            )
    print("ran again after", [round(one, 2) for one in taken], "s")
    faults.start_server_again(story.lab)
    # The history is complete and in order: crash, order, restart, each time.
    wanted = ["vm.crashed", "vm.restart.ordered", "vm.restarted"]

    def history() -> list[str]:
        codes = [event["code"] for event in story.events("alone", revision)]
        return [code for code in codes if code in wanted]

    wait_until(
        lambda: history().count("vm.restarted") >= KILLS,
        "the server knows of all restarts",
        timeout_s=60.0,
        pause_s=0.1,
    )
    assert history() == wanted * KILLS
    events = [e for e in story.events("alone", revision) if e["host_sequence"] is not None]
    sequences = [event["host_sequence"] for event in events]
    assert sequences == sorted(set(sequences))
