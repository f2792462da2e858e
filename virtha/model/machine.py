"""Machine types that virtha makes domains for."""

from enum import StrEnum


class MachineType(StrEnum):
    """Families, not versions: the host's libvirt canonicalises ``q35`` to its newest."""

    Q35 = "q35"
    PC = "pc"
    S390_CCW = "s390-ccw-virtio"
