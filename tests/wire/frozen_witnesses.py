"""The messages about witnesses of a silent host, as ``freeze_wire.py`` freezes them."""

from frozen_leases import LEASE_DOMAIN as DOMAIN
from frozen_leases import LEASE_HOST as HOST

from virtha.model.evidence import Answer, WatchedDisk
from virtha.model.ids import BootId
from virtha.wire.messages import Message
from virtha.wire.witness_messages import (
    DisksLooked,
    HostProbed,
    LookAtDisks,
    ProbeHost,
    ProbeTarget,
)


def witness_messages(boot: BootId) -> dict[str, Message]:
    return {
        "probe_host": ProbeHost(
            question=7,
            subject=HOST,
            targets=(
                ProbeTarget(
                    network="management", address="192.0.2.11", port=8252, source="192.0.2.12"
                ),
                ProbeTarget(
                    network="storage", address="2001:db8::11", port=8252, source="2001:db8::12"
                ),
            ),
            deadline_ms=500,
        ),
        "host_probed": HostProbed(question=7, network="storage", answer=Answer.ALIVE, boot=boot),
        "host_probed_silent": HostProbed(question=7, network="management", answer=Answer.SILENT),
        "look_at_disks": LookAtDisks(
            question=8,
            subject=HOST,
            silence="s1 3",
            disks=(WatchedDisk(domain_id=DOMAIN, path="vms/web1/vda.qcow2"),),
            gap_ms=600,
            deadline_ms=2_000,
        ),
        "disks_looked": DisksLooked(question=8, changed=True, disks=1),
        "disks_looked_unknown": DisksLooked(question=8, changed=None),
    }
