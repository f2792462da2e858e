"""How long a VM's first write waits on a Ceph pool when its former host's QEMU died with the image open.

A real Ceph of one node, QEMU's own block driver on both sides, from two addresses. Without anything Ceph waits until it
takes the dead client for dead; shut out by virtha before the start (one connection), or with the host's whole address on the
blocklist (rule P3), the image changes hands at once. A frozen QEMU stands for the host: what it writes after its thaw must land nowhere.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from uuid import uuid4

from report import Figure, at_most, finish, quantile, shown

sys.path.append(str(Path(__file__).parents[1] / "tests" / "contract"))

from ceph_guest import OLD_HOST, Guest
from heartbeat_places import CephPlace
from msgspec.structs import replace
from own_ceph import OwnCeph

from virtha.agent import ceph_records
from virtha.agent.ceph_images import look
from virtha.drivers.ceph_blocklist import CephBlocklist
from virtha.model.ids import BootId

ROOT = Path(__file__).parents[1]
RUNS = 5
UNFENCED_RUNS = 2
IMAGE_BYTES = 1 << 30


class Measured:
    """Seconds of each way; ``late``: writes of the old guest that were acknowledged after its time."""

    def __init__(self) -> None:
        self.fence: dict[str, list[float]] = {}
        self.first_write: dict[str, list[float]] = {}
        self.late = 0


def take_over(ceph: OwnCeph, way: str, measured: Measured) -> None:
    place = CephPlace(ceph, namespace=uuid4().hex)
    pool = place.pool
    ceph.run("rbd", "namespace", "create", f"vms/{pool.namespace}")
    place.client().ask("create_image", name="i", size_bytes=IMAGE_BYTES, patience_ms=60_000)
    admin = replace(pool, user="admin", keyring=str(ceph.keyring("admin")))
    fence = place.opened(CephBlocklist(admin))
    fence.own_addresses()  # connected, as a running agent is
    old = place.opened(Guest(place, "i", OLD_HOST))
    old.write(1)
    assert "wrote" in old.answer()
    watchers = look(pool, "i")["watchers"]
    old.freeze()
    began_s, blocked = time.monotonic(), None
    if way == "connection":
        for address, _, _ in watchers:
            ceph_records.block(pool, address)
    elif way == "host":
        blocked = fence.block([OLD_HOST])
    fenced_s = time.monotonic()
    new = place.opened(Guest(place, "i"))
    new.write(2)
    assert "wrote" in new.answer()
    measured.fence.setdefault(way, []).append(fenced_s - began_s)
    measured.first_write.setdefault(way, []).append(time.monotonic() - fenced_s)
    old.write(3)
    old.thaw()
    measured.late += "wrote" in old.answer() or not new.holds(2)
    if blocked is not None:
        fence.lift(blocked, boot=BootId("b1"), runs=BootId("b2"))
    place.close()
    ceph_records.close_all()


def main() -> int:
    subprocess.run([str(ROOT / "scripts/setup"), "ceph"], check=True)
    measured = Measured()
    with tempfile.TemporaryDirectory(prefix="vt-", ignore_cleanup_errors=True) as directory:
        ceph = OwnCeph(Path(directory))
        ceph.start()
        try:
            for way, runs in (("connection", RUNS), ("host", RUNS), ("nothing", UNFENCED_RUNS)):
                for _ in range(runs):
                    take_over(ceph, way, measured)
                    print(f"{way}: first write after {measured.first_write[way][-1]:.2f} s")
        finally:
            ceph.stop()
    figures: dict[str, Figure] = {}
    for way in ("connection", "host"):
        both = [
            one + other
            for one, other in zip(measured.fence[way], measured.first_write[way], strict=True)
        ]
        figures[f"{way}_blocked_p50_s"] = at_most(
            3, quantile(both, 0.5), "s", "fence + first write"
        )
        figures[f"{way}_blocked_worst_s"] = shown(max(both), "s")
        figures[f"{way}_fence_p50_s"] = shown(quantile(measured.fence[way], 0.5), "s")
    nothing = measured.first_write["nothing"]
    figures["nothing_done_p50_s"] = shown(quantile(nothing, 0.5), "s", "Ceph's own 30 s")
    figures["late_writes"] = at_most(0, measured.late, "", "of a guest that was shut out")
    return finish("ceph_takeover", figures)


if __name__ == "__main__":
    sys.exit(main())
