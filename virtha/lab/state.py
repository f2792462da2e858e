"""What a lab is made of, on disk: read by every `virtha lab` command, and by a `down` after a crash.

A lab is written down before anything of it exists. Machine-wide, ``/run/virtha-lab`` names the labs
there are, so that `down --all` finds them wherever they lie.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from virtha.lab.namespaces import ProcessId as ProcessId
from virtha.model.errors import Conflict, Failed, NotFound
from virtha.model.value import Value

DEFAULT_DIRECTORY = Path("/var/lib/virtha-lab")
REGISTRY = Path("/run/virtha-lab")
STATE_NAME = "lab.json"
PATH_CHARACTERS_MAX = 64
"""A Unix socket's path has 108 bytes at most; the longest of ours below the lab takes 40."""


class NodeState(Value, frozen=True, kw_only=True):
    """One host or server. ``init``: process 1 of its present boot; None: it is off."""

    name: str
    number: int
    kind: str
    """``host`` or ``server``."""
    init: ProcessId | None = None
    cable_up: bool = True
    cable_out_until_boot: bool = False
    """A silent power cut pulled it, nobody else: its next boot plugs it in again."""
    bmc: ProcessId | None = None
    """Its BMC's; None: dead."""


class LabState(Value, frozen=True, kw_only=True):
    id: str
    directory: str
    accelerator: str = "qemu"
    """``kvm`` or ``qemu`` (TCG): what the hosts' agents are told."""
    nodes: tuple[NodeState, ...] = ()
    forward: ProcessId | None = None
    forward_port: int | None = None
    chassis: ProcessId | None = None
    """What carries out the BMCs' orders."""
    ready: bool = False
    """`up` came to its end."""

    def node(self, name: str) -> NodeState:
        for node in self.nodes:
            if node.name == name:
                return node
        raise NotFound(
            f"the lab has no '{name}'",
            field="name",
            allowed=tuple(node.name for node in self.nodes),
        )

    def with_node(self, changed: NodeState) -> "LabState":
        kept = [changed if node.name == changed.name else node for node in self.nodes]
        if changed not in kept:
            kept.append(changed)
        return msgspec.structs.replace(self, nodes=tuple(kept))


def lab_id(directory: Path) -> str:
    """Short and the same each time, so that a `down` finds the namespaces of a lost state file."""
    return "vl" + hashlib.sha256(str(directory).encode()).hexdigest()[:6]


def lab_directory(given: Path | None) -> Path:
    directory = Path(os.environ.get("VIRTHA_LAB") or DEFAULT_DIRECTORY) if given is None else given
    directory = directory.absolute()
    if len(str(directory)) > PATH_CHARACTERS_MAX:
        raise Failed(
            f"{directory} is too long a path for a lab's sockets",
            fix=f"choose one of at most {PATH_CHARACTERS_MAX} characters",
        )
    return directory


def read_state(directory: Path) -> LabState:
    """Raises NotFound where no lab is, Failed where its file can't be read."""
    path = directory / STATE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=LabState)
    except FileNotFoundError:
        raise NotFound(
            f"there is no lab in {directory}", field="dir", fix="run 'virtha lab up'"
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise Failed(f"{path} can't be read: {error}", fix="run 'virtha lab down'") from error


def write_state(state: LabState) -> None:
    path = Path(state.directory, STATE_NAME)
    new = path.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    new.replace(path)


def change_state(directory: Path, change: Callable[[LabState], LabState]) -> LabState:
    """Read, change, write, one at a time: a BMC switches hosts while a command does something else."""
    with locked(directory):
        changed = change(read_state(directory))
        write_state(changed)
    return changed


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Waits until nobody else has it; a process that dies lets go of it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def register(directory: Path) -> None:
    REGISTRY.mkdir(mode=0o755, exist_ok=True)
    (REGISTRY / lab_id(directory)).write_text(f"{directory}\n")


def unregister(directory: Path) -> None:
    (REGISTRY / lab_id(directory)).unlink(missing_ok=True)


def registered() -> list[Path]:
    if not REGISTRY.is_dir():
        return []
    return sorted(
        Path(entry.read_text().strip()) for entry in REGISTRY.iterdir() if entry.suffix != ".lock"
    )


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """One command at a time changes a lab. Raises Conflict when another does now."""
    REGISTRY.mkdir(mode=0o755, exist_ok=True)
    with (REGISTRY / f"{lab_id(directory)}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another 'virtha lab' command works on the lab in {directory}",
                fix="wait for it to end",
            ) from None
        yield
