"""Files of the server's state: written whole or not at all, and one server per state."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from virtha.model.errors import Conflict, Failed, Unavailable
from virtha.server.config import ServerPaths


def write_whole(path: Path, data: bytes, *, mode: int) -> None:
    """Beside it, synced, renamed: after a power cut there is the old file or the new one.

    Raises Unavailable (`problem.disk.full`) or Failed; the old file stands then.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask or a left-over partial file says
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        partial.replace(path)
        sync_directory(path.parent)
    except OSError as error:
        # Half of it would take the room that the next attempt needs.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise write_failed(path, error) from error


def write_failed(path: Path, error: OSError) -> Failed | Unavailable:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(
            f"no space left to write {path}",
            code="problem.disk.full",
            fix="free space there, then try again; nothing was changed",
        )
    fix = "check rights and disk"
    if error.errno in (errno.EACCES, errno.EPERM):
        fix = "run it as root" if os.geteuid() != 0 else f"look at the rights of {path.parent}"
    elif error.errno == errno.EROFS:
        fix = "its file system is read-only: mount it for writing; dmesg may say why it is"
    return Failed(f"can't write {path}: {error.strerror or error}", fix=fix)


def sync_directory(path: Path) -> None:
    """A rename is durable only when its directory is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directories(paths: ServerPaths) -> None:
    """State and authority are for root alone: they hold the authority's key and password hashes."""
    try:
        paths.config.parent.mkdir(parents=True, exist_ok=True)
        for path in (paths.state, paths.authority):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise write_failed(Path(error.filename or paths.state), error) from error


@contextlib.contextmanager
def only_server(paths: ServerPaths) -> Iterator[None]:
    """Hold the state's lock. The kernel frees it when the process dies, however it dies.

    Raises Conflict when another server runs on this state: two of them would give two terms.
    """
    try:
        descriptor = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise write_failed(paths.lock, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 32).decode(errors="replace").strip()
            raise Conflict(
                f"a server runs on {paths.state}" + (f" (process {holder})" if holder else ""),
                fix="stop it first",
            ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            raise write_failed(paths.lock, error) from error
        yield
    finally:
        os.close(descriptor)


def is_locked(lock: Path) -> bool:
    """Whether a server holds the lock at this moment."""
    descriptor = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
