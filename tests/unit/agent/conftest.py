"""Fixtures of the agent's tests."""

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from agent_bench import Bench
from fake_qemus import FakeQemus


@pytest.fixture(autouse=True)
def own_log_settings() -> Iterator[None]:
    """The verbs configure structlog with the captured stderr of their test: undone after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def process_table() -> Iterator[None]:
    """A guardian kills what it finds in the machine's process table, where one test's QEMUs are another's: one at a
    time, those of other workers and other checkouts included."""
    with Path(tempfile.gettempdir(), "virtha-test-process-table.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def qemus(process_table: None) -> Iterator[FakeQemus]:
    made = FakeQemus()
    yield made
    made.end()
