"""Fixtures of the agent's tests."""

from pathlib import Path

import pytest
from agent_bench import Bench


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Bench(tmp_path, monkeypatch)
