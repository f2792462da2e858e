"""What this machine's firmware says which machine it is (SMBIOS, through /sys; root may read it)."""

import os
from pathlib import Path

from virtha.model.machine_identity import uuid_digits
from virtha.model.power_settings import MachineIdentity

_FIRMWARE = Path("/sys/class/dmi/id")
_LENGTH_MAX = 200


def machine_identity(firmware: Path | None = None) -> MachineIdentity:
    """Empty where there is no such firmware, or it was never told. Never libvirt's own UUID: where the firmware has none,
    libvirt makes one up."""
    firmware = firmware_directory() if firmware is None else firmware
    return MachineIdentity(
        uuid=uuid_digits(_word(firmware / "product_uuid")),
        serial=_word(firmware / "product_serial"),
    )


def firmware_directory() -> Path:
    """Lab hosts share one machine, and that may have none: each gets a directory of its own."""
    return Path(os.environ.get("VIRTHA_FIRMWARE_DIRECTORY", _FIRMWARE))


def _word(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()[:_LENGTH_MAX]
    except OSError:
        return ""
