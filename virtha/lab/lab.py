"""A lab as one thing: making it, looking at it, taking it down."""

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from virtha.lab import network, preflight, state
from virtha.lab.acceleration import accelerator
from virtha.lab.api import Api
from virtha.lab.bmc import Bmc
from virtha.lab.commands import run
from virtha.lab.image import tiny_image
from virtha.lab.namespaces import (
    delete_network_namespace,
    identify,
    kill,
    network_namespaces,
    processes_in_network,
    wait_gone,
)
from virtha.lab.node import SERVICE_S, STORAGE_NAME, Node, wait_until
from virtha.lab.progress import Steps
from virtha.lab.state import LabState, NodeState
from virtha.model.errors import Conflict, Failed, InvalidInput, NotFound, Unavailable

HOSTS_MAX = 32
DOWN_ROUNDS_MAX = 10
JOINS_S = 240.0
"""Four programs begin at once on each host's first day; a machine that runs other things takes a minute and more."""
_MARK = "a virtha lab; 'virtha lab down' deletes this directory\n"
_MARK_NAME = "VIRTHA-LAB"


class Lab:
    """An existing lab. Keeps nothing itself: every change of its state goes to the disk at once, and every look at it comes from
    there. A ``Node`` is what it was when it was asked for."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @staticmethod
    def open(directory: Path) -> "Lab":
        """Raises NotFound where none is."""
        state.read_state(directory)
        return Lab(directory)

    @property
    def state(self) -> LabState:
        """As it is on disk now: commands, tests and BMCs change it at the same time."""
        return state.read_state(self.directory)

    def node(self, name: str) -> Node:
        return Node(self.state, self.state.node(name))

    def nodes(self, kind: str) -> list[Node]:
        return [Node(self.state, node) for node in self.state.nodes if node.kind == kind]

    @property
    def hosts(self) -> list[Node]:
        return self.nodes("host")

    @property
    def server(self) -> Node:
        return self.nodes("server")[0]

    def host(self, name: str) -> Node:
        found = self.node(name)
        if found.state.kind != "host":
            raise InvalidInput(
                f"'{name}' is no host",
                field="name",
                allowed=tuple(node.name for node in self.hosts),
            )
        return found

    def bmc(self, name: str) -> Bmc:
        """Of a host."""
        return Bmc(self.host(name), self.server)

    def change(self, **fields: Any) -> None:
        """Fields of ``LabState``."""
        state.change_state(self.directory, lambda found: msgspec.structs.replace(found, **fields))

    def change_node(self, name: str, **fields: Any) -> NodeState:
        """Fields of ``NodeState``; what others changed of it meanwhile stays. Returns all of it."""

        def change(found: LabState) -> LabState:
            return found.with_node(msgspec.structs.replace(found.node(name), **fields))

        return state.change_state(self.directory, change).node(name)

    @contextmanager
    def power_button(self, name: str) -> Iterator[None]:
        """One finger at a time: a BMC may switch a host on while a test does."""
        with state.locked(self.node(name).directory):
            yield

    def api(self) -> Api:
        return Api(self.server.root / "run/virtha/server.sock")

    def virtha(self, *words: str, timeout_s: float = 60.0) -> str:
        """Run the product's own command line as root on the server."""
        return run(
            [sys.executable, "-m", "virtha.cli.main", *words],
            environment={"VIRTHA_ROOT": str(self.server.root)},
            timeout_s=timeout_s,
        )

    def host_of(self, vm: str) -> Node:
        """Where its QEMU runs, by what runs. Raises Unavailable when it runs nowhere."""
        for host in self.hosts:
            if host.is_on() and host.qemu_of(vm) is not None:
                return host
        raise Unavailable(f"{vm} runs on no host of the lab")

    def copies_of(self, vm: str) -> list[str]:
        """Names of all hosts where a QEMU of this VM runs: more than one is a disaster."""
        return [host.name for host in self.hosts if host.is_on() and host.qemu_of(vm) is not None]


def up(
    directory: Path, *, hosts: int, servers: int = 1, port: int = 0, steps: Steps | None = None
) -> Lab:
    """Build a lab and wait until every host is protected. Raises what went wrong; what was built by
    then stays for looking at, and ``down`` takes it away."""
    steps = steps or Steps()
    if not 1 <= hosts <= HOSTS_MAX:
        raise InvalidInput(f"{hosts} hosts", field="hosts", allowed=(f"1 to {HOSTS_MAX}",))
    if servers != 1:
        raise InvalidInput(f"{servers} servers", field="servers", allowed=("1",))
    preflight.require()
    with state.exclusive(directory):
        lab = _prepare(directory, hosts, steps)
        with steps.step("network and directories"):
            _make_network(lab)
        with steps.step("server: set up, started"):
            _start_server(lab, port)
        with steps.step(f"{hosts} BMCs started"):
            _start_bmcs(lab)
        with steps.step(f"{hosts} hosts: joined, libvirt, guardian and agent started"):
            _start_hosts(lab)
        with steps.step("hosts are up, each start gate is proved"):
            wait_hosts(lab)
        with steps.step(f"storage domain {STORAGE_NAME} with image tiny"):
            _add_storage(lab)
        lab.change(ready=True)
    return lab


def _prepare(directory: Path, hosts: int, steps: Steps) -> Lab:
    identity = state.lab_id(directory)
    if (directory / state.STATE_NAME).exists() or network_namespaces(f"{identity}-"):
        raise Conflict(
            f"there is a lab in {directory} already",
            fix=f"run 'virtha lab down --dir {directory}' first, or choose another --dir",
        )
    if directory.exists() and any(directory.iterdir()) and not (directory / _MARK_NAME).exists():
        raise Conflict(
            f"{directory} is not empty and no lab", field="dir", fix="choose another directory"
        )
    image = tiny_image(steps.say)
    found = accelerator(image, steps.say)
    # Written down before anything exists: a crash from here on leaves what `down` can find.
    directory.mkdir(parents=True, exist_ok=True)
    (directory / _MARK_NAME).write_text(_MARK)
    state.register(directory)
    nodes = [NodeState(name="s1", number=1, kind="server")]
    nodes += [NodeState(name=f"h{n}", number=n, kind="host") for n in range(1, hosts + 1)]
    state.write_state(
        LabState(id=identity, directory=str(directory), accelerator=found, nodes=tuple(nodes))
    )
    for name in (f"storage/{STORAGE_NAME}/images", "storage/other", "shared"):
        (directory / name).mkdir(parents=True, exist_ok=True)
    shutil.copy(image, directory / f"storage/{STORAGE_NAME}/images/tiny.qcow2")
    return Lab(directory)


def _make_network(lab: Lab) -> None:
    network.make_switch(f"{lab.state.id}-sw")
    for node in (*lab.nodes("server"), *lab.hosts):
        node.make_files()
        node.make_network()


def _start_server(lab: Lab, port: int) -> None:
    server = lab.server
    server.boot(services_on=())
    lab.change_node(server.name, init=server.state.init)
    # Only its address: hosts of the lab ask no name server. Loopback names are always in it.
    shown_once = server.run_checked(
        ["virtha", "server", "init", "--names", server.address, "--json"], timeout_s=JOINS_S
    )
    secrets = server.directory / "secrets.json"
    secrets.touch(mode=0o600)
    secrets.write_text(shown_once)
    start_server(server)
    _start_forward(lab, port)


def start_server(server: Node) -> None:
    """Start the server program and wait until it answers on its Unix socket."""
    server.order(do="start", name="server")
    socket_path = server.root / "run/virtha/server.sock"

    def answers() -> bool:
        if "server" not in server.running_services():
            raise Failed(f"the server ended at once: {server.last_words('server')}")
        try:
            with Api(socket_path) as api:
                return api.request("GET", "/healthz").status_code == 200
        except Unavailable:
            return False

    wait_until(answers, "the server answers", timeout_s=SERVICE_S, pause_s=0.05)


def _start_forward(lab: Lab, port: int) -> None:
    ready = lab.directory / "forward.port"
    ready.unlink(missing_ok=True)
    forward = start_beside(
        lab.directory / "forward.log",
        [
            *(sys.executable, "-m", "virtha.lab.forward", lab.server.namespace),
            *(f"{lab.server.address}:8443", str(port), str(ready)),
        ],
        lambda: ready.exists() and ready.read_text().endswith("\n"),
        "the forward to the lab",
    )
    lab.change(forward=forward, forward_port=int(ready.read_text()))


def _start_bmcs(lab: Lab) -> None:
    bmcs = {host.name: lab.bmc(host.name) for host in lab.hosts}
    for bmc in bmcs.values():
        bmc.make_files()
    chassis = start_beside(
        lab.directory / "chassis.log",
        [
            *("nsenter", f"--net=/run/netns/{lab.server.namespace}"),
            *(sys.executable, "-m", "virtha.lab.chassis", str(lab.directory)),
        ],
        lambda: all(bmc.chassis_socket.exists() for bmc in bmcs.values()),
        "the chassis of the lab's hosts",
    )
    lab.change(chassis=chassis)
    for name, bmc in bmcs.items():
        lab.change_node(name, bmc=bmc.start())


def start_beside(
    log_path: Path, command: list[str], listens: Callable[[], bool], what: str
) -> state.ProcessId | None:
    """Start ``what``, which outlives this command on purpose (`down` ends it), and wait until it listens.
    Raises Failed with its last words where it ends instead."""
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd="/",
        )

    def is_ready() -> bool:
        if process.poll() is not None:
            text = log_path.read_text(errors="replace")
            raise Failed(f"{what} ended: {text[-500:]}")
        return listens()

    wait_until(is_ready, f"{what} listens", timeout_s=60.0)
    found = identify(process.pid)
    process.returncode = 0  # nobody here waits for it
    return found


def _start_hosts(lab: Lab) -> None:
    token = _join_token(lab)
    hosts = lab.hosts
    with ThreadPoolExecutor(max_workers=4) as pool:
        booted = [pool.submit(host.boot, ("storage",)) for host in hosts]
        failures = [job.exception() for job in booted if job.exception() is not None]
        for host in hosts:
            lab.change_node(host.name, init=host.state.init)
        _raise_first(failures)
        joined = [pool.submit(_join_and_start, lab, host, token) for host in hosts]
        _raise_first([job.exception() for job in joined if job.exception() is not None])


def _raise_first(failures: list[BaseException | None]) -> None:
    for failure in failures:
        if failure is not None:
            raise failure


def _join_token(lab: Lab) -> str:
    with lab.api() as api:
        made = api.post("/v1/tokens", {"uses_max": len(lab.hosts), "description": "lab"})
    return str(made["secret"])


def _join_and_start(lab: Lab, host: Node, token: str) -> None:
    """Join first: libvirt looks for its hooks once, when it starts, and for its certificates."""
    url = f"https://{lab.server.address}:8443"
    for words in (
        ("join", url, "--token", token, "--name", host.name),
        ("setup-migration", "--address", host.address),
    ):
        host.run_checked(["virtha", "agent", *words], timeout_s=JOINS_S)
    for service in ("virtlogd", "libvirtd", "guardian", "agent"):
        host.start_service(service)


def hosts_not_up(lab: Lab) -> list[str]:
    """What is still missing, per host, in words; empty: all hosts can take VMs."""
    missing = []
    with lab.api() as api:
        found = {item["host"]["name"]: item for item in api.get("/v1/hosts")["items"]}
    for host in lab.hosts:
        item = found.get(host.name)
        if item is None:
            missing.append(f"{host.name}: not joined")
        elif item["status"]["state"] != "up":
            missing.append(f"{host.name}: {item['status']['state']}")
        elif not item["agent_connected"]:
            # A server just started goes on calling it up until it had time to come back.
            missing.append(f"{host.name}: its agent is not connected")
        elif not item["beating"]:
            missing.append(f"{host.name}: no beat of its guardian")
        elif not item["status"]["capabilities"]["gate_in_force"]:
            missing.append(f"{host.name}: its start gate is not proved")
    return missing


def wait_hosts(lab: Lab) -> None:
    try:
        wait_until(
            lambda: not hosts_not_up(lab), "all hosts are up", timeout_s=JOINS_S, pause_s=0.1
        )
    except Failed as error:
        words = "; ".join(
            f"{missing} (agent: {lab.node(missing.partition(':')[0]).last_words('agent', 3)})"
            for missing in hosts_not_up(lab)
        )
        raise Failed(f"{error.message}: {words}") from error


def _add_storage(lab: Lab) -> None:
    path = lab.hosts[0].storage
    lab.virtha("storage", "add", STORAGE_NAME, "--path", str(path))
    wait_storage(lab)


def storage_is_usable(lab: Lab) -> bool:
    """By all hosts, by what they say of it."""
    with lab.api() as api:
        view = api.get(f"/v1/storage-domains/{STORAGE_NAME}")
    images = {image["name"] for image in view["images"]}
    usable_by = view["usable_by"]
    return "tiny" in images and len(usable_by) == len(lab.hosts) and all(usable_by.values())


def wait_storage(lab: Lab) -> None:
    """Until no host says otherwise of it: one that has just begun, or whose lease was late, does for a while."""
    wait_until(
        lambda: storage_is_usable(lab),
        f"all hosts can use {STORAGE_NAME}",
        timeout_s=60.0,
        pause_s=0.1,
    )


def down(directory: Path, *, keep_files: bool = False, steps: Steps | None = None) -> bool:
    """Stop all that a lab has started, by process id, and delete what it made. Needs no state
    file, finds what a crash left behind, and may be called any number of times.

    Returns False when there was nothing to do.
    """
    steps = steps or Steps()
    identity = state.lab_id(directory)
    with state.exclusive(directory):
        namespaces = network_namespaces(f"{identity}-")
        is_ours = (directory / _MARK_NAME).exists()
        ended = _end_processes(_from_state(directory), namespaces)
        for namespace in namespaces:
            delete_network_namespace(namespace)
        if is_ours and not keep_files:
            shutil.rmtree(directory)
        elif is_ours:
            (directory / state.STATE_NAME).unlink(missing_ok=True)
        state.unregister(directory)
    if namespaces or ended or is_ours:
        steps.say(
            f"lab in {directory}: {ended} processes ended, {len(namespaces)} namespaces deleted"
            + (", files kept" if keep_files else "")
        )
        return True
    return False


def _from_state(directory: Path) -> list[state.ProcessId]:
    try:
        found = state.read_state(directory)
    except (NotFound, Failed):
        return []  # lost or damaged: the namespaces below still find everything
    inits = [node.init for node in found.nodes if node.init is not None]
    bmcs = [node.bmc for node in found.nodes if node.bmc is not None]
    beside = [process for process in (found.forward, found.chassis) if process is not None]
    return [*inits, *bmcs, *beside]


def _end_processes(known: Iterable[state.ProcessId], namespaces: list[str]) -> int:
    """Kill until none is left: a process may be born while we look."""
    ended = 0
    targets = [process for process in known if process.is_alive()]
    for _ in range(DOWN_ROUNDS_MAX):
        targets += processes_in_network(namespaces)
        if not targets:
            return ended
        ended += sum(kill(process) for process in targets)
        wait_gone(targets, timeout_s=20.0)
        targets = []
    left = ", ".join(str(process.pid) for process in processes_in_network(namespaces))
    if left:
        raise Failed(f"processes {left} of the lab in {namespaces} can't be ended")
    return ended
