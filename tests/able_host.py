"""A host that can do all that VMs of tests need, and the image that they are made of."""

from virtha.model.facts import Image
from virtha.model.host import HostCapabilities
from virtha.model.watchdog import WatchdogModel

GIB, MIB = 1 << 30, 1 << 20
ABLE = HostCapabilities(
    cpus=4,
    memory_bytes=8 * GIB,
    libvirt_version=9_000_000,
    watchdog_models=(WatchdogModel.I6300ESB,),
    bridges=("br0",),
    gate_in_force=True,
    libvirt_connected=True,
)
IMAGE = Image(
    name="tiny",
    path="images/tiny.qcow2",
    format="qcow2",
    size_bytes=4 * MIB,
    virtual_size_bytes=64 * MIB,
)
