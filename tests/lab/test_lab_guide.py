"""The guide, followed by its words on bare Debian machines: wheel, systemd units, a first cluster up to a pulled plug."""

import itertools
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from debian_machines import ROOT, Bmc, Machine, Machines, wait_for
from event_times import seconds_after
from guide_page import Block, is_seen, read_page
from terminal import Said
from told_replays import tell_replay

from virtha.lab.image import tiny_image
from virtha.lab.journals import ServerJournals
from virtha.lab.namespaces import ProcessId, command_line, processes_with_init
from virtha.lab.node import qemu_guest, wait_until

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(3_600)]

PROGRAM = "1. The program"
BMC_PASSWORD = "of-the-bmcs"
_TOKEN = re.compile(r"virtha-join\.[A-Za-z0-9-]+\.[A-Za-z0-9_-]+\.[0-9a-f]+")
_PLACEHOLDER = "virtha-join.…"
WATCHDOG_S = 15.0
"""Longer than the default of ``lease.watchdog``."""
RUNS_AGAIN_S = 60.0
"""After both plugs of its host were pulled, by the page's own word."""


class Reader:
    """Does what a page says. What it can't know beforehand, a token or a password, it has from what it has seen."""

    def __init__(self, server: Machine, hosts: Sequence[Machine]) -> None:
        self.server = server
        self.hosts = hosts
        self.seen: dict[str, str] = {}

    def machines(self, block: Block) -> list[Machine]:
        match block.machine:
            case "server":
                return [self.server]
            case "host":
                return [*self.hosts]
            case "machine":
                return [self.server, *self.hosts]
            case name:
                return [host for host in self.hosts if host.name == name]

    def follow(self, block: Block) -> Said:
        """On each of its machines, as typed; what the last one said."""
        lines = block.lines.replace(_PLACEHOLDER, self.seen.get("token", _PLACEHOLDER))
        said = Said(1, "")
        if "--image" in lines:  # both pages say that it takes up to a minute to be seen
            wait_for(self.server, "virtha image list | grep -q debian12")
        machines = self.machines(block)
        assert machines, f"line {block.line}: no machine is called {block.machine}"
        for machine in machines:
            said = machine.type(lines, self._answers())
            print(f"--- {machine.name}, line {block.line}\n{lines}\n--- {said.code}\n{said.text}")
            assert said.code == 0, f"{machine.name}, line {block.line}: {said.text[-3_000:]}"
            self._keep(said.text)
        if block.seen:
            assert is_seen(block.seen, said.text), f"not seen: {block.seen}\n--- but {said.text}"
        return said

    def _answers(self) -> list[tuple[str, str]]:
        return [
            # All of a prompt: what is typed before its last blank is thrown away.
            (r"\[y/N\]: $", "y"),
            (r"^User: $", "admin"),
            (r"^Password of admin: $", self.seen.get("password", "")),
            (r"^(Password|Repeat for confirmation): $", BMC_PASSWORD),
        ]

    def _keep(self, said: str) -> None:
        if found := _TOKEN.search(said):
            self.seen["token"] = found[0]
        if found := re.search(r"^ +password +(\S+)", said, re.MULTILINE):
            self.seen["password"] = found[1]


def network_of_machines(name: str) -> Machines:
    """Taken down by the next run, if this one is killed: ``conftest``."""
    return Machines(Path(f"/tmp/virtha-lab-test-{name}-{os.getpid()}"))


@pytest.fixture(scope="module")
def installed() -> Iterator[dict[str, list[Path]]]:
    """Disks of ``server`` and ``host`` after step 1 of install.md and first-cluster.md; no machine has been booted."""
    blocks = [each for each in read_page("install.md") if each.section.startswith(PROGRAM)]
    blocks += [each for each in read_page("first-cluster.md") if each.section.startswith(PROGRAM)]
    assert [each.machine for each in blocks] == ["source", "machine", "host", "server"]
    subprocess.run(["bash", "-ec", blocks[0].lines], cwd=ROOT, check=True)
    machines = network_of_machines("layers")
    try:
        layers = {"machine": machines.layer("machine")}
        layers["machine"].install(blocks[1].lines, sorted((ROOT / "dist").glob("virtha-*")))
        below = [layers["machine"].changes]
        for block in blocks[2:]:
            layers[block.machine] = machines.layer(block.machine, below)
            layers[block.machine].install(block.lines)
        yield {name: [*below, layers[name].changes] for name in ("server", "host")}
    finally:
        machines.close()


@pytest.fixture
def machines(request: pytest.FixtureRequest) -> Iterator[Machines]:
    made = network_of_machines("guide")
    try:
        yield made
    finally:
        if request.session.testsfailed:
            _show_logs(made)
        made.close()


def _show_logs(machines: Machines) -> None:
    for machine in machines.all:
        if machine.is_on():
            units = "virtha-server virtha-agent virtha-guardian libvirtd"
            said = machine.ask(
                f"systemctl --no-pager --failed; for one in {units};"
                " do journalctl --no-pager -n 30 -u $one; done"
            )
            print(f"=== {machine.name}\n{said.stdout}{said.stderr}")


@pytest.fixture
def storage(machines: Machines) -> Path:
    made = machines.directory / "storage"
    (made / "images").mkdir(parents=True)
    return made


def image_for(host: Machine) -> None:
    """The reader's own image."""
    target = host.changes / "root/debian12.qcow2"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(tiny_image(print), target)


def qemus(host: Machine) -> list[ProcessId]:
    """Those of web1."""
    if host.init is None:
        return []
    processes = processes_with_init(host.init)
    return [one for one in processes if qemu_guest(command_line(one)) == "web1"]


def follow_page(
    reader: Reader, name: str, arrive_at: Callable[[str], None], leave: Callable[[str], None]
) -> None:
    """From step 2 on. ``arrive_at`` and ``leave``: what is done by hand, or looked at, around a section."""
    blocks = [each for each in read_page(name) if not each.section.startswith(PROGRAM)]
    for section, its_blocks in itertools.groupby(blocks, lambda block: block.section):
        arrive_at(section)
        for block in its_blocks:
            reader.follow(block)
        leave(section)


def process_of(machine: Machine, unit: str) -> str:
    return machine.ask(f"systemctl show --value --property=MainPID {unit}").stdout.strip()


def killed_and_back(machine: Machine, unit: str) -> None:
    before = process_of(machine, unit)
    assert int(before) > 0, f"{unit} does not run"
    assert machine.ask(f"kill -9 {before}").returncode == 0
    wait_for(
        machine,
        f"systemctl is-active {unit} && "
        f'test "$(systemctl show --value --property=MainPID {unit})" != {before}',
    )


def unit_states(machine: Machine) -> dict[str, str]:
    """Our unit files -> enabled, disabled."""
    listed = machine.ask("systemctl list-unit-files --no-legend 'virtha*'").stdout
    return {words[0]: words[1] for words in map(str.split, listed.splitlines())}


def journals_decide_the_same(request: pytest.FixtureRequest, server: Machine) -> None:
    """Those of the page's server, on its disk, replayed by this program: its wheel was built of the same sources (X2)."""
    journals = ServerJournals(server.changes, server.directory / "replayed")
    replayed = journals.replay()
    tell_replay(request.config, f"{request.node.name}'s server", replayed)
    assert replayed.is_the_same, replayed


class Installation:
    """What is looked at while install.md is followed."""

    def __init__(self, server: Machine, host: Machine) -> None:
        self.server = server
        self.host = host
        self.qemu: list[ProcessId] = []

    def arrive_at(self, section: str) -> None:
        if section == "Removal":
            assert qemus(self.host) == self.qemu, "the upgrade touched the VM"
            done = self.host.ask("virtha agent uninstall")
            assert done.returncode == 4
            assert "this host holds 1 protected VMs: web1" in done.stderr
            wait_for(self.server, "virtha vm power-off web1; virtha vm delete web1 --yes")
        if section == "After its next boot":
            self.host.reboot()
            assert self.host.ask("systemctl is-active virtha-guardian").stdout == "inactive\n"

    def leave(self, section: str) -> None:
        if section.startswith("5."):
            self.qemu = qemus(self.host)
            assert len(self.qemu) == 1
            self._services_are_killed()
            self._units_are_lost()
            self._host_is_rebooted()
        if section == "Removal":
            time.sleep(WATCHDOG_S)  # for the host to be reset, had its watchdog not been fed on
            assert self.host.is_on()
            # The guardian's stays for as long as it runs, and it does not begin at the next boot.
            assert unit_states(self.host) == {"virtha-guardian.service": "disabled"}
            assert self.host.ask("ls /etc/libvirt/hooks/qemu.d/virtha").returncode != 0
            assert self.host.ask("virsh list --all --name").stdout.strip() == ""
        if section == "After its next boot":
            assert unit_states(self.host) == {}
            assert self.host.ask("command -v virtha").returncode != 0
            assert self.host.ask("virsh list --all").returncode == 0

    def _services_are_killed(self) -> None:
        """kill -9 of each, then a restart of each: all come back, no VM is touched."""
        for unit in ("virtha-agent", "virtha-guardian"):
            killed_and_back(self.host, unit)
        killed_and_back(self.server, "virtha-server")
        assert self.host.ask("systemctl restart virtha-guardian virtha-agent").returncode == 0
        wait_for(self.host, "virtha agent check")
        wait_for(self.server, "virtha host list | grep -q 'h1.*up'")
        assert qemus(self.host) == self.qemu

    def _units_are_lost(self) -> None:
        """A unit that somebody deleted is named with what brings it back."""
        for machine, noun, unit in (
            (self.host, "agent", "virtha-guardian"),
            (self.server, "server", "virtha-server"),
        ):
            path = f"/etc/systemd/system/{unit}.service"
            assert machine.ask(f"rm {path}").returncode == 0
            said = machine.ask(f"virtha {noun} check")
            assert f"{path} is missing" in said.stdout
            assert f"virtha {noun} install-units" in said.stdout
            assert machine.ask(f"virtha {noun} install-units").returncode == 0
            wait_for(machine, f"virtha {noun} check && systemctl is-active {unit}")

    def _host_is_rebooted(self) -> None:
        """The way down tells the agent; on the way up the agent begins last, when guardian and libvirt are there."""
        boot = self.host.read("/proc/sys/kernel/random/boot_id")
        self.host.reboot()
        assert self.host.read("/proc/sys/kernel/random/boot_id") != boot
        told = self.host.ask("journalctl --no-pager -b -1 -o cat").stdout
        assert "tell the agent that this host goes down" in told
        wait_for(self.host, "virtha agent check")
        started = {
            unit: int(
                self.host.ask(
                    f"systemctl show --value --property=ActiveEnterTimestampMonotonic {unit}"
                ).stdout
            )
            for unit in ("libvirtd", "virtha-guardian", "virtha-agent")
        }
        assert sorted(started, key=started.__getitem__)[-1] == "virtha-agent"
        wait_until(lambda: qemus(self.host) != [], "web1 is back", timeout_s=300.0)
        self.qemu = qemus(self.host)
        assert len(self.qemu) == 1


@pytest.mark.bad_input("unit that is missing", story=True)
def test_installing_upgrading_and_removing(
    machines: Machines,
    installed: dict[str, list[Path]],
    storage: Path,
    request: pytest.FixtureRequest,
) -> None:
    """One server, one host, under a real systemd."""
    server = machines.server("virtha", installed["server"])
    host = machines.host(1, installed["host"], storage)
    image_for(host)
    machines.boot()
    looked = Installation(server, host)
    follow_page(Reader(server, [host]), "install.md", looked.arrive_at, looked.leave)
    journals_decide_the_same(request, server)


class FirstCluster:
    """What the reader of first-cluster.md does by hand."""

    def __init__(self, machines: Machines, server: Machine, hosts: list[Machine]) -> None:
        self.machines = machines
        self.server = server
        self.hosts = hosts

    def arrive_at(self, section: str) -> None:
        match section.partition(".")[0]:
            case "8":
                wait_for(self.server, "virtha vm list | grep -q 'web1.*running'")
            case "9":
                self._pull_the_plug()
            case "10":
                self.machines.bmcs["h1"].start()
                self.hosts[0].boot()
                wait_for(self.server, "virtha host list | grep -q 'h1.*up'")
                assert qemus(self.hosts[0]) == []

    def leave(self, section: str) -> None:
        if section.startswith("10."):
            assert sum(len(qemus(host)) for host in self.hosts) == 1

    def _pull_the_plug(self) -> None:
        """BMC and host, without a word; the VM must run elsewhere, once."""
        assert len(qemus(self.hosts[0])) == 1
        began_s = time.time()
        self.machines.bmcs["h1"].stop()
        self.hosts[0].cut_power()
        wait_until(
            lambda: any(qemus(host) for host in self.hosts[1:]),
            "web1 runs on another host",
            timeout_s=300.0,
            pause_s=0.5,
        )
        assert sum(len(qemus(host)) for host in self.hosts[1:]) == 1
        asked = "virtha event list --vm web1 --code vm.recovered -o json"
        wait_for(self.server, f"{asked} | grep -q vm.recovered")
        (told,) = json.loads(self.server.ask(asked).stdout)
        after_s = seconds_after(began_s, told)
        print(f"web1 ran elsewhere {after_s:.1f} s after the plug was pulled")
        assert after_s <= RUNS_AGAIN_S, "the page says: within a minute"


def test_first_cluster_up_to_a_pulled_plug(
    machines: Machines,
    installed: dict[str, list[Path]],
    storage: Path,
    request: pytest.FixtureRequest,
) -> None:
    server = machines.server("virtha", installed["server"])
    hosts = [machines.host(number, installed["host"], storage) for number in (1, 2, 3)]
    image_for(hosts[0])
    machines.boot()
    for host in hosts:
        machines.bmcs[host.name] = Bmc(host, server, password=BMC_PASSWORD)
    done_by_hand = FirstCluster(machines, server, hosts)
    follow_page(
        Reader(server, hosts), "first-cluster.md", done_by_hand.arrive_at, done_by_hand.leave
    )
    journals_decide_the_same(request, server)
