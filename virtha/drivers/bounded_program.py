"""Runs one program to its end or its deadline, and nothing of it beyond: for whatever switches power (rule J7).

Without a shell, in a thread of its own, so that its deadline holds even where the event loop is busy. What it starts is
ended with it: its process group, what left that group (found by a mark in its environment), and the program itself when
this process dies.
"""

import asyncio
import os
import selectors
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from virtha.model.value import Value
from virtha.ports.attempts import wait_out

OUTPUT_BYTES = 65_536
"""Kept of each of its two outputs; what comes beyond is read and thrown away."""
MARK = "VIRTHA_POWER_ATTEMPT"
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NOT_RUN = "setpriv: failed to execute"
"""How what runs it begins its complaint when it could not: the program itself did nothing."""
_READ_BYTES = 65_536
_LAST_WORDS_S = 0.05
"""At most so long pipes are read on once the program has ended."""
_KILL_ROUNDS = 5
REAPED_S = 1.0
"""So long it is waited for one that was killed."""
_owner = ""
_dying: list["subprocess.Popen[bytes]"] = []
"""Killed, and not gone yet: forgotten, each would stay in the process table for as long as this process runs."""
_PROC = Path("/proc")


def take_over(owner: str) -> threading.Thread:
    """At the start of a process whose service manager does not end what its former one started: what that one's programs
    left behind is ended, and what runs from now on carries ``owner``. In a thread, which may hang with what hangs in the
    kernel; nobody waits for it."""
    global _owner
    _owner = owner
    began_ticks = _start_ticks(os.getpid()) or 0
    thread = threading.Thread(
        target=end_left_behind, args=(owner, began_ticks), name="left behind", daemon=True
    )
    thread.start()
    return thread


def end_left_behind(owner: str, before_ticks: int) -> int:
    """Kills what carries a mark of that owner's and began before; how many."""
    wanted = f"{MARK}={owner}".encode()
    return _kill_those(
        lambda ticks: ticks < before_ticks, lambda variable: variable.startswith(wanted)
    )


class Ended(Value, frozen=True, kw_only=True):
    """``status``: its exit status, negative where a signal ended it; None: it did not end by itself, or never began."""

    status: int | None = None
    output: str = ""
    errors: str = ""
    cut: bool = False
    """It printed more than is kept."""
    began: bool = True
    """False: it was held back by ``may_go``, or could not be run (``problem``)."""
    problem: str = ""
    """Of this machine, not of the program. Where that began, it was ended at once and may have done its work."""


async def run_program(
    words: Sequence[str],
    *,
    environment: Mapping[str, str],
    stdin: bytes = b"",
    deadline_ms: int,
    may_go: Callable[[], bool] | None = None,
    output_bytes: int = OUTPUT_BYTES,
) -> Ended:
    """``words``: program and arguments as they are. ``environment``: besides PATH and the C locale, nothing else comes
    from ours. Cancelling it ends the program first."""
    try:
        run = _Run(words, environment, stdin, time.monotonic() + deadline_ms / 1_000, may_go)
    except OSError as error:
        return Ended(began=False, problem=_words_of(error))
    run.output_bytes = output_bytes
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Ended] = loop.create_future()

    def tell(result: Ended) -> None:
        if not ended.done():
            ended.set_result(result)

    def work() -> None:
        try:
            result = run.to_its_end()
        except Exception as error:
            # Whatever it is: an end that is never told would hold up all orders behind this one.
            result = Ended(problem=f"a fault of virtha's: {type(error).__name__}")
        with suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(tell, result)

    thread = threading.Thread(target=work, name="power-program", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        run.close()
        return Ended(began=False, problem=str(error))
    try:
        return await asyncio.shield(ended)
    except asyncio.CancelledError:
        run.stop()
        await wait_out(
            ended
        )  # cut short, its thread would not hear of the stop, and the program run on
        raise
    finally:
        run.close()


def find_program(name: str) -> str | None:
    """Its absolute path, from the search path that programs are run with."""
    return shutil.which(name, path=SEARCH_PATH)


class _Run:
    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        stdin: bytes,
        until_s: float,
        may_go: Callable[[], bool] | None,
    ) -> None:
        self._mark = f"{_owner}{uuid4().hex}"
        self._words = [*_dies_with_us(), *words]
        self._environment = {
            "PATH": SEARCH_PATH,
            "LC_ALL": "C.UTF-8",
            "HOME": "/nonexistent",
            **environment,
            MARK: self._mark,
        }
        self._stdin = stdin
        self._until_s = until_s
        self._may_go = may_go
        self._stopped = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._kept: dict[str, bytearray] = {"output": bytearray(), "errors": bytearray()}
        self._cut = False
        self.output_bytes = OUTPUT_BYTES

    def stop(self) -> None:
        """From another thread: ends it now."""
        os.eventfd_write(self._stopped, 1)

    def close(self) -> None:
        os.close(self._stopped)

    def to_its_end(self) -> Ended:
        _reap()
        try:
            if self._may_go is not None and not self._may_go():
                return Ended(began=False)
            process = subprocess.Popen(
                self._words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=self._environment,
                cwd="/",
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            return Ended(began=False, problem=_words_of(error) or "it can't be run")
        by_itself, problem = False, ""
        try:
            by_itself = self._attend(process)
        except OSError as error:
            problem = _words_of(error)
        finally:
            self._end_all(process)
        return Ended(
            status=process.returncode if by_itself else None,
            output=_text(self._kept["output"]),
            errors=_text(self._kept["errors"]),
            cut=self._cut,
            problem=problem,
        )

    def _attend(self, process: "subprocess.Popen[bytes]") -> bool:
        """Whether it ended by itself, before its time was over."""
        assert process.stdin and process.stdout and process.stderr
        ending = os.pidfd_open(process.pid)
        try:
            with selectors.DefaultSelector() as selector:
                for pipe, name in ((process.stdout, "output"), (process.stderr, "errors")):
                    os.set_blocking(pipe.fileno(), False)
                    selector.register(pipe, selectors.EVENT_READ, name)
                os.set_blocking(process.stdin.fileno(), False)
                selector.register(process.stdin, selectors.EVENT_WRITE, "stdin")
                selector.register(ending, selectors.EVENT_READ, "ended")
                selector.register(self._stopped, selectors.EVENT_READ, "stopped")
                while True:
                    left_s = self._until_s - time.monotonic()
                    if left_s <= 0:
                        return False
                    what = {key.data: key for key, _ in selector.select(left_s)}
                    if "stopped" in what:
                        return False
                    self._serve(selector, what)
                    if "ended" in what:
                        self._read_last_words(selector)
                        return True
        finally:
            os.close(ending)

    def _serve(
        self, selector: selectors.BaseSelector, what: dict[str, selectors.SelectorKey]
    ) -> None:
        for name, key in what.items():
            if name == "stdin":
                self._write(selector, key)
            elif name in self._kept:
                self._read(selector, key)

    def _write(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        try:
            if self._stdin:
                self._stdin = self._stdin[os.write(key.fd, self._stdin) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._stdin = b""
        if not self._stdin:
            selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]  # it is the pipe that we registered

    def _read(self, selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
        try:
            came = os.read(key.fd, _READ_BYTES)
        except BlockingIOError:
            return
        if not came:
            selector.unregister(key.fileobj)
            return
        kept = self._kept[key.data]
        room = self.output_bytes - len(kept)
        kept += came[:room]
        self._cut = self._cut or len(came) > room

    def _read_last_words(self, selector: selectors.BaseSelector) -> None:
        """What it wrote before it ended is in the pipes; somebody it started may go on writing for ever."""
        until_s = time.monotonic() + _LAST_WORDS_S
        while time.monotonic() < until_s:
            keys = [key for key, _ in selector.select(0) if key.data in self._kept]
            if not keys:
                return
            for key in keys:
                self._read(selector, key)

    def _end_all(self, process: "subprocess.Popen[bytes]") -> None:
        # The leader is not reaped before its group is killed: its number can't be another's.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        began_ticks = _start_ticks(process.pid) or 0
        with suppress(OSError):
            for _ in range(_KILL_ROUNDS):
                if not _kill_marked(self._mark, began_ticks):
                    break
                time.sleep(0.01)
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            process.wait(timeout=REAPED_S)
        except subprocess.TimeoutExpired:
            _dying.append(process)  # in a hung driver, say: a later run reaps it


def _reap() -> None:
    for process in tuple(_dying):
        if process.poll() is not None:
            with suppress(ValueError):  # another thread was quicker
                _dying.remove(process)


def _kill_marked(mark: str, began_ticks: int) -> int:
    """Processes of ours that carry the mark in their environment; how many were killed. Older ones than the program are
    not looked into: whoever reads the memory of one that hangs in the kernel hangs with it."""
    wanted = f"{MARK}={mark}".encode()
    return _kill_those(lambda ticks: ticks >= began_ticks, lambda variable: variable == wanted)


def _kill_those(began: Callable[[int], bool], is_theirs: Callable[[bytes], bool]) -> int:
    killed = 0
    for entry in os.scandir(_PROC):
        if not entry.name.isdigit():
            continue
        try:
            handle = os.pidfd_open(int(entry.name))
        except OSError:
            continue
        try:
            if not began(_start_ticks(int(entry.name)) or 0):
                continue
            environment = (_PROC / entry.name / "environ").read_bytes()
            if any(is_theirs(variable) for variable in environment.split(b"\0")):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                killed += 1
        except OSError:
            pass  # gone, or not ours
        finally:
            os.close(handle)
    return killed


def _start_ticks(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; None: it is gone."""
    try:
        data = (_PROC / str(pid) / "stat").read_bytes()
        # The name in parentheses may hold anything, so the fields are counted from its end.
        return int(data.rpartition(b")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None


def _words_of(error: OSError | ValueError) -> str:
    return (error.strerror or "") if isinstance(error, OSError) else str(error)


def _dies_with_us() -> tuple[str, ...]:
    setpriv = find_program("setpriv")
    return (setpriv, "--pdeathsig", "KILL", "--") if setpriv is not None else ()


def _text(kept: bytearray) -> str:
    return kept.decode("utf-8", errors="replace")
