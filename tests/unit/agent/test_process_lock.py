"""One agent and one guardian per host, whoever starts the second."""

import os
from pathlib import Path

import pytest

from virtha.agent.paths import AgentPaths
from virtha.agent.process_lock import hold_lock
from virtha.model.errors import Failed


@pytest.mark.bad_input("second agent or server")
def test_a_second_agent_of_a_host_is_told_of_the_first(tmp_path: Path) -> None:
    paths = AgentPaths(root=str(tmp_path))
    first = hold_lock(paths, "agent")
    try:
        with pytest.raises(Failed, match="the agent runs already on this host") as told:
            hold_lock(paths, "agent")
        assert told.value.fix == "stop that one first: systemctl stop virtha-agent"
        os.close(hold_lock(paths, "guardian"))
    finally:
        os.close(first)
    os.close(hold_lock(paths, "agent"))
