"""What the start gate refused, told to the server: the hook leaves notes, the agent tells them as facts.

The hook can't wait for anybody, so it drops one small file per refusal on a tmpfs (``gate_hook.leave_note``);
the agent reads them, also those of a time in which it did not run. Somebody who tries in a loop is counted:
one entry at once, then one per VM and reason after a minute, two, four, up to an hour.
"""

import asyncio
import contextlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import structlog

from virtha.agent import gate_hook
from virtha.agent.fact_sink import DiskThread, FactSink
from virtha.agent.files import read_bounded
from virtha.model.facts import Happened
from virtha.model.ids import VmId
from virtha.model.time import Millis, format_utc
from virtha.model.value import Value
from virtha.ports.clock import Clock

LOOK_S = 1.0
NOTE_BYTES_MAX = 16_384
HALF_WRITTEN_S = 60.0
QUIET_MS = 60_000
QUIET_MS_MAX = 3_600_000
TOLD_PER_MINUTE_MAX = 30
"""Over all VMs: somebody may try with a new UUID each time. The rest waits in the spool, which is bounded."""
MERGE_AT = 8
"""Notes of one VM and reason that are waiting; they become one, or a loop would fill the spool."""

_log = structlog.get_logger(__name__)


class Note(Value, frozen=True, kw_only=True):
    """One file of the spool; times are UTC."""

    code: str
    uuid: str = ""
    """The domain's; empty where its XML could not be read."""
    name: str = ""
    text: str = ""
    """What whoever tried was told."""
    at_ms: int
    first_ms: int | None = None
    """Of the first, where it stands for several."""
    count: int = 1


class RefusalSpool:
    """The directory of notes. Only whole files are read; what can't be read is removed and logged."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._uncounted = directory / gate_hook.UNCOUNTED

    def read(self) -> list[tuple[Path, Note]]:
        """Oldest first. A hook that died in between leaves a file that nobody finishes."""
        found = []
        for path in sorted(self._directory.glob("*.json")):
            try:
                data = read_bounded(path, NOTE_BYTES_MAX)
                found.append((path, msgspec.json.decode(data, type=Note)))
            except FileNotFoundError:
                continue
            except (OSError, ValueError, msgspec.MsgspecError) as error:
                _log.error("a note of the start gate can't be read", error=str(error))
                with contextlib.suppress(OSError):
                    path.unlink(missing_ok=True)
        return found

    def uncounted(self) -> int:
        try:
            return self._uncounted.stat().st_size
        except OSError:
            return 0

    def forget_uncounted(self) -> None:
        self._uncounted.unlink(missing_ok=True)

    def merge(self, notes: Sequence[tuple[Path, Note]]) -> None:
        """Several notes of the same into the last one. Cut off in the middle, some count twice."""
        path = notes[-1][0]
        temporary = path.with_name(f".{path.stem}.merged")
        temporary.write_bytes(msgspec.json.encode(merged([note for _, note in notes])))
        temporary.replace(path)
        self.done([each for each, _ in notes[:-1]])

    def done(self, paths: Sequence[Path]) -> None:
        for path in paths:
            path.unlink(missing_ok=True)

    def sweep(self) -> None:
        """At the agent's start: what hooks and agents before left half written, if it is older than any
        hook that still writes."""
        for path in (*self._directory.glob(".*.new"), *self._directory.glob(".*.merged")):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > HALF_WRITTEN_S:
                    path.unlink()


def merged(notes: Sequence[Note]) -> Note:
    """``notes`` of one VM and reason, oldest first, as one."""
    first = notes[0].at_ms if notes[0].first_ms is None else notes[0].first_ms
    return msgspec.structs.replace(
        notes[-1], first_ms=first, count=sum(note.count for note in notes)
    )


class _Quiet:
    """Since when and for how long nothing is told of one VM and reason."""

    def __init__(self) -> None:
        self.until: Millis = Millis(0)
        self.length_ms = 0

    def begin(self, now: Millis) -> None:
        goes_on = self.length_ms and now - self.until <= self.length_ms
        self.length_ms = min(self.length_ms * 2, QUIET_MS_MAX) if goes_on else QUIET_MS
        self.until = Millis(now + self.length_ms)

    def is_over(self, now: Millis) -> bool:
        """So long past that the next one counts as the first."""
        return now - self.until > self.length_ms


class RefusalTeller:
    def __init__(
        self,
        spool: RefusalSpool,
        *,
        facts: FactSink,
        disk: DiskThread,
        clock: Clock,
        is_managed: Callable[[VmId], bool],
    ) -> None:
        """``is_managed``: whether that is a VM of this installation, on whichever host."""
        self._spool = spool
        self._facts = facts
        self._disk = disk
        self._clock = clock
        self._is_managed = is_managed
        self._quiet: defaultdict[tuple[str, str], _Quiet] = defaultdict(_Quiet)
        self._told_at: deque[Millis] = deque()
        self._unsaved: dict[Path, Note] = {}
        """Told, and not on disk yet: their files stay until they are."""

    async def run(self) -> None:
        await self._disk(self._spool.sweep)
        while True:
            try:
                await self.look()
            except OSError as error:
                _log.warning("the start gate's notes can't be looked at", error=str(error))
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """One round. Raises OSError."""
        if self._unsaved and self._facts.settled:
            await self._disk(self._spool.done, tuple(self._unsaved))
            self._unsaved.clear()
        groups: defaultdict[tuple[str, str], list[tuple[Path, Note]]] = defaultdict(list)
        for path, note in await self._disk(self._spool.read):
            if path not in self._unsaved:
                groups[note.uuid or note.name, note.code].append((path, note))
        now = self._clock.monotonic_ms()
        for key, notes in groups.items():
            if self._may_tell(key, now):
                await self._tell(notes)
            elif len(notes) >= MERGE_AT:
                await self._disk(self._spool.merge, notes)
        uncounted = await self._disk(self._spool.uncounted)
        if uncounted and self._may_tell(("", gate_hook.UNCOUNTED), now):
            await self._facts.emit(
                [Happened(code="host.gate.refusals_uncounted", fields={"count": uncounted})]
            )
            await self._disk(self._spool.forget_uncounted)
        for key in [key for key, quiet in self._quiet.items() if quiet.is_over(now)]:
            del self._quiet[key]

    def _may_tell(self, key: tuple[str, str], now: Millis) -> bool:
        """Counts it as told."""
        while self._told_at and now - self._told_at[0] >= QUIET_MS:
            self._told_at.popleft()
        if len(self._told_at) >= TOLD_PER_MINUTE_MAX:
            return False
        if key in self._quiet and now < self._quiet[key].until:
            return False
        self._quiet[key].begin(now)
        self._told_at.append(now)
        return True

    async def _tell(self, notes: Sequence[tuple[Path, Note]]) -> None:
        all_of_it = merged([note for _, note in notes])
        if await self._facts.emit([self._fact(all_of_it)]):
            await self._disk(self._spool.done, [path for path, _ in notes])
        else:
            self._unsaved.update(notes)

    def _fact(self, note: Note) -> Happened:
        vm_id = VmId(note.uuid)
        first_ms = note.at_ms if note.first_ms is None else note.first_ms
        return Happened(
            code="vm.start_refused",
            # Another domain that opens a disk of ours is nobody's VM here.
            vm_id=vm_id if note.uuid and self._is_managed(vm_id) else None,
            fields={
                "vm": note.name or note.uuid or "?",
                "uuid": note.uuid,
                "code": note.code,
                "reason": note.text,
                "count": note.count,
                "first_at": format_utc(first_ms),
                "last_at": format_utc(note.at_ms),
            },
        )
