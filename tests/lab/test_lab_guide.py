"""The guide, followed by its words on bare Debian machines: wheel, systemd units, a first cluster up to a pulled plug."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from debian_machines import ROOT, Bmc, Machine, Machines, wait_for
from guide_page import Block, is_seen, read_page
from terminal import Said

from virtha.lab.image import tiny_image
from virtha.lab.node import wait_until

pytestmark = [pytest.mark.lab, pytest.mark.long, pytest.mark.timeout(3_600)]

PROGRAM = "1. The program"
BMC_PASSWORD = "of the BMCs"
_TOKEN = re.compile(r"virtha-join\.[A-Za-z0-9-]+\.[A-Za-z0-9_-]+\.[0-9a-f]+")
_PLACEHOLDER = "virtha-join.…"


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
            (r"Trust it\?", "y"),
            (r"^User: ?$", "admin"),
            (r"^Password of admin", self.seen.get("password", "")),
            (r"^Password", BMC_PASSWORD.replace(" ", "")),
        ]

    def _keep(self, said: str) -> None:
        if found := _TOKEN.search(said):
            self.seen["token"] = found[0]
        if found := re.search(r"^ +password +(\S+)", said, re.MULTILINE):
            self.seen["password"] = found[1]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(Path(f"/tmp/virtha-lab-test-guide-{os.getpid()}"))
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def installed(machines: Machines) -> dict[str, list[Path]]:
    """Disks of ``server`` and ``host`` after step 1 of install.md and first-cluster.md; no machine has been booted."""
    blocks = [each for each in read_page("install.md") if each.section == PROGRAM]
    blocks += [each for each in read_page("first-cluster.md") if each.section == PROGRAM]
    assert [each.machine for each in blocks] == ["source", "machine", "host", "server"]
    subprocess.run(["bash", "-ec", blocks[0].lines], cwd=ROOT, check=True)
    made = sorted((ROOT / "dist").glob("virtha-*"))
    layers = {"machine": machines.layer("machine")}
    layers["machine"].install(blocks[1].lines, made)
    below = [layers["machine"].changes]
    for block in blocks[2:]:
        layers[block.machine] = machines.layer(block.machine, below)
        layers[block.machine].install(block.lines)
    return {name: [*below, layers[name].changes] for name in ("server", "host")}


@pytest.fixture
def storage(machines: Machines, request: pytest.FixtureRequest) -> Path:
    made = machines.directory / f"storage-{request.node.name[:20]}"
    (made / "images").mkdir(parents=True)
    return made


def image_for(host: Machine) -> None:
    """The reader's own image."""
    target = host.changes / "root/debian12.qcow2"
    target.parent.mkdir(exist_ok=True)
    shutil.copy(tiny_image(print), target)


def qemus(host: Machine) -> list[str]:
    return host.ask("pgrep -f -a 'qemu-system.*guest=web1'").stdout.splitlines()


def test_first_cluster_up_to_a_pulled_plug(
    machines: Machines, installed: dict[str, list[Path]], storage: Path
) -> None:
    server = machines.server("virtha", installed["server"])
    hosts = [machines.host(number, installed["host"], storage) for number in (1, 2, 3)]
    image_for(hosts[0])
    machines.boot()
    for host in hosts:
        password = BMC_PASSWORD.replace(" ", "")
        machines.bmcs[host.name] = Bmc(host, server, password=password)
    reader = Reader(server, hosts)
    blocks = [each for each in read_page("first-cluster.md") if each.section != PROGRAM]
    sections = list(dict.fromkeys(each.section for each in blocks))
    for block in blocks:
        if block == next(each for each in blocks if each.section == block.section):
            _arrive_at(sections.index(block.section), sections, machines, server, hosts)
        reader.follow(block)


def _arrive_at(
    index: int, sections: list[str], machines: Machines, server: Machine, hosts: list[Machine]
) -> None:
    """What the page's reader does by hand, or waits for, before he types on."""
    title = sections[index]
    if title.startswith("8."):
        # Its heartbeats have been read by the others, and the guest is up: what a reader does not outrun.
        wait_for(server, "virtha vm list | grep -q 'web1.*up'")
    if title.startswith("9."):
        assert len(qemus(hosts[0])) == 1
        machines.bmcs["h1"].stop()
        hosts[0].cut_power()
        wait_until(
            lambda: any(qemus(host) for host in hosts[1:]),
            "web1 runs on another host",
            timeout_s=300.0,
            pause_s=0.5,
        )
        assert sum(len(qemus(host)) for host in hosts[1:]) == 1
    if title.startswith("10."):
        machines.bmcs["h1"].start()
        hosts[0].boot()
        wait_for(server, "virtha host list | grep -q 'h1.*up'")
        assert qemus(hosts[0]) == []
