"""A host comes back in another boot: the server's engine starts its VM once, also when the server is killed meanwhile."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from played_host import JoinedHost, PlayedHost
from server_process import PASSWORD, Server, initialise
from story import Story, join_new, wait_until

from virtha.model.facts import Inventory
from virtha.model.ids import BootId
from virtha.model.orders import StartVm

LATER = BootId("played-boot-2")


class Installed:
    """Two hosts with live sessions; web1, which is to be protected, runs on h1."""

    def __init__(self, directory: Path) -> None:
        """``begin`` comes next; ``close`` in any case."""
        self.root = directory / "server"
        self.root.mkdir()
        made = initialise(self.root)
        self.server = Server(self.root)
        self.listen = self.server.ready["gateway"]
        self.story = Story(directory, self.server, made["authority_fingerprint"])
        self.hosts: list[PlayedHost] = []
        self.living: list[PlayedHost] = []
        self.joined: dict[str, JoinedHost] = {}

    def begin(self) -> None:
        assert self.story.sign_in("admin", PASSWORD).returncode == 0
        self.joined = {name: join_new(self.story, name) for name in ("h1", "h2")}
        self.h1 = self.play("h1")
        self.h2 = self.play("h2")
        self.story.ok("storage", "add", "ds1", "--path", "/srv/ds1", "--no-wait")
        for host in (self.h1, self.h2):
            wait_until(lambda host=host: len(host.orders) > 0)
            host.wait_acknowledged(host.outbox.last_sequence)
        self.story.ok("vm", "create", "web1", "--image", "tiny", "--ha")
        self.story.ok("vm", "start", "web1", "--host", "h1")

    def play(self, name: str, boot: str = "played-boot", *, starts: bool = True) -> PlayedHost:
        """Its agent and guardian come up, and tell what the host runs: nothing."""
        host = PlayedHost(self.joined[name], self.listen, boot=BootId(boot), starts=starts)
        self.hosts.append(host)
        self.living.append(host)
        host.wait_until_usable()
        host.tell(Inventory(revision=1, domains=()))
        return host

    def again(self) -> None:
        """The server is started anew, at the same address for its hosts."""
        self.server = Server(self.root, VIRTHA_GATEWAY_LISTEN=self.listen)
        self.story.server = self.server
        self.story.url = self.server.ready["url"]
        self.story._access = ""

    def close(self) -> None:
        for host in tuple(self.living):
            self.stop(host)
        self.server.close()

    def stop(self, host: PlayedHost) -> None:
        """Its processes end, with a goodbye."""
        self.living.remove(host)
        host.close()

    def vm(self) -> dict[str, object]:
        with self.story.rest() as client:
            found: dict[str, object] = client.get("/v1/vms/web1").json()
        return found

    def recoveries(self) -> list[tuple[BootId, int, str]]:
        """The engine's starts that hosts were sent: boot, incarnation, operation."""
        return [
            (host.boot, order.body.grant.incarnation, order.operation_id)
            for host in self.hosts
            for order in host.orders
            if isinstance(order.body, StartVm) and order.body.by == "engine"
        ]


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Installed]:
    made = Installed(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def runs(installed: Installed) -> bool:
    status = installed.vm()["status"]
    return isinstance(status, dict) and status["state"] == "running" and status["incarnation"] == 2


@pytest.mark.req("F3", "X1")
def test_a_rebooted_hosts_vm_is_started_once(installed: Installed) -> None:
    installed.stop(installed.h1)
    installed.play("h1", LATER)
    wait_until(lambda: runs(installed))
    assert len(set(installed.recoveries())) == 1
    view = installed.vm()
    assert view["holder_names"] == [view["host_name"]] and view["engine"] == []
    assert len(installed.story.events("vm.recovered")) == 1
    operations = installed.story.ok("operation", "list")
    assert "vm.recover" in operations
    shown = installed.story.ok("host", "show", "h1")
    assert "alive" in shown


@pytest.mark.req("F3")
@pytest.mark.parametrize("ordered", [False, True])
def test_a_server_killed_meanwhile_starts_it_once(installed: Installed, ordered: bool) -> None:
    """At its return to the server, or when the order has come to a host that has not answered it."""
    installed.stop(installed.h1)
    installed.stop(installed.h2)
    h2 = installed.play("h2", starts=not ordered)
    h1 = installed.play("h1", LATER, starts=not ordered)
    if ordered:
        wait_until(lambda: len(installed.recoveries()) == 1)
    installed.server.process.kill()
    installed.server.process.wait()
    sent = installed.recoveries()
    installed.server.close()
    installed.again()
    if ordered:
        for host in (h1, h2):
            host.starts = True
    wait_until(lambda: runs(installed))
    orders = installed.recoveries()
    assert {one[1] for one in orders} == {2} and len({one[2] for one in orders}) == 1
    assert set(sent) <= set(orders)
    assert len({one[0] for one in orders}) == 1, "one host"
    view = installed.vm()
    assert view["holder_names"] == [view["host_name"]]
    assert len(installed.story.events("vm.recovered")) == 1
