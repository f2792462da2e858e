"""What a host costs the gateway: beats with acknowledgement per CPU-second, and memory per session.

A real gateway process (mutual TLS 1.3, real sessions) is pinned to one core; the load comes from this
process on another. CPU is the gateway's own run time by the scheduler (``schedstat``), so that other
work on the machine changes little. Closed loop: each guardian sends its next beat when the last one
is acknowledged, so the gateway gets one beat per read, as in life. The use cases behind the gateway
are kept in memory here: a beat never reaches them.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import structlog
from report import Figure, at_least, at_most, finish, shown

from virtha.control.views import GuardianAnswer, HelloAnswer
from virtha.drivers.link_connection import Connection, monotonic_ms
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.pki import (
    LocalAuthority,
    client_context,
    create_authority,
    make_key_and_csr,
    server_context,
)
from virtha.model.domain import DomainReport, DomainState
from virtha.model.facts import Fact, Inventory
from virtha.model.ids import BootId, HostId, InstallationId, Term, VmId
from virtha.model.orders import HostSettings
from virtha.model.policy import DetectionPolicy
from virtha.model.time import Millis
from virtha.server.gateway import Gateway
from virtha.wire.host_session import HostSession
from virtha.wire.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Beat,
    BeatAck,
    FactsAck,
    Hello,
    Message,
    PeerRole,
    Settings,
    Welcome,
)
from virtha.wire.session import Closed

INSTALLATION = InstallationId("bench")
GUARDIANS = 100
IDLE_SESSIONS = 500
MEASURE_S = 4.0
SNAPSHOT_VMS = 20


class MemoryUseCases:
    """Hosts are all allowed; of facts only the sequence is kept."""

    def __init__(self) -> None:
        self.acknowledged: dict[HostId, int] = {}
        self.hosts = self
        self.facts = self

    async def certificate_allowed(self, host_id: HostId, serial: str) -> bool:
        return True

    async def agent_lost(self, host_id: HostId) -> None:
        pass  # nothing is kept of it here

    async def hello(self, host_id: HostId, **_: Any) -> HelloAnswer:
        settings = HostSettings(revision=1, installation_id=INSTALLATION, term=Term(1))
        return HelloAnswer(
            installation_id=INSTALLATION,
            term=1,
            fact_sequence_acknowledged=self.acknowledged.get(host_id, 0),
            settings=settings,
            orders=(),
        )

    async def guardian_hello(self, host_id: HostId, *, term_elsewhere: Term) -> GuardianAnswer:
        return GuardianAnswer(term=Term(1), detection=DetectionPolicy())

    async def record_facts(self, host_id: HostId, carried_by: BootId, facts: Sequence[Fact]) -> int:
        self.acknowledged[host_id] = facts[-1].sequence
        return facts[-1].sequence


# The gateway's process


async def serve(pki: dict[str, str]) -> None:
    gateway = Gateway(clock=MachineClock(), installation_id=INSTALLATION)
    context = server_context(pki["authority"], pki["certificate"], pki["key"])
    port = await gateway.start(
        MemoryUseCases(), term=Term(1), context=context, host="127.0.0.1", port=0
    )
    print(port, flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await gateway.close()


def run_server(loop_name: str) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    pki = json.loads(sys.stdin.readline())
    _run(serve(pki), loop_name)


def _run(main: Any, loop_name: str) -> Any:
    if loop_name == "uvloop":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


# The load


class Load:
    """Counts what all its hosts get acknowledged."""

    def __init__(self, pki: "Authority", port: int) -> None:
        self.pki = pki
        self.port = port
        self.acknowledged = 0
        self.connected = 0
        self.hosts: list[LoadHost] = []
        self.problem: str | None = None

    async def connect(self, count: int, role: PeerRole, *, snapshot: bool = False) -> None:
        loop = asyncio.get_running_loop()
        wanted = self.connected + count
        for _ in range(count):
            host = LoadHost(loop, self, len(self.hosts), role, snapshot=snapshot)
            self.hosts.append(host)
            await loop.create_connection(lambda host=host: host, "127.0.0.1", self.port)
        deadline = time.monotonic() + 30
        while self.connected < wanted:
            if self.problem or time.monotonic() > deadline:
                raise RuntimeError(self.problem or "the gateway did not answer all hosts in 30 s")
            await asyncio.sleep(0.01)

    def abort(self) -> None:
        for host in self.hosts:
            host.abort()


class LoadHost(Connection):
    __slots__ = ("beat", "host_id", "load", "number", "outbox", "role", "sequence")

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        load: Load,
        number: int,
        role: PeerRole,
        *,
        snapshot: bool,
    ) -> None:
        self.load = load
        self.number = number
        self.role = role
        self.host_id = HostId(f"host-{number}")
        self.sequence = 0
        self.outbox = SnapshotOutbox() if snapshot else EmptyOutbox()
        super().__init__(loop, load.pki.host_context(self.host_id), server_side=False)

    def _tls_ready(self, peer_certificate: bytes) -> HostSession:
        hello = Hello(
            version_major=VERSION_MAJOR,
            version_minor=VERSION_MINOR,
            role=self.role,
            host_id=self.host_id,
            boot=BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001"),
        )
        return HostSession(
            hello,
            installation_id=INSTALLATION,
            now=monotonic_ms(),
            outbox=self.outbox if self.role is PeerRole.AGENT else None,
        )

    def _message(self, message: Message, now: Millis) -> None:
        if type(message) is BeatAck:
            self.load.acknowledged += 1
            self.send_beat(now)
        elif type(message) is FactsAck:
            self.load.acknowledged += 1
            self.outbox.next()
        elif type(message) is Welcome:
            self.load.connected += 1
            if self.role is PeerRole.GUARDIAN:
                self.send_beat(now)
        else:
            assert type(message) is Settings

    def send_beat(self, now: Millis) -> None:
        self.sequence += 1
        assert isinstance(self.session, HostSession)
        self.session.send_beat(
            Beat(
                sequence=self.sequence,
                boot=BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001"),
                monotonic_ms=now,
                inventory_revision=17,
                agent_alive=True,
                wall_ms=1_700_000_000_000,
            )
        )

    def _ended(self, closed: Closed) -> None:
        if closed.code != "wire.closed.lost":
            self.load.problem = f"{closed.code}: {closed.message}"


class EmptyOutbox:
    last_sequence = 0

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        return ()

    def next(self) -> None:
        raise AssertionError("nothing was sent")


class SnapshotOutbox:
    """One fact at a time: a full inventory of the host."""

    def __init__(self) -> None:
        self.last_sequence = 0
        domains = tuple(
            DomainReport(
                vm_id=VmId(f"6a1e2c70-0000-4000-8000-{index:012d}"),
                name=f"vm-{index}",
                state=DomainState.RUNNING,
                reason="booted",
                pid=10_000 + index,
            )
            for index in range(SNAPSHOT_VMS)
        )
        self._body = Inventory(revision=17, domains=domains)
        self.next()

    def next(self) -> None:
        self.last_sequence += 1
        self._fact = Fact(
            sequence=self.last_sequence,
            boot=BootId("7f7c4a4e-54b5-4c40-8a4e-27a7e3f0a001"),
            monotonic_ms=1,
            wall_ms=1_700_000_000_000,
            body=self._body,
        )

    def facts_after(self, sequence: int, limit: int) -> Sequence[Fact]:
        return (self._fact,) if self._fact.sequence > sequence else ()


class Authority:
    def __init__(self) -> None:
        self.pem, key = create_authority(INSTALLATION, now=MachineClock().wall_ms())
        self.local = LocalAuthority(self.pem, key, wall_ms=MachineClock().wall_ms)
        self._contexts: dict[HostId, Any] = {}

    def host_context(self, host_id: HostId) -> Any:
        if host_id not in self._contexts:
            key, csr = make_key_and_csr(host_id)
            signed = self.local.sign_host(csr, host_id=host_id)
            self._contexts[host_id] = client_context(self.pem, signed.certificate_pem, key)
        return self._contexts[host_id]

    def for_server(self) -> str:
        certificate, key = self.local.issue_server_certificate(("127.0.0.1",))
        return json.dumps({"authority": self.pem, "certificate": certificate, "key": key})


@contextmanager
def server(pki: Authority, loop_name: str, core: int) -> Iterator[tuple[int, int]]:
    """A gateway process pinned to ``core``: (process id, port)."""
    process = subprocess.Popen(
        [sys.executable, __file__, "--server", loop_name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    try:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(pki.for_server() + "\n")
        process.stdin.flush()
        yield process.pid, int(process.stdout.readline())
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()


def cpu_ns(process_id: int) -> int:
    tasks = Path(f"/proc/{process_id}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in tasks)


def resident_kib(process_id: int) -> int:
    for line in Path(f"/proc/{process_id}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise RuntimeError("no VmRSS")


async def measure_rate(pki: Authority, process_id: int, port: int, role: PeerRole) -> float:
    """Acknowledged messages per CPU-second of the gateway."""
    load = Load(pki, port)
    await load.connect(GUARDIANS, role, snapshot=role is PeerRole.AGENT)
    await asyncio.sleep(0.5)  # past the handshakes and the first garbage collections
    count, cpu = load.acknowledged, cpu_ns(process_id)
    await asyncio.sleep(MEASURE_S)
    count, cpu = load.acknowledged - count, cpu_ns(process_id) - cpu
    load.abort()
    if load.problem or not count:
        raise RuntimeError(load.problem or "nothing was acknowledged")
    return count / (cpu / 1e9)


async def measure_memory(pki: Authority, process_id: int, port: int) -> float:
    """KiB that the gateway grows by for each idle session of an agent."""
    load = Load(pki, port)
    # The first connections load what all share (OpenSSL's tables, the encoders).
    await load.connect(50, PeerRole.AGENT)
    await asyncio.sleep(0.5)
    before = resident_kib(process_id)
    await load.connect(IDLE_SESSIONS, PeerRole.AGENT)
    await asyncio.sleep(2.5)  # long enough for the first pings
    growth = resident_kib(process_id) - before
    load.abort()
    if load.problem:
        raise RuntimeError(load.problem)
    return growth / IDLE_SESSIONS


def main() -> int:
    cores = sorted(os.sched_getaffinity(0))
    server_core, load_core = cores[0], cores[-1]
    os.sched_setaffinity(0, {load_core})
    pki = Authority()
    for number in range(IDLE_SESSIONS + 50):
        pki.host_context(HostId(f"host-{number}"))
    loops = ["uvloop", "asyncio"] if _has_uvloop() else ["asyncio"]
    figures: dict[str, Figure] = {}
    for loop_name in loops:
        suffix = "" if loop_name == loops[0] else f"_{loop_name}"
        with server(pki, loop_name, server_core) as (process_id, port):
            rate = _run(measure_rate(pki, process_id, port, PeerRole.GUARDIAN), loops[0])
            with_snapshot = _run(measure_rate(pki, process_id, port, PeerRole.AGENT), loops[0])
        with server(pki, loop_name, server_core) as (process_id, port):
            growth = _run(measure_memory(pki, process_id, port), loops[0])
        if not suffix:
            figures["beats_per_cpu_s"] = at_least(30_000, rate, "1/s", f"acknowledged, {loop_name}")
            figures["session_memory_kib"] = at_most(
                64, growth, "KiB", f"{IDLE_SESSIONS} idle sessions, {loop_name}"
            )
        else:
            figures[f"beats_per_cpu_s{suffix}"] = shown(rate, "1/s", f"without {loops[0]}")
            figures[f"session_memory_kib{suffix}"] = shown(growth, "KiB", f"without {loops[0]}")
        figures[f"snapshots_per_cpu_s{suffix}"] = shown(
            with_snapshot, "1/s", f"full inventory of {SNAPSHOT_VMS} VMs in each message"
        )
    return finish("agent_beats", figures)


def _has_uvloop() -> bool:
    return find_spec("uvloop") is not None


if __name__ == "__main__":
    if sys.argv[1:2] == ["--server"]:
        run_server(sys.argv[2])
    else:
        sys.exit(main())
