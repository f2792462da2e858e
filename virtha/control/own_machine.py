"""The machine that this server runs on, and which host it is: that one is never fenced by us (J4)."""

from virtha.model.host import HostStatus
from virtha.model.ids import BootId
from virtha.model.value import Value


class OwnMachine(Value, frozen=True, kw_only=True):
    """``boot``: its present one; None: not known. ``id``: the same over its boots; None: it has none."""

    boot: BootId | None = None
    id: str | None = None

    def carries_us(self, status: HostStatus) -> bool:
        """Also before that host has connected since the machine's last boot, when the boot on record is an old one: its agent
        may never come back, and judged dead it would be this machine that is switched off."""
        if self.boot is not None and status.boot == self.boot:
            return True
        return self.id is not None and status.carries == self.id

    def mark(self, boot: BootId) -> str | None:
        """What is kept of a host that connects in that boot: whose server it carries. Anew each time, so that a server that
        has moved, or a copied id, ends with the next connection."""
        return self.id if self.boot is not None and boot == self.boot else None
