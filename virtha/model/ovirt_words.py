"""What oVirt's clients call the states of VMs, hosts and templates: the one table of what they are shown (api/ovirt) and of what
they search by (store/search_status.py)."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, TypeVar

from virtha.model.host import HostState
from virtha.model.template import TemplateState
from virtha.model.vm import VmState

State = TypeVar("State", bound=StrEnum)


class UnderWay(NamedTuple):
    """A VM in ``state`` is called ``word`` while an operation of one of ``kinds`` is open."""

    state: VmState
    kinds: frozenset[str]
    word: str


VM_WORDS: Mapping[VmState, str] = {
    VmState.UNKNOWN: "unknown",
    VmState.DOWN: "down",
    VmState.STARTING: "powering_up",
    VmState.RUNNING: "up",
    VmState.STOPPING: "powering_down",
    VmState.PAUSED: "paused",
    # The guest panicked and its remains are kept: QEMU is there, the guest does not answer.
    VmState.CRASHED: "not_responding",
}
VMS_UNDER_WAY = (
    UnderWay(
        VmState.DOWN,
        frozenset({"vm.create", "vm.delete", "vm.snapshot", "template.create"}),
        "image_locked",
    ),
    UnderWay(VmState.DOWN, frozenset({"vm.start", "vm.recover"}), "wait_for_launch"),
    UnderWay(VmState.RUNNING, frozenset({"vm.migrate"}), "migrating"),
    UnderWay(VmState.RUNNING, frozenset({"vm.reboot", "vm.reset"}), "reboot_in_progress"),
)
"""The first that applies counts, before ``VM_WORDS``."""

HOST_WORDS: Mapping[HostState, str] = {
    HostState.NEVER_SEEN: "connecting",
    HostState.UP: "up",
    # The host lives and runs its VMs; nothing can be ordered from it.
    HostState.AGENT_DOWN: "non_operational",
    HostState.UNREACHABLE: "non_responsive",
}
HOST_DEAD = "down"
HOST_LEAVING = "preparing_for_maintenance"
HOST_IN_MAINTENANCE = "maintenance"
HOST_SUSPECT = HOST_WORDS[HostState.NEVER_SEEN]
"""While its cluster's leader suspects it, which is recorded nowhere."""

TEMPLATE_WORDS: Mapping[TemplateState, str] = {
    TemplateState.CREATING: "locked",
    TemplateState.READY: "ok",
    TemplateState.DELETING: "locked",
}


VM_STATUSES = tuple(dict.fromkeys((*VM_WORDS.values(), *(one.word for one in VMS_UNDER_WAY))))
HOST_STATUSES = (*HOST_WORDS.values(), HOST_DEAD, HOST_LEAVING, HOST_IN_MAINTENANCE)
TEMPLATE_STATUSES = tuple(dict.fromkeys(TEMPLATE_WORDS.values()))


def other_names(words: Mapping[State, str]) -> dict[str, StrEnum]:
    """Those that mean one state, and are no state's own name: of a search by state, other ways of writing it."""
    own = {state.value for state in words}
    told = list(words.values())
    return {
        word: state for state, word in words.items() if word not in own and told.count(word) == 1
    }
