"""Disk images through ``qemu-img``: look, make, copy. Each call is bounded in time and output."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import structlog

from virtha.model.errors import Failed
from virtha.model.value import Value

INFO_DEADLINE_S = 10.0
OUTPUT_BYTES_MAX = 1 << 20
KILL_GRACE_S = 2.0
STALL_DEADLINE_S = 300.0
"""A copy that makes no progress for that long has lost its storage."""
_PERCENT = re.compile(rb"\((\d+)(?:\.\d+)?/100%\)")

_log = structlog.get_logger(__name__)


class ImageInfo(Value, frozen=True, kw_only=True, rename="kebab"):
    """What ``qemu-img info --output=json`` says, as far as it is needed. Sizes in bytes."""

    format: str
    virtual_size: int
    actual_size: int = 0
    backing_filename: str | None = None


class _Named(Value, frozen=True, kw_only=True):
    name: str


class _Snapshots(Value, frozen=True, kw_only=True):
    snapshots: tuple[_Named, ...] = ()


async def image_info(path: Path, disk_format: str | None = None) -> ImageInfo:
    """Raises Failed: not there, no image, no answer in time. Also of an image that a VM writes.

    ``disk_format`` None: what it looks like, which of a raw disk the guest decides.
    """
    known = ("-f", disk_format) if disk_format is not None else ()
    # The sandbox of an untrusted image: -U takes no lock, no backing chain is followed.
    output = await _run("qemu-img", "info", "-U", "--output=json", *known, str(path))
    try:
        return msgspec.json.decode(output, type=ImageInfo)
    except msgspec.MsgspecError as error:
        raise Failed(f"qemu-img's answer about {path} can't be read: {error}") from error


async def create_empty(path: Path, disk_format: str, size_bytes: int) -> None:
    await _run("qemu-img", "create", "-q", "-f", disk_format, str(path), str(size_bytes))


async def create_thin(path: Path, backing: str, backing_format: str) -> None:
    """As large as ``backing``, which is relative to the directory of ``path``; raises Failed when that is not there."""
    formats = ("-f", "qcow2", "-F", backing_format, "-b", backing)
    await _run("qemu-img", "create", "-q", *formats, str(path))


async def resize(path: Path, disk_format: str, size_bytes: int) -> None:
    """Raises Failed, ToolHangs."""
    size = str(size_bytes)
    await _run("qemu-img", "resize", "-q", "-f", disk_format, str(path), size, writes=True)


class ToolHangs(Failed):
    """qemu-img hangs in the kernel: what it was to write it may write yet."""


_SNAPSHOT_OPTIONS = {"create": "-c", "revert": "-a", "delete": "-d"}


async def change_snapshot(path: Path, action: str, tag: str) -> None:
    """``action``: create, revert, delete. QEMU's lock on the image refuses one that runs on this host.

    Raises Failed, ToolHangs. However it ends but for the latter, nothing writes any more.
    """
    await _run("qemu-img", "snapshot", "-q", _SNAPSHOT_OPTIONS[action], tag, str(path), writes=True)


async def snapshots_in(path: Path) -> frozenset[str]:
    """Tags of its internal snapshots."""
    output = await _run("qemu-img", "info", "-U", "--output=json", str(path))
    try:
        return frozenset(one.name for one in msgspec.json.decode(output, type=_Snapshots).snapshots)
    except msgspec.MsgspecError as error:
        raise Failed(f"qemu-img's answer about {path} can't be read: {error}") from error


async def snapshot_tool_runs(paths: tuple[Path, ...]) -> bool:
    """Whether a qemu-img that names one of these files is among the host's processes."""
    return await asyncio.to_thread(_names_one_of, {str(path).encode() for path in paths})


def _names_one_of(paths: set[bytes]) -> bool:
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended while we looked
        if words[0].rpartition(b"/")[2] == b"qemu-img" and paths.intersection(words):
            return True
    return False


async def copy_image(
    source: Path,
    source_format: str,
    target: Path,
    target_format: str,
    *,
    on_percent: Callable[[int], None],
) -> None:
    """A full copy. Raises Failed; the target may then be there in part."""
    process = await asyncio.create_subprocess_exec(
        "qemu-img",
        "convert",
        "-p",
        "-f",
        source_format,
        "-O",
        target_format,
        str(source),
        str(target),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    errors = asyncio.ensure_future(_read_errors(process))
    try:
        async for percent in _percents(process):
            on_percent(percent)
        async with asyncio.timeout(INFO_DEADLINE_S):
            code = await process.wait()
            text = await errors
    except TimeoutError:
        raise Failed(f"copying {source.name} made no progress; is its storage alive?") from None
    finally:
        await _end(process)
        errors.cancel()
    if code != 0:
        raise _failed(f"copying {source.name} failed", text or f"qemu-img ended with {code}")


async def _percents(process: asyncio.subprocess.Process) -> AsyncIterator[int]:
    assert process.stdout is not None
    pending, last = b"", -1
    while True:
        async with asyncio.timeout(STALL_DEADLINE_S):
            data = await process.stdout.read(4_096)
        if not data:
            return
        pending = (pending + data)[-4_096:]
        found = _PERCENT.findall(pending)
        if found and int(found[-1]) != last:
            last = int(found[-1])
            yield last


async def _read_errors(process: asyncio.subprocess.Process) -> str:
    """To its end: qemu-img writes a message in pieces, and what is read first is its own name only."""
    assert process.stderr is not None
    found = b""
    while data := await process.stderr.read(4_096):
        found = (found + data)[:OUTPUT_BYTES_MAX]
    return found.decode("utf-8", "replace").strip()


async def _run(*command: str, writes: bool = False) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_environment(),
    )
    try:
        async with asyncio.timeout(STALL_DEADLINE_S if writes else INFO_DEADLINE_S):
            output, errors = await process.communicate()
    except TimeoutError:
        raise Failed(f"{command[0]} {command[1]} did not answer; is the storage alive?") from None
    finally:
        await _end(process)
        if writes and process.returncode is None:
            raise ToolHangs(f"{command[0]} {command[1]} hangs in the kernel")
    if process.returncode != 0:
        text = errors.decode("utf-8", "replace").strip()
        raise _failed(f"{command[0]} {command[1]}", text or f"it ended with {process.returncode}")
    return output[:OUTPUT_BYTES_MAX]


def _environment() -> dict[str, str]:
    """Messages in English: one of them is recognised."""
    return {**os.environ, "LC_ALL": "C"}


def _failed(what: str, text: str) -> Failed:
    """``text``: what qemu-img said, in English."""
    if os.strerror(errno.ENOSPC) not in text and os.strerror(errno.EDQUOT) not in text:
        return Failed(f"{what}: {text}")
    return Failed(
        f"{what}: {text}",
        code="problem.disk.full",
        fix="delete something on that storage, or choose another one",
    )


async def _end(process: asyncio.subprocess.Process) -> None:
    """Kill it if it still runs; one that hangs in the kernel is left behind, not waited for."""
    if process.returncode is not None:
        return
    try:
        process.kill()
    except ProcessLookupError:
        return
    try:
        async with asyncio.timeout(KILL_GRACE_S):
            await process.wait()
    except TimeoutError:
        _log.error("qemu-img hangs in the kernel", pid=process.pid)
