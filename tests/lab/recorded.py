"""What the lab's server has on record at this very moment, read from its database while it runs, is killed, or is dead."""

import sqlite3
from urllib.parse import quote

from virtha.engine.records import FenceStep
from virtha.lab.story import Story
from virtha.server.config import ServerPaths


class Recorded:
    """Since it was made. A context manager."""

    def __init__(self, story: Story, host: str) -> None:
        database = ServerPaths(story.lab.server.root).database
        self._connection = sqlite3.connect(f"file:{quote(str(database))}?mode=ro", uri=True)
        self._host = str(story.api.get(f"/v1/hosts/{host}")["host"]["id"])
        self._after = story.revision()

    def __enter__(self) -> "Recorded":
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def event(self, code: str) -> bool:
        found = self._connection.execute(
            "SELECT 1 FROM event WHERE revision > ? AND code = ? LIMIT 1", (self._after, code)
        )
        return found.fetchone() is not None

    def line(self, code: str) -> bool:
        """Of the timeline of the host's incident."""
        found = self._connection.execute(
            "SELECT body FROM incident WHERE host_id = ? AND number > ?", (self._host, self._after)
        )
        return any(f'"{code}"' in body for (body,) in found)

    def step(self, step: FenceStep) -> bool:
        """Of its fence."""
        found = self._connection.execute(
            "SELECT body FROM engine_host WHERE host_id = ?", (self._host,)
        )
        return any(f'"step":"{step.value}"' in body for (body,) in found)
