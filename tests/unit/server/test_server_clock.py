"""A server's clock that was set back: said by `virtha server check` and when the server begins, and nothing else."""

import asyncio
from pathlib import Path

import pytest

from virtha.drivers.machine_clock import MachineClock
from virtha.model.time import UtcMillis
from virtha.server.checks import Check, CheckState, check_installation
from virtha.server.config import ServerPaths
from virtha.server.setup import InitAnswers, set_up

DAY_MS = 86_400_000


class Shifted(MachineClock):
    def __init__(self, by_ms: int) -> None:
        self._by_ms = by_ms

    def wall_ms(self) -> UtcMillis:
        return UtcMillis(super().wall_ms() + self._by_ms)


@pytest.mark.bad_input("server with its clock back")
def test_a_clock_is_held_against_what_was_recorded(tmp_path: Path) -> None:
    paths = ServerPaths(tmp_path)
    wanted = InitAnswers(listen="127.0.0.1:0", gateway_listen="127.0.0.1:0")
    asyncio.run(set_up(paths, wanted, MachineClock()))

    def clock(by_ms: int) -> Check:
        found = {one.name: one for one in check_installation(paths, Shifted(by_ms))}
        return found["clock"]

    # Ahead, or back by what a good clock is corrected by, is nothing to tell.
    assert clock(0).state is CheckState.OK
    assert clock(DAY_MS).state is CheckState.OK
    assert clock(-30_000).state is CheckState.OK
    back = clock(-DAY_MS)
    assert back.state is CheckState.WARNING
    assert "the last event on record was at" in back.detail
    assert "timedatectl" in back.fix
