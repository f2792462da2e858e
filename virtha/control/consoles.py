"""What a VM shows on its serial port and its screen, asked of its hosts when somebody wants to see it; nothing of it is
kept on the server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import structlog

from virtha.control.callers import caller_of
from virtha.control.console_tickets import Admission, ConsoleTickets
from virtha.control.history import record
from virtha.control.names import the_vm
from virtha.control.requests import ConsoleLogQuery, ConsoleTicketCreate
from virtha.control.token_ends import end_of
from virtha.control.views import (
    Caller,
    ConsoleLog,
    ConsoleLogPart,
    ConsoleTicket,
    MissingPart,
)
from virtha.model.access import Permission
from virtha.model.console import (
    LOG_BYTES_MAX,
    LOG_LINES_MAX,
    LOG_WAIT_MS_MAX,
    PICTURE_BYTES_MAX,
    ChannelSubject,
    ConsoleKind,
    LogPosition,
    OpenScreen,
    OpenSerial,
    ReadSerialLog,
    SerialLog,
    TakeScreenshot,
)
from virtha.model.errors import Failed, Forbidden, InvalidInput, Refused, Unavailable, VirthaError
from virtha.model.host import Host
from virtha.model.ids import ClusterId, HostId
from virtha.model.time import UtcMillis
from virtha.model.user import Token, User
from virtha.model.vm import VmState
from virtha.ports.channels import ByteStream, HostChannels
from virtha.ports.hosts import HostLinks
from virtha.store.hosts import hosts_of_cluster
from virtha.store.store import Store, Transaction
from virtha.store.users import find_token, find_user
from virtha.store.vms import VmRow, find_vm

HOSTS_ASKED_MAX = 32
TEXT_LENGTH_MAX = 1_000
ANSWER_DEADLINE_S = 25.0
"""For one host's whole answer, beyond what it was told to wait. Below the command line's patience."""
ALLOWED_EVERY_S = 15.0
"""How long somebody who may no more goes on typing at a console that is open."""
LOOKS_MISSED_MAX = 4
"""A database that is away for longer may have been told, by another server, that its user may no more."""
PICTURE = b"\x89PNG\r\n\x1a\n"
log = structlog.get_logger(__name__)
_RUNS = (VmState.RUNNING, VmState.STARTING, VmState.STOPPING, VmState.PAUSED, VmState.CRASHED)


async def _may_use(
    tx: Transaction, user: User, token: Token | None, cluster_id: ClusterId | None
) -> bool:
    """``token``: with which they came. ``cluster_id`` None: of a VM that is gone, which is told by itself."""
    rights = (await caller_of(tx, user, token)).rights
    if cluster_id is None:
        return user.enabled and rights.somewhere(Permission.CONSOLES)
    return user.enabled and Permission.CONSOLES in rights.in_cluster(cluster_id)


async def _token_of(tx: Transaction, admission: Admission, now: UtcMillis) -> Token | None:
    """None: it has ended."""
    assert admission.token_id is not None
    row = await find_token(tx, admission.token_id)
    if row is None or row.token.user_id != admission.user_id or await end_of(tx, row.token) <= now:
        return None
    return row.token


class NoChannels:
    """Where the wiring has no hosts to ask."""

    async def open(self, host_id: HostId, subject: ChannelSubject) -> ByteStream:
        raise Unavailable("this server has no channels to hosts")


class Consoles:
    def __init__(self, store: Store, links: HostLinks, channels: HostChannels) -> None:
        self._store = store
        self._links = links
        self._channels = channels
        self._tickets = ConsoleTickets(store.clock)
        self._telling: set[asyncio.Future[None]] = set()

    async def log(self, ref: str, query: ConsoleLogQuery) -> ConsoleLog:
        """The parts that the VM's hosts have of its serial log, oldest first, the present host's last.

        Raises InvalidInput, NotFound. A host that can't be asked is in ``missing``, not an error.
        """
        after_host, after = _checked(query)
        row, hosts = await self._hosts(ref)
        asked = _asked(row, hosts, after_host, self._links)
        request = ReadSerialLog(vm_id=row.vm.id, lines=query.lines, contains=query.contains or "")
        jobs = []
        for host in asked:
            goes_on = host.id == after_host and after is not None
            # Only the newest host can have something new to wait for.
            waits = goes_on and len(asked) == 1
            jobs.append(
                self._part(
                    host,
                    msgspec.structs.replace(
                        request,
                        after=after if goes_on else None,
                        wait_ms=query.wait_ms if waits else 0,
                    ),
                )
            )
        found = await asyncio.gather(*jobs)
        parts = [part for part in found if isinstance(part, ConsoleLogPart) and part.end]
        here = row.status.host_id
        parts.sort(key=lambda part: (part.host_id == here, part.written_at or 0))
        missing = [part for part in found if isinstance(part, MissingPart)]
        return ConsoleLog(parts=tuple(parts), missing=tuple(missing))

    async def _part(self, host: Host, request: ReadSerialLog) -> ConsoleLogPart | MissingPart:
        try:
            content = await self._ask(
                host.id, request, 2 * LOG_BYTES_MAX, extra_s=request.wait_ms / 1_000
            )
            log = msgspec.msgpack.decode(content, type=SerialLog)
        except VirthaError as error:
            return MissingPart(host_id=host.id, host=host.name, code=error.code, reason=str(error))
        except (msgspec.MsgspecError, ValueError) as error:
            return MissingPart(
                host_id=host.id, host=host.name, code="problem.failed", reason=str(error)
            )
        end = log.end
        return ConsoleLogPart(
            host_id=host.id,
            host=host.name,
            text=log.text.decode("utf-8", "replace"),
            written_at=log.written_at,
            cut=log.cut,
            end=None if end is None else f"{host.id}.{end.file}.{end.offset}",
        )

    async def screenshot(self, ref: str) -> bytes:
        """A PNG. Raises Refused: it doesn't run, or has no screen; Unavailable: its host is away."""
        row, _ = await self._hosts(ref)
        host_id = running_on(row)
        picture = await self._ask(host_id, TakeScreenshot(vm_id=row.vm.id), PICTURE_BYTES_MAX)
        if not picture.startswith(PICTURE):
            raise Failed("its host sent something that is no picture")
        return picture

    async def make_ticket(
        self, caller: Caller, ref: str, request: ConsoleTicketCreate
    ) -> ConsoleTicket:
        """Raises Refused: it doesn't run, or too many tickets; Unavailable: its host is away."""
        row, _ = await self._hosts(ref)
        if not self._links.agent_connected(running_on(row)):
            raise Unavailable(
                "the agent of its host is not connected", fix="virtha host list says why"
            )
        ticket = self._tickets.make(caller, row.vm.id, request.kind)
        return ConsoleTicket(ticket=ticket, path=f"/v1/console?ticket={ticket}")

    @asynccontextmanager
    async def enter(self, ticket: str) -> AsyncIterator[ByteStream]:
        """The console that the ticket was made for; who looks at it is in the audit log.

        Raises Unauthenticated: no such ticket, used, too old; Forbidden: its user may no more, also while it is open; and
        what ``screenshot`` raises.
        """
        admission = self._tickets.use(ticket)
        await self._check_allowed(admission)
        async with self._store.read() as tx:
            # As it is now: the VM may have moved or ended since the ticket was made.
            row = await the_vm(tx, admission.vm_id)
        host_id = running_on(row)
        subject: ChannelSubject = OpenScreen(vm_id=row.vm.id)
        if admission.kind is ConsoleKind.SERIAL:
            subject = OpenSerial(vm_id=row.vm.id)
        stream = await self._channels.open(host_id, subject)
        watching = asyncio.ensure_future(self._close_when_forbidden(admission, stream))
        try:
            await self._tell("vm.console.opened", row, admission.kind, admission.user)
            yield stream
        except VirthaError:
            if watching.done():
                watching.result()  # why it was closed
            raise
        finally:
            if not watching.cancel() and not watching.cancelled():
                watching.exception()  # its user left by himself at that very moment: nobody is left to be told
            stream.close()
            # Its end is told also when the task that held it was cancelled; nobody else holds that task then.
            telling = asyncio.ensure_future(
                self._tell("vm.console.closed", row, admission.kind, admission.user)
            )
            self._telling.add(telling)
            telling.add_done_callback(self._telling.discard)
            await asyncio.shield(telling)

    async def _close_when_forbidden(self, admission: Admission, stream: ByteStream) -> None:
        """Until it is cancelled. Raises why it has closed the stream: Forbidden, or Unavailable."""
        missed = 0
        try:
            while True:
                await asyncio.sleep(ALLOWED_EVERY_S)
                try:
                    await self._check_allowed(admission)
                    missed = 0
                except Unavailable as error:
                    missed += 1
                    log.warning("can't look whether a console stays open", error=str(error))
                    if missed == LOOKS_MISSED_MAX:
                        raise Unavailable(
                            f"whether {admission.user} may still use consoles can't be looked up: {error}",
                            fix="open it again when the database is back",
                        ) from error
        finally:
            stream.close()

    async def _check_allowed(self, admission: Admission) -> None:
        """Raises Forbidden: since the ticket was made its user was removed, disabled, or given another role, or what they came with
        has ended."""
        if admission.user_id is None:
            return
        async with self._store.read() as tx:
            found = await find_user(tx, admission.user_id)
            row = await find_vm(tx, admission.vm_id)
            cluster_id = row.vm.cluster_id if row is not None else None
            token = None
            if admission.token_id is not None:
                token = await _token_of(tx, admission, self._store.clock.wall_ms())
            ended = admission.token_id is not None and token is None
            may = (
                found is not None
                and not ended
                and await _may_use(tx, found.user, token, cluster_id)
            )
        if not may:
            raise Forbidden(f"{admission.user} may not use consoles any more")

    async def _tell(self, code: str, row: VmRow, kind: ConsoleKind, user: str) -> None:
        async with self._store.write() as tx:
            await record(tx, code, vm=row.vm, by=user, kind=kind.value, user=user)

    async def _ask(
        self, host_id: HostId, subject: ChannelSubject, bytes_max: int, *, extra_s: float = 0
    ) -> bytes:
        """The whole answer of a host."""
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S + extra_s):
                stream = await self._channels.open(host_id, subject)
                try:
                    return await _whole(stream, bytes_max)
                finally:
                    stream.close()
        except TimeoutError:
            raise Unavailable("its host did not answer in time", fix="try again") from None

    async def _hosts(self, ref: str) -> tuple[VmRow, list[Host]]:
        async with self._store.read() as tx:
            row = await the_vm(tx, ref)
            hosts = await hosts_of_cluster(tx, row.vm.cluster_id)
        return row, [host.host for host in hosts]


def running_on(row: VmRow) -> HostId:
    """The host whose QEMU shows the VM. Raises Refused."""
    status = row.status
    if status.host_id is None or status.state not in _RUNS or not status.holders:
        raise Refused(
            f"{row.vm.name} is {row.shown.value}: it shows nothing",
            code="problem.vm.state",
            field="VM",
            fix="start it: virtha vm start",
        )
    return status.host_id


async def _whole(stream: ByteStream, bytes_max: int) -> bytes:
    received = bytearray()
    while data := await stream.receive():
        received += data
        if len(received) > bytes_max:
            raise Failed(f"its host sent more than {bytes_max} bytes")
    return bytes(received)


def _asked(
    row: VmRow, hosts: list[Host], after_host: HostId | None, links: HostLinks
) -> list[Host]:
    """Those that may have a part of the log: where it is or was first, then whoever is there."""
    status = row.status
    if after_host is not None:
        # The rest of that part, and where the VM went meanwhile.
        return [host for host in hosts if host.id in (after_host, status.host_id)]
    near = [host for host in hosts if host.id == status.host_id or host.id in status.holders]
    others = [host for host in hosts if host not in near and links.agent_connected(host.id)]
    return (near + others)[:HOSTS_ASKED_MAX]


def _checked(query: ConsoleLogQuery) -> tuple[HostId | None, LogPosition | None]:
    for field, value, lowest, highest in (
        ("lines", query.lines, 1, LOG_LINES_MAX),
        ("wait_ms", query.wait_ms, 0, LOG_WAIT_MS_MAX),
    ):
        if not lowest <= value <= highest:
            raise InvalidInput(
                f"{value} is out of range", field=field, allowed=(f"{lowest} to {highest}",)
            )
    if query.contains is not None and not 0 < len(query.contains) <= TEXT_LENGTH_MAX:
        raise InvalidInput(
            f"has {len(query.contains)} characters",
            field="contains",
            allowed=(f"1 to {TEXT_LENGTH_MAX}",),
        )
    if query.after is None:
        return None, None
    host_id, *numbers = query.after.split(".")
    if len(numbers) != 2 or not all(
        text.isascii() and text.isdigit() and len(text) < 19 for text in numbers
    ):
        raise InvalidInput(
            f"'{query.after[:64]}' is no place in a log",
            field="after",
            fix="give the 'end' of a part of an earlier answer",
        )
    return HostId(host_id), LogPosition(file=int(numbers[0]), offset=int(numbers[1]))
