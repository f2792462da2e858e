"""What a body says of a VM or template, as our requests have it. What is said of nothing that we have is ignored, as oVirt does."""

from msgspec import UNSET, UnsetType

from virtha.api.ovirt.fault import not_here
from virtha.api.ovirt.shape import Node
from virtha.api.ovirt.unkept import refuse_others
from virtha.api.ovirt.vm_node import BIOS, UNKEPT
from virtha.control.requests import WatchdogRequest
from virtha.model.errors import Conflict, InvalidInput
from virtha.model.machine import MachineType
from virtha.model.vm import OnIoError

MEMORY_DEFAULT = 1 << 30
"""oVirt's, of the Blank template."""


_UNKEPT = ("delete_protected", "stateless", "placement_policy.affinity", "placement_policy.hosts")


def refuse_unkept(body: Node) -> None:
    """What would protect a VM or bind it, if it were kept. Raises Refused."""
    refuse_others(body, UNKEPT, *_UNKEPT)


def refuse_unkept_start(body: Node) -> None:
    """A start of ``<vm>`` as it says for this once: only where is read of it. Raises Refused."""
    paths = ("delete_protected", "stateless", "placement_policy.affinity", "cdroms")
    refuse_others(body, UNKEPT, *paths, within="vm.")


def vcpus_of(body: Node) -> int | UnsetType:
    topology = (body.get("cpu") or {}).get("topology")
    if not topology:
        return UNSET
    count = 1
    for name in ("sockets", "cores", "threads"):
        part = topology.get(name, 1)
        if not 1 <= part <= 1_024:
            raise InvalidInput(
                f"{part} is out of range", field=f"cpu.topology.{name}", allowed=("1 to 1024",)
            )
        count *= part
    return count


def ha_of(body: Node) -> bool | UnsetType:
    enabled: bool | UnsetType = (body.get("high_availability") or {}).get("enabled", UNSET)
    return enabled


def priority_of(body: Node) -> int | UnsetType:
    priority: int | UnsetType = (body.get("high_availability") or {}).get("priority", UNSET)
    return priority


def on_io_error_of(body: Node) -> OnIoError | UnsetType:
    text = body.get("storage_error_resume_behaviour")
    if text is None:
        return UNSET
    if text not in tuple(OnIoError):
        raise InvalidInput(
            f"'{text[:64]}' is no value",
            field="storage_error_resume_behaviour",
            allowed=tuple(OnIoError),
        )
    return OnIoError(text)


def machine_of(body: Node) -> MachineType | UnsetType:
    """``custom_emulated_machine`` goes before ``bios.type``, as in oVirt."""
    custom = body.get("custom_emulated_machine")
    if custom:
        known = {one.value: one for one in MachineType}
        kind = next((name for name in known if name in custom), None)
        if kind is None:
            raise InvalidInput(
                f"'{custom[:64]}' is no machine type",
                field="custom_emulated_machine",
                allowed=tuple(known),
            )
        return known[kind]
    bios = (body.get("bios") or {}).get("type")
    if bios is None or bios == "cluster_default":
        return UNSET
    found = next((machine for machine, text in BIOS.items() if text == bios), None)
    if found is None:
        raise InvalidInput(
            f"'{bios[:64]}' is not offered", field="bios.type", allowed=tuple(BIOS.values())
        )
    return found


def watchdog_of(body: Node) -> WatchdogRequest | UnsetType:
    """oVirt's ``watchdogs`` or the source document's ``watchdog``. An empty list says nothing: the SDK writes back what it
    read, ``<watchdogs href=…/>``. A card is removed by its own DELETE. Raises Conflict."""
    given = [*body.get("watchdogs", ()), *([body["watchdog"]] if "watchdog" in body else ())]
    cards = list(
        dict.fromkeys(map(card_of, given))
    )  # with follow both forms are read, and written back
    if len(cards) > 1:
        raise Conflict(
            f"{len(cards)} watchdogs are given",
            code="problem.watchdog.second",
            field="watchdogs",
            fix="give one",
        )
    return cards[0] if cards else UNSET


def card_of(body: Node) -> WatchdogRequest:
    return WatchdogRequest(model=body.get("model", ""), action=body.get("action", ""))


def refuse_other_sources(body: Node) -> None:
    """A VM from a snapshot or an OVF would silently be another one. Raises Refused."""
    for name in ("snapshots", "initialization"):
        if body.get(name) and (name == "snapshots" or "configuration" in body[name]):
            raise not_here(f"a VM from {name}", "make it from a template")
