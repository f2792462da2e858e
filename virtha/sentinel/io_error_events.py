"""What goes in and out of the sentinel about VMs that an I/O error paused; see ``io_errors``."""

from virtha.model.facts import Result
from virtha.model.ids import Incarnation, VmId
from virtha.model.value import Value
from virtha.model.vm import Reason


class IoPause(Value, frozen=True, kw_only=True):
    """QEMU paused it on an I/O error, and it has not run since; times of the boot-time clock. See ``io_errors``."""

    since_ms: int
    quiet_ms: int
    """Since when nothing was tried: the base of the next resume's delay."""
    attempt: int | None = None
    """A ``ResumeDomain`` was ordered and has not been answered."""
    attempt_ms: int = 0
    given_up: Reason | None = None
    """Said once, and for good until a person resumes it."""
    why: Reason | None = None
    """What keeps it from being resumed now."""


class DisksProbed(Value, frozen=True, kw_only=True):
    """How a ``ProbeDisks`` ended. ``why_not`` None: each of its disks can be read and each of their storage domains
    written, on the storage itself, and the host may run the VM by the leases on them."""

    vm_id: VmId
    number: int
    why_not: str | None


class ResumeEnded(Value, frozen=True, kw_only=True):
    """How a ``ResumeDomain`` ended. That it runs, libvirt's own event says."""

    vm_id: VmId
    incarnation: Incarnation
    attempt: int
    result: Result
    detail: str = ""


class EndPausedAccepted(Value, frozen=True, kw_only=True):
    """It is about to be ended, for an I/O error keeps it paused. Stepped, and its intents written, before it is done: so
    its end is known for what it was, also by an agent that comes after this one."""

    vm_id: VmId
    incarnation: Incarnation
    by: str


class ProbeDisks(Value, frozen=True, kw_only=True):
    """See whether the storage of all its disks answers. Answered by ``DisksProbed``."""

    vm_id: VmId
    number: int
    """Of the question: an answer to an earlier one says nothing of now."""
    needs_room: bool
    """It paused because a storage domain was full: one that still is does not do."""


class ResumeDomain(Value, frozen=True, kw_only=True):
    """Let it go on, if it still stands where an I/O error left it. Answered by ``ResumeEnded``."""

    vm_id: VmId
    incarnation: Incarnation
    attempt: int


IoErrorAnswer = DisksProbed | ResumeEnded | EndPausedAccepted
IoErrorCommand = ProbeDisks | ResumeDomain
