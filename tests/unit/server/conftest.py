"""What tests of notifications tell their stories with."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from notified_world import open_notified
from routed_world import Story


@pytest.fixture
def tell(tmp_path: Path, fresh_database: Callable[[Path], None]) -> Callable[[Story], None]:
    fresh_database(tmp_path)

    def run(story: Story) -> None:
        async def main() -> None:
            async with open_notified(tmp_path) as world:
                await story(world)

        asyncio.run(main())

    return run
