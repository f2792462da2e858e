"""Since when a host's word counts in this timeline of the database (M2).

In memory only: a server that has just begun has heard nobody, and agents tell their inventory again to
each new server instance.
"""

from virtha.model.facts import Fact
from virtha.model.ids import BootId, HostId
from virtha.model.value import Value


class _Hello(Value, frozen=True, kw_only=True):
    timeline: str
    boot: BootId
    after: int
    """The last fact that the host had written when it first said hello in this timeline."""


class HelloBook:
    def __init__(self) -> None:
        self._hellos: dict[HostId, _Hello] = {}

    def note(self, host_id: HostId, timeline: str, boot: BootId, last: int) -> None:
        """``last``: the last fact that the host has written, or that we have of it."""
        known = self._hellos.get(host_id)
        if known is None or (known.timeline, known.boot) != (timeline, boot):
            # Not the newest hello: what was told after the first one may come again after a later one.
            self._hellos[host_id] = _Hello(timeline=timeline, boot=boot, after=last)

    def forget(self, host_id: HostId) -> None:
        self._hellos.pop(host_id, None)

    def made_after(self, host_id: HostId, timeline: str, fact: Fact) -> bool:
        """Whether ``fact`` is of the session's boot, and was made after that hello. What lay in the
        host's outbox may be older than the restore, and not know what was started since."""
        known = self._hellos.get(host_id)
        return (
            known is not None
            and known.timeline == timeline
            and known.boot == fact.boot
            and fact.sequence > known.after
        )
