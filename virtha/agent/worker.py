"""A daemon thread for what may wait, and a queue that never does."""

import queue
import threading
from collections.abc import Callable

import structlog

WORK_MAX = 1_000

_log = structlog.get_logger(__name__)


class Worker:
    """Bounded, and a full queue is told, not waited for. A call that hangs keeps no process from ending."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.Queue[Callable[[], None]] = queue.Queue(maxsize=WORK_MAX)
        threading.Thread(target=self._run, name=f"virtha-{name}", daemon=True).start()

    def _run(self) -> None:
        while True:
            work = self._work.get()
            try:
                work()
            except OSError as error:
                _log.error("guardian's work failed", worker=self._name, error=str(error))
            except Exception:
                # A mistake of ours; without this thread no later kill, look or feeding would be carried out either.
                _log.exception("guardian's work broke", worker=self._name)

    def put(self, work: Callable[[], None]) -> bool:
        try:
            self._work.put_nowait(work)
        except queue.Full:
            _log.error("the guardian's worker hangs; work is left out", worker=self._name)
            return False
        return True
