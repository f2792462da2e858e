"""Processes that compute beside this one, and end when it ends, in whichever way."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait

_INTERRUPT = frozenset({signal.SIGINT})
INTERRUPTED = 130
"""As a shell says of a process that Ctrl-C ended."""


def worker_pool(jobs: int) -> ProcessPoolExecutor:
    """Fresh processes: nothing of this one's threads or state is in them. Of the main thread.

    A terminal sends Ctrl-C to all of them. What comes while one starts waits until it is ready: halfway through its imports
    it would print where it was."""
    resource_tracker.ensure_running()  # it unblocks the signal when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPT)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    context = multiprocessing.get_context("forkserver")
    return ProcessPoolExecutor(jobs, mp_context=context, initializer=_end_with_parent)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on with its piece, then wait for ever. One that is interrupted ends without
    a word: the parent is interrupted too, and speaks for all."""
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(INTERRUPTED))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPT)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
