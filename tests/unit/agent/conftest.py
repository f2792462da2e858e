"""Fixtures of the agent's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
from agent_bench import Bench


@pytest.fixture(autouse=True)
def own_log_settings() -> Iterator[None]:
    """The verbs configure structlog with the captured stderr of their test: undone after it."""
    yield
    structlog.reset_defaults()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Bench(tmp_path, monkeypatch)
