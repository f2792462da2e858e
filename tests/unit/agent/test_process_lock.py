"""One agent and one guardian per host, whoever starts the second."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from virtha.agent import checks
from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock, is_held
from virtha.model.errors import Failed
from virtha.model.ids import InstallationId, Term
from virtha.model.orders import HostSettings


@pytest.mark.bad_input("second agent or server")
def test_a_second_agent_of_a_host_is_told_of_the_first(tmp_path: Path) -> None:
    paths = AgentPaths(root=str(tmp_path))
    assert not is_held(paths, "agent")
    first = hold_lock(paths, "agent")
    try:
        assert is_held(paths, "agent")
        assert not is_held(paths, "guardian")
        with pytest.raises(Failed, match="the agent runs already on this host") as told:
            hold_lock(paths, "agent")
        assert told.value.fix == "stop that one first: systemctl stop virtha-agent"
        os.close(hold_lock(paths, "guardian"))
    finally:
        os.close(first)
    assert not is_held(paths, "agent"), "the file of one that has ended tells nothing"
    os.close(hold_lock(paths, "agent"))


def test_a_check_names_what_does_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "LIBVIRT_DEADLINE_S", 0.01)
    paths = AgentPaths(root=str(tmp_path))
    held = hold_lock(paths, "guardian")
    try:
        found = {one.name: one for one in asyncio.run(checks.check_host(paths))}
    finally:
        os.close(held)
    assert found["guardian"].ok is True
    assert found["agent"].ok is False
    assert "systemctl start virtha-agent" in found["agent"].fix


def test_a_check_waits_for_the_first_settings_of_a_host_that_has_just_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Typed right after the agent was started, as the guide says, it would find none yet."""
    paths = AgentPaths(root=str(tmp_path))
    paths.make_directories()
    monkeypatch.setattr(checks, "SETTINGS_DEADLINE_S", 60.0)
    settings = HostSettings(revision=1, installation_id=InstallationId("i"), term=Term(1))

    async def story() -> HostSettings | None:
        waiting = asyncio.create_task(checks._settings(paths))
        await asyncio.sleep(0)
        assert not waiting.done()
        paths.settings.write_bytes(msgspec.json.encode(settings))
        return await waiting

    assert asyncio.run(checks._settings(paths)) is None, "no agent runs: nobody will bring them"
    held = hold_lock(paths, "agent")
    try:
        assert asyncio.run(story()) == settings
        paths.settings.unlink()
        monkeypatch.setattr(checks, "SETTINGS_DEADLINE_S", 0.0)
        assert asyncio.run(checks._settings(paths)) is None
    finally:
        os.close(held)
