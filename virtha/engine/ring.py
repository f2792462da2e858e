"""Hosts in the order of their numbers: whose neighbours are asked about whom.

Beside the ring of all hosts there is one of those that can be asked for each thing, so that a host's witnesses are found
without a look at those in between that can't be: in a large cluster where nearly all are silent, those are nearly all.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

from virtha.engine.machine import Verdict
from virtha.model.evidence import ProcessKind
from virtha.model.ids import BootId, HostId

Place = tuple[int, HostId]
"""A host's number, and its id so that no two places are the same."""


class Ring:
    """Ids in the order of their places. What it is asked costs the logarithm of its length."""

    def __init__(self) -> None:
        self._places: list[Place] = []
        self._numbers: dict[HostId, int] = {}

    def __contains__(self, host_id: object) -> bool:
        return host_id in self._numbers

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[HostId]:
        return (host_id for _, host_id in self._places)

    def put(self, host_id: HostId, number: int) -> None:
        """Also where it is in it already, by whatever number."""
        if self._numbers.get(host_id) == number:
            return
        self.discard(host_id)
        insort(self._places, (number, host_id))
        self._numbers[host_id] = number

    def discard(self, host_id: HostId) -> None:
        number = self._numbers.pop(host_id, None)
        if number is not None:
            del self._places[bisect_left(self._places, (number, host_id))]

    def place_after(self, host_id: HostId, steps: int) -> Place:
        """So many places on from the one behind that member's own, once around and on."""
        behind = bisect_right(self._places, (self._numbers[host_id], host_id))
        return self._places[(behind + steps) % len(self._places)]

    def around(self, start: Place) -> Iterator[HostId]:
        """All, from ``start`` once around."""
        places = self._places
        first = bisect_left(places, start)
        for step in range(len(places)):
            yield places[(first + step) % len(places)][1]

    def those_of(self, some: set[HostId], start: Place) -> Iterator[HostId]:
        """The members among ``some``, in that order. Few are sorted; of many the first are soon met."""
        if len(some) ** 2 > len(self):
            return (one for one in self.around(start) if one in some)
        found = [(self._numbers[one], one) for one in some if one in self]
        return (one for _, one in sorted(found, key=lambda place: (place < start, place)))


class Rings:
    """All hosts, and which of them can be asked what."""

    def __init__(self) -> None:
        self.all = Ring()
        self.present = Ring()
        """Verdict alive, with a sign in this term: who can be asked, and J4's majority."""
        self.heard_by_agent = Ring()
        """An agent's session stands."""
        self.readers = Ring()
        """Alive with an agent, which reads disks."""

    def note(
        self,
        host_id: HostId,
        number: int,
        verdict: Verdict,
        sessions: dict[ProcessKind, BootId],
    ) -> None:
        """To be called whenever one of these is another one."""
        agent = ProcessKind.AGENT in sessions
        self.all.put(host_id, number)
        for ring, belongs in (
            (self.present, verdict in (Verdict.ALIVE, Verdict.AGENT_DOWN)),
            (self.heard_by_agent, agent),
            (self.readers, agent and verdict is Verdict.ALIVE),
        ):
            if belongs:
                ring.put(host_id, number)
            else:
                ring.discard(host_id)

    def forget(self, host_id: HostId) -> None:
        for ring in (self.all, self.present, self.heard_by_agent, self.readers):
            ring.discard(host_id)
