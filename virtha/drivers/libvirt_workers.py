"""Threads for calls that may never come back.

A libvirt call on hung storage blocks for ever and can't be cancelled. So each lane has a bounded
number of daemon threads; a call that misses its deadline keeps its thread until it returns, and when
all threads of a lane are held like that, further calls fail at once instead of queueing behind them.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import structlog

from virtha.ports.hypervisor import HypervisorTimeout, HypervisorUnavailable

Answer = TypeVar("Answer")

_log = structlog.get_logger(__name__)


class _Job:
    """One call. ``begun``, ``ended`` and ``abandoned`` change under the lane's lock only."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.name = name
        self.run = run
        self.begun = False
        self.ended = False
        self.abandoned = False


class Lane:
    """``threads_max`` calls at once, ``waiting_max`` more in line."""

    def __init__(self, name: str, *, threads_max: int, waiting_max: int = 256) -> None:
        self.name = name
        self._threads_max = threads_max
        self._waiting_max = waiting_max
        self._lock = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._threads = 0
        self._idle = 0
        self._stuck = 0
        self._closed = False

    @property
    def stuck(self) -> int:
        """Calls past their deadline that have not come back."""
        with self._lock:
            return self._stuck

    async def call(self, name: str, function: Callable[[], Answer], *, deadline_ms: int) -> Answer:
        """Run ``function`` in a thread.

        Raises HypervisorUnavailable when it did not begin (so it won't), HypervisorTimeout when it
        began and gave no answer in time (so it may yet happen), and what ``function`` raises.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def run() -> None:
            try:
                answer = function()
            except Exception as error:  # raised again where its answer is awaited
                self._hand_over(loop, future, None, error)
            else:
                self._hand_over(loop, future, answer, None)

        job = _Job(name, run)
        self._enqueue(job)
        try:
            # Not wait_for: Python 3.11's returns an answer that comes together with a cancellation
            # and swallows the latter, so that a closing driver waited for ever.
            async with asyncio.timeout(deadline_ms / 1_000):
                return await future
        except TimeoutError:
            if future.done() and not future.cancelled():
                # Both came while this process stood still; or the call's own error.
                return future.result()
            if self._abandon(job):
                raise HypervisorTimeout(
                    f"{name}: no answer within {deadline_ms} ms; it may yet happen"
                ) from None
            raise HypervisorUnavailable(
                f"{name}: not begun within {deadline_ms} ms, all {self._threads_max} threads are busy"
            ) from None
        except asyncio.CancelledError:
            self._abandon(job)
            raise

    def close(self) -> None:
        """Threads end when their call does; nothing waits for them."""
        with self._lock:
            self._closed = True
            self._waiting.clear()
            self._lock.notify_all()

    def _enqueue(self, job: _Job) -> None:
        with self._lock:
            if self._closed:
                raise HypervisorUnavailable(f"{job.name}: the driver is closed")
            if self._stuck >= self._threads_max:
                raise HypervisorUnavailable(
                    f"{job.name}: {self._stuck} earlier calls hang in libvirt",
                    fix="look for hung storage (dmesg, `virsh domblkerror`)",
                )
            if len(self._waiting) >= self._waiting_max:
                raise HypervisorUnavailable(f"{job.name}: {self._waiting_max} calls wait already")
            self._waiting.append(job)
            if self._idle >= len(self._waiting) or self._threads >= self._threads_max:
                self._lock.notify()
                return
            self._threads += 1
            number = self._threads
        threading.Thread(
            target=self._work, name=f"libvirt-{self.name}-{number}", daemon=True
        ).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    if self._closed:
                        self._threads -= 1
                        return
                    self._idle += 1
                    self._lock.wait()
                    self._idle -= 1
                job = self._waiting.popleft()
                if job.abandoned:
                    continue
                job.begun = True
            job.run()
            self._came_back(job)

    def _came_back(self, job: _Job) -> None:
        with self._lock:
            job.ended = True
            if not job.abandoned:
                return
            self._stuck -= 1
            stuck = self._stuck
        _log.warning("libvirt.call.late", call=job.name, still_stuck=stuck)

    def _abandon(self, job: _Job) -> bool:
        """Whether it had begun."""
        with self._lock:
            if not job.abandoned:
                job.abandoned = True
                self._stuck += job.begun and not job.ended
            return job.begun

    def _hand_over(
        self,
        loop: asyncio.AbstractEventLoop,
        future: "asyncio.Future[Answer]",
        answer: Answer | None,
        error: Exception | None,
    ) -> None:
        def finish() -> None:
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(answer)  # type: ignore[arg-type]  # None only where Answer is None

        try:
            loop.call_soon_threadsafe(finish)
        except RuntimeError:
            # The loop is closed: the program ends, and nobody waits for the answer any more.
            _log.debug("libvirt.answer.unwanted", lane=self.name)
