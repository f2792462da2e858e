"""Whether a VM ran twice, by what was seen from outside. One that is started, taken back, and started again ran once at a time."""

from collections.abc import Iterable, Sequence

from virtha.lab.watching import Seen

_ENDS = ("stopped", "crashed")


def ran_at_once(seen: Iterable[tuple[str, Seen]]) -> set[str]:
    """VMs that one host's libvirt started before another's told of its end. ``seen``: host and event, in the order of time."""
    runs: dict[str, set[str]] = {}
    found = set()
    for host, one in seen:
        there = runs.setdefault(one.vm, set())
        if one.kind == "started":
            if there - {host}:
                found.add(one.vm)
            there.add(host)
        elif one.kind in _ENDS:
            there.discard(host)
    return found


def starts_of(seen: Iterable[tuple[str, Seen]]) -> dict[str, int]:
    found: dict[str, int] = {}
    for _, one in seen:
        if one.kind == "started":
            found[one.vm] = found.get(one.vm, 0) + 1
    return found


def wrote_in_turn(writers: Sequence[str], starts: int) -> bool:
    """``writers``: hosts by what they wrote to one disk, one after another's being one each. Each but the first began with a start; one
    that had none wrote after another had begun."""
    return len(writers) - 1 > starts
