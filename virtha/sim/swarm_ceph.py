"""Random worlds whose storage is a Ceph cluster, of which hosts are shut out (P3): a few of a hundred.

Whether a seed has one is drawn apart from all else: every other world is the one that it was before there were any.
"""

import random
from collections.abc import Sequence

from virtha.sim.ceph import POINTS as HELPER_POINTS
from virtha.sim.leader import POINTS
from virtha.sim.swarm_kinds import Draw, Kind

CEPH_PERCENT = 10
HANGS = ("90s", "120s", "150s")
"""Until the attempts at its power device are over and it was shut out, under most policies."""


def ceph_of(seed: int) -> random.Random | None:
    """What a world with a cluster is drawn by, beside the rest. None: it has none."""
    chance = random.Random(f"ceph {seed}")  # noqa: S311 - a seed, to be repeated
    return chance if chance.randrange(100) < CEPH_PERCENT else None


def on_ceph(chance: random.Random, lines: Sequence[str], domains: Sequence[str]) -> list[str]:
    """The lines that build a world, with a cluster of all its storage ``domains`` or of one of them, and a policy that counts on it."""
    pools = " ".join(domains if chance.randrange(100) < 70 else domains[:1])
    ways = (
        "next_level,storage_fence,lease,operator"
        if domains
        else "next_level,storage_fence,operator"
    )
    found: list[str] = []
    for line in lines:
        if line.startswith("host ") and not any(one.startswith("ceph") for one in found):
            found.append(f"ceph {pools}".rstrip())
        policy = line.startswith("policy ")
        found.append(f"{line} fencing.unreachable=[{ways}]" if policy else line)
    return found


def ceph_kinds(chosen: Sequence[Kind]) -> list[Kind]:
    """Beside those that were ``chosen``: none that hides a host where a device lies."""
    liars = any(kind.lies for kind in chosen)
    return [kind for kind in CEPH_KINDS if not (liars and kind.hides)]


def _deaf(host: str, draw: Draw) -> tuple[list[str], list[str]]:
    """Its power devices answer nobody, and what ends that."""
    if draw.one("cut", "dead") == "cut":
        return [f"cut bmc {host}"], [f"heal bmc {host}"]
    return [f"bmc {host} dead"], [f"bmc {host} ok"]


def _long(draw: Draw) -> str:
    return f"advance {draw.one(*HANGS)}"


def _hangs(draw: Draw) -> list[str]:
    host = draw.host
    deaf, heard = _deaf(host, draw)
    return [*deaf, f"hang {host}", _long(draw), f"thaw {host}", draw.pause, *heard]


def _dies(draw: Draw) -> list[str]:
    host = draw.host
    deaf, heard = _deaf(host, draw)
    return [*deaf, f"power-cut {host}", _long(draw), f"boot {host}", draw.pause, *heard]


def _dies_twice(draw: Draw) -> list[str]:
    """The second time while it is let in again, or soon after."""
    host = draw.host
    deaf, heard = _deaf(host, draw)
    again = draw.one(f"hang {host}", f"power-cut {host}")
    lines = [*deaf, f"hang {host}", _long(draw), f"power-cut {host}", f"boot {host}", draw.pause]
    lines += [f"start {draw.vm} on={host}", draw.pause, again, _long(draw)]
    return [*lines, f"thaw {host}", f"power-cut {host}", f"boot {host}", *heard]


def _helper_fails(draw: Draw) -> list[str]:
    """Between its look and its act, or between its act and its answer; it goes on at some later time."""
    host, helper = draw.host, draw.host
    deaf, heard = _deaf(host, draw)
    traps = [
        f"at-ceph {one} {draw.one(*HELPER_POINTS)} {draw.one('crash', 'freeze', 'freeze')}"
        for one in {helper: 0, draw.one(*draw.hosts): 0}
    ]
    lines = [*traps, *deaf, f"hang {host}", _long(draw)]
    back = draw.one(f"thaw {host}", f"power-cut {host}")
    lines += [back, f"boot {host}", draw.pause, f"thaw {helper}"]
    return [*lines, draw.pause, *heard]


def _leader_dies(draw: Draw) -> list[str]:
    host = draw.host
    deaf, heard = _deaf(host, draw)
    killed = [f"kill-server{draw.at(POINTS)}", draw.pause, "start-server"]
    before = f"advance {draw.one('30s', '40s', '50s', '60s')}"
    return [*deaf, f"hang {host}", before, *killed, _long(draw), f"thaw {host}", *heard]


def _obstacle(draw: Draw) -> list[str]:
    return [f"ceph-sees {draw.host} {draw.one('nat', 'daemons')}"]


CEPH_KINDS: tuple[Kind, ...] = (
    Kind("host hangs and is shut out", 60, 0, _hangs, hides=True),
    Kind("host dies, is shut out and boots", 24, 0, _dies),
    Kind("host is shut out twice", 50, 0, _dies_twice, hides=True),
    Kind("helper fails in mid-fence", 50, 0, _helper_fails, hides=True),
    Kind("leader dies in mid-fence", 36, 0, _leader_dies, hides=True),
    Kind("host that may not be shut out", 22, 0, _obstacle),
)
"""As ``KINDS``, of worlds with a cluster only. None changes an address: here all that a host has open is seen with its present one, while
a QEMU keeps the one that it began with; that is told by a story of its own."""
