"""The host's boot id."""

from pathlib import Path

from virtha.agent.paths import boot_id_file
from virtha.model.errors import Failed
from virtha.model.ids import BootId


def read_boot_id(path: Path | None = None) -> BootId:
    """Raises Failed: without it no grant can be bound to this boot, so nothing may be started."""
    source = path or boot_id_file()
    try:
        text = source.read_text(encoding="ascii").strip()
    except OSError as error:
        raise Failed(f"can't read this host's boot id from {source}: {error.strerror}") from error
    if not text:
        raise Failed(f"this host's boot id in {source} is empty")
    return BootId(text)
