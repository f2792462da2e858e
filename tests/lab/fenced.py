"""A lab's cluster that fences as often as a test wants, with a power device per host."""

import contextlib
from collections.abc import Iterator

from virtha.lab.api import Json
from virtha.lab.bmc import Bmc
from virtha.lab.story import BY_IPMI, Story, bmcs, no_restart_limit

READ_DEADLINE_MS = 4_500
"""A loaded machine takes its time to run ipmitool."""


@contextlib.contextmanager
def fenced(story: Story, settings: Json = BY_IPMI, **policy: Json) -> Iterator[dict[str, Bmc]]:
    """``policy``: other parts of it."""
    fencing = {"read_deadline_ms": READ_DEADLINE_MS, "cap_count": 1_000}
    story.set_policy({**no_restart_limit(), "fencing": fencing, **policy})
    try:
        with bmcs(story, settings) as made:
            yield made
    finally:
        story.set_policy(no_restart_limit())
