"""What the agent keeps on disk besides the outbox: VM records, settings, outcomes of orders."""

import re
from pathlib import Path
from typing import TypeVar

import msgspec
import structlog

from virtha.agent.files import Files, read_bounded
from virtha.model.facts import Outcome
from virtha.model.ids import OperationId, VmId
from virtha.model.orders import HostSettings
from virtha.model.policy import Policy
from virtha.sentinel.events import (
    DropRecord,
    Intent,
    SaveRecord,
    SaveWatched,
    SentinelRecords,
    Told,
    VmRecord,
    Watched,
)

FILE_BYTES_MAX = 16 << 20
OUTCOMES_MAX = 1_000
"""An order comes again only until the server has its outcome; a thousand is days of work."""

_log = structlog.get_logger(__name__)
_Kept = TypeVar("_Kept")
_SAFE_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_-]{0,63}")


def safe_name(text: str) -> str:
    """``text`` if it can't leave a directory as a file name. Raises ValueError."""
    if not _SAFE_NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no id")
    return text


def _load(path: Path, kind: type[_Kept]) -> _Kept | None:
    """None: absent, or damaged; a damaged file is set aside under ``.damaged``, never guessed at."""
    try:
        return msgspec.json.decode(read_bounded(path, FILE_BYTES_MAX), type=kind)
    except FileNotFoundError:
        return None
    except (ValueError, msgspec.MsgspecError) as error:
        _log.error("a damaged file was set aside", path=str(path), error=str(error))
        path.replace(path.with_name(f"{path.name}.damaged"))
        return None


class RecordStore:
    """``records/<vm>.json``: what the sentinel must know after a restart of the agent."""

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files

    def load(self) -> tuple[VmRecord, ...]:
        found = []
        for path in sorted(self._directory.glob("*.json")):
            record = _load(path, VmRecord)
            if record is not None:
                found.append(record)
        return tuple(found)

    def write(self, intents: tuple[Intent, ...]) -> None:
        """Durable when it returns. Raises OSError (no space left …)."""
        for intent in intents:
            match intent:
                case SaveRecord(record=record):
                    path = self._path(record.vm.id)
                    self._files.write_atomic(path, msgspec.json.encode(record))
                case DropRecord(vm_id=vm_id):
                    self._files.remove(self._path(vm_id))
                case SaveWatched(watched=watched):
                    self._files.write_atomic(self._watched, msgspec.json.encode(watched))

    def load_watched(self) -> Watched | None:
        return _load(self._watched, Watched)

    @property
    def _watched(self) -> Path:
        return self._directory.parent / "watched.json"

    def _path(self, vm_id: VmId) -> Path:
        return self._directory / f"{safe_name(vm_id)}.json"


class SettingsStore:
    """``settings.json``: the last settings of the server; the host acts on them without it."""

    def __init__(self, path: Path, files: Files) -> None:
        self._path = path
        self._files = files

    def load(self) -> HostSettings | None:
        return _load(self._path, HostSettings)

    def save(self, settings: HostSettings) -> None:
        self._files.write_atomic(self._path, msgspec.json.encode(settings))


SETTINGS_LOST = "the host's settings are lost; the server sends them again"


def kept_hold(settings: HostSettings | None, *, any_records: bool) -> str | None:
    """A host with VMs and without settings can't know whether it is held, so it is."""
    if settings is not None:
        return settings.hold
    return SETTINGS_LOST if any_records else None


def sentinel_records(
    store: RecordStore, settings: HostSettings | None, told: tuple[Told, ...]
) -> SentinelRecords:
    vms, watched = store.load(), store.load_watched()
    return SentinelRecords(
        vms=vms,
        policy=settings.policy if settings is not None else Policy(),
        hold=kept_hold(settings, any_records=bool(vms)),
        watched=watched,
        told=told,
    )


class OutcomeMemory:
    """Outcomes by (operation, step), so that an order that comes again is answered, not repeated.

    ``begin`` marks orders whose repetition would do harm (a reset) before they are carried out: found
    again without an outcome, the agent died in between and nobody can say whether it happened.
    """

    def __init__(self, directory: Path, files: Files) -> None:
        self._directory = directory
        self._files = files
        self._count = 0

    def open(self) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._trim()

    def find(self, operation_id: OperationId, step: int) -> Outcome | None:
        return _load(self._path(operation_id, step, "json"), Outcome)

    def begun(self, operation_id: OperationId, step: int) -> bool:
        return self._path(operation_id, step, "begun").exists()

    def begin(self, operation_id: OperationId, step: int) -> None:
        self._files.write_atomic(self._path(operation_id, step, "begun"), b"")

    def save(self, outcome: Outcome) -> None:
        path = self._path(outcome.operation_id, outcome.step, "json")
        self._files.write_atomic(path, msgspec.json.encode(outcome))
        self._path(outcome.operation_id, outcome.step, "begun").unlink(missing_ok=True)
        self._count += 1
        if self._count > OUTCOMES_MAX + 100:
            self._trim()

    def _trim(self) -> None:
        paths = sorted(
            (p for p in self._directory.iterdir() if not p.name.startswith(".")),
            key=lambda path: path.stat().st_mtime_ns,
        )
        for path in paths[:-OUTCOMES_MAX]:
            path.unlink(missing_ok=True)
        self._count = min(len(paths), OUTCOMES_MAX)

    def _path(self, operation_id: OperationId, step: int, suffix: str) -> Path:
        return self._directory / f"{safe_name(operation_id)}.{step}.{suffix}"
