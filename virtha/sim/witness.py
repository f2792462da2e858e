"""What neighbours find out about a silent host, on the server's request: authenticated probes over each network
that they share with it, and two reads of its VMs' disks by one of them.

Questions and answers travel over the witness's own session with the server: who has none is not heard. Probes
are packets; what a cut link loses is lost.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from virtha.engine.events import DisksWatched, EngineEvent, Investigate, NeighbourAnswered
from virtha.model.evidence import Answer
from virtha.model.ids import BootId, HostId
from virtha.sim.host import SimHost
from virtha.sim.kernel import Kernel
from virtha.sim.line import SERVER
from virtha.sim.network import DELAY_MS, Network
from virtha.sim.storage import SharedStorage

if TYPE_CHECKING:
    from virtha.sim.world import World

PROBE_MS = 500
"""How long a witness waits for an answer."""
DISK_GAP_MS = 600
"""Between the two reads: longer than the pause between two writes of a guest."""

Tell = Callable[[EngineEvent], None]


class Witnesses:
    def __init__(self, world: "World") -> None:
        self._kernel: Kernel = world.kernel
        self._hosts: dict[str, SimHost] = world.hosts
        self._networks: Sequence[Network] = (world.network, world.storage_network)
        self._storage: SharedStorage = world.storage

    def ask(self, command: Investigate, connected: Callable[[str], bool], tell: Tell) -> None:
        for witness in command.witnesses:
            self._over_session(witness, connected, partial(self._probe, witness, command, tell))
        reader = command.disk_reader
        if reader is not None:
            self._over_session(reader, connected, lambda: self._read_disks(reader, command, tell))

    def _over_session(
        self, witness: HostId, connected: Callable[[str], bool], arrive: Callable[[], None]
    ) -> None:
        link = self._networks[0].link(SERVER, witness)
        host = self._hosts[witness]
        if connected(witness) and link.carries:
            self._kernel.after(link.delay_ms, lambda: host.kernel.deliver(arrive))

    def _answer(self, witness: str, event: EngineEvent, tell: Tell) -> None:
        link = self._networks[0].link(witness, SERVER)
        if self._hosts[witness].powered:
            link.carry(lambda: tell(event))

    # Probes

    def _probe(self, witness: HostId, command: Investigate, tell: Tell) -> None:
        host = self._hosts[witness]
        if host.guardian is None and host.agent is None:
            return
        for network in self._networks:
            answer, boot = self._found(network, witness, command.subject)
            event = NeighbourAnswered(
                witness=witness,
                subject=command.subject,
                network=network.name,
                answer=answer,
                boot=boot,
            )
            delay_ms = PROBE_MS if answer is Answer.SILENT else 2 * DELAY_MS
            host.kernel.after(delay_ms, partial(self._answer, witness, event, tell))

    def _found(self, network: Network, witness: str, subject: str) -> tuple[Answer, BootId | None]:
        there = self._hosts[subject]
        ways = (network.link(witness, subject), network.link(subject, witness))
        if not all(way.carries for way in ways) or not there.powered or there.kernel.frozen:
            return Answer.SILENT, None
        processes = (there.guardian, there.agent)
        if any(one is not None and not one.kernel.frozen for one in processes):
            return Answer.ALIVE, there.boot
        return Answer.HINT, None

    # Disks

    def _read_disks(self, reader: HostId, command: Investigate, tell: Tell) -> None:
        host, first_ms = self._hosts[reader], self._kernel.now
        if host.agent is None:
            return
        reached = self._storage.reaches(reader)

        def second() -> None:
            changed: bool | None = None
            if reached and self._storage.reaches(reader):
                changed = any(
                    self._storage.written(vm_id, first_ms, self._kernel.now)
                    for vm_id in command.vms
                )
            event = DisksWatched(
                witness=reader, subject=command.subject, changed=changed, disks=len(command.vms)
            )
            self._answer(reader, event, tell)

        host.kernel.after(DISK_GAP_MS, second)
