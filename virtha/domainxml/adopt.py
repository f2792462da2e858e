"""Existing libvirt domains: patched element by element, and given back (A8).

The mark in ``<metadata>`` lists what we changed, so that giving back takes out just that, and leaves
what the administrator changed in the meantime.
"""

from xml.dom.minidom import Document, Element

from virtha.domainxml.elements import (
    GUEST_AGENT_CHANNEL,
    channel_element,
    effective_watchdog,
    make,
    metadata_element,
    panic_element,
    rng_element,
    watchdog_element,
    xml_text,
)
from virtha.domainxml.host_defaults import HostDefaults
from virtha.domainxml.reading import DomainReading, managed_mark, managed_vm_id, read_domain
from virtha.domainxml.xmltree import (
    attribute,
    cloned,
    elements,
    first,
    imported,
    insert,
    parse_domain,
    remove,
    root_of,
    set_text,
    text_of,
    written,
)
from virtha.model.errors import InvalidInput
from virtha.model.size import format_size
from virtha.model.value import Value
from virtha.model.vm import Vm
from virtha.model.watchdog import Watchdog, WatchdogModel

__all__ = [
    "DomainReading",
    "Patched",
    "managed_vm_id",
    "patch_domain",
    "read_domain",
    "unpatch_domain",
]

_PREFIX = "virtha"
_ENDINGS = {"on_poweroff": "destroy", "on_reboot": "restart", "on_crash": "destroy"}
"""A restart after a crash is the sentinel's to decide; libvirt's own would hide it from us."""


class Patched(Value, frozen=True, kw_only=True):
    xml: str
    changes: tuple[str, ...] = ()
    """In words, for people; empty: nothing had to change."""


class _Patch:
    """One document while it is being changed: what was done, in words and as keys of the mark."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.root = root_of(document)
        self.changes: list[str] = []
        self.keys: set[str] = set()

    def did(self, key: str, words: str) -> None:
        self.keys.add(key)
        self.changes.append(words)

    def devices(self) -> Element:
        devices = first(self.root, "devices")
        if devices is None:
            devices = imported(self.document, make("devices"))
            insert(self.root, devices)
        return devices

    def finished(self) -> Patched:
        return Patched(xml=written(self.document), changes=tuple(self.changes))


def patch_domain(xml: str, vm: Vm, host: HostDefaults) -> Patched:
    """What protecting this domain needs, and ``vm``'s memory, processors, description and watchdog.

    Everything else stays as it is, namespaces, comments and unknown elements included. Patching
    twice changes nothing the second time. Raises InvalidInput: no domain XML, or another VM's.
    """
    patch = _Patch(parse_domain(xml))
    found_id = text_of(first(patch.root, "uuid")).lower()
    if found_id != vm.id.lower():
        raise InvalidInput(f"is the definition of another VM ({found_id})", field="xml")
    _patch_sizes(patch, vm)
    for tag, wanted in _ENDINGS.items():
        _patch_ending(patch, tag, wanted)
    _patch_channel(patch)
    _patch_panic(patch, vm)
    _patch_rng(patch, host)
    _patch_watchdog(patch, effective_watchdog(vm, host))
    _patch_serial_log(patch, host.serial_log(vm.id))
    _patch_mark(patch, vm)
    return patch.finished()


def unpatch_domain(xml: str, original_xml: str) -> Patched:
    """Take our changes out of ``xml`` again; what others changed since adoption stays.

    Raises InvalidInput: either is no domain XML.
    """
    patch = _Patch(parse_domain(xml))
    original = root_of(parse_domain(original_xml))
    mark = managed_mark(patch.root)
    if mark is None:
        return patch.finished()
    keys = set(mark.getAttribute("changed").split())
    for tag, wanted in _ENDINGS.items():
        if tag in keys:
            _restore_ending(patch, tag, wanted, original)
    if "channel" in keys:
        _drop(patch, _agent_channels(patch.root), "the guest agent's channel")
        _drop_idle_serial_controller(patch, original)
    for key, words in (("panic", "the panic device"), ("rng", "the random number generator")):
        if key in keys:
            _drop(patch, elements(patch.devices(), key), words)
    if "watchdog" in keys:
        _restore_watchdog(patch, original)
    if "serial_log" in keys:
        _drop(patch, _our_logs(patch, mark.getAttribute("id")), "the log of the serial console")
    _drop_empty_devices(patch, original)
    metadata = mark.parentNode
    remove(mark)
    if isinstance(metadata, Element) and not metadata.childNodes:
        remove(metadata)
    patch.changes.append("virtha's mark removed")
    return patch.finished()


def _patch_sizes(patch: _Patch, vm: Vm) -> None:
    """Adopting changes none of these; an operator's later edit does."""
    root = patch.root
    reading = read_domain(written(patch.document), HostDefaults())
    if reading.vm is None:
        raise InvalidInput("; ".join(reading.obstacles), field="xml")
    # libvirt keeps whole KiB, so only a difference in these is one.
    if _kib(reading.vm.memory_bytes) != _kib(vm.memory_bytes):
        for tag in ("memory", "currentMemory"):
            element = first(root, tag)
            if element is not None:
                element.setAttribute("unit", "KiB")
                set_text(element, str(_kib(vm.memory_bytes)))
        patch.changes.append(
            f"memory {format_size(reading.vm.memory_bytes)} -> {format_size(vm.memory_bytes)}"
        )
    if reading.vm.vcpus != vm.vcpus:
        element = first(root, "vcpu")
        if element is not None:
            if element.hasAttribute("current"):
                element.removeAttribute("current")
            set_text(element, str(vm.vcpus))
            patch.changes.append(f"processors {reading.vm.vcpus} -> {vm.vcpus}")
    if reading.vm.description != vm.description.strip():
        _patch_description(patch, xml_text(vm.description))


def _kib(size_bytes: int) -> int:
    return -(-size_bytes // 1024)


def _patch_description(patch: _Patch, wanted: str) -> None:
    element = first(patch.root, "description")
    if element is None:
        element = imported(patch.document, make("description"))
        # After name and uuid, where libvirt itself writes it.
        insert(
            patch.root, element, before=first(patch.root, "metadata") or first(patch.root, "memory")
        )
    if text_of(element) == wanted.strip():
        return
    set_text(element, wanted)
    patch.changes.append("description changed")


def _patch_ending(patch: _Patch, tag: str, wanted: str) -> None:
    element = first(patch.root, tag)
    found = text_of(element)
    if found == wanted:
        return
    if element is None:
        element = imported(patch.document, make(tag))
        insert(patch.root, element, before=first(patch.root, "devices"))
    set_text(element, wanted)
    patch.did(tag, f"{tag} {found or 'unset'} -> {wanted}")


def _agent_channels(root: Element) -> list[Element]:
    return [
        channel
        for channel in elements(first(root, "devices") or root, "channel")
        if attribute(first(channel, "target"), "name") == GUEST_AGENT_CHANNEL
    ]


def _patch_channel(patch: _Patch) -> None:
    if not _agent_channels(patch.root):
        insert(patch.devices(), imported(patch.document, channel_element()))
        patch.did("channel", f"channel {GUEST_AGENT_CHANNEL} for the guest agent added")


def _patch_panic(patch: _Patch, vm: Vm) -> None:
    if not elements(patch.devices(), "panic"):
        insert(patch.devices(), imported(patch.document, panic_element(vm.machine)))
        patch.did("panic", "panic device added")


def _patch_rng(patch: _Patch, host: HostDefaults) -> None:
    if host.rng is not None and not elements(patch.devices(), "rng"):
        insert(patch.devices(), imported(patch.document, rng_element(host.rng)))
        patch.did("rng", "random number generator added")


def _patch_watchdog(patch: _Patch, wanted: Watchdog | None) -> None:
    """One plugged card as wanted. q35's built-in itco stays: it can't be taken out, but libvirt wants
    one action for all cards."""
    cards = elements(patch.devices(), "watchdog")
    changed = False
    kept = [card for card in cards if wanted is not None and _model(card) == wanted.model][:1]
    if wanted is not None and not kept:
        _insert_card(patch, imported(patch.document, watchdog_element(wanted)), cards)
        changed = True
    for card in cards:
        if card not in kept and _model(card) != WatchdogModel.ITCO:
            remove(card)
            changed = True
        elif wanted is not None and (card.getAttribute("action") or "reset") != wanted.action:
            card.setAttribute("action", wanted.action.value)
            changed = True
    if changed:
        words = f"{wanted.model}:{wanted.action}" if wanted is not None else "none"
        patch.did("watchdog", f"watchdog card: {words}")


def _model(card: Element) -> str:
    return card.getAttribute("model")


def _insert_card(patch: _Patch, card: Element, old: list[Element]) -> None:
    """In the place of the first plugged one, so that giving back restores the order too."""
    plugged = [other for other in old if _model(other) != WatchdogModel.ITCO]
    insert(patch.devices(), card, before=plugged[0] if plugged else None)


def _patch_serial_log(patch: _Patch, path: str) -> None:
    """Only a port that is there: adding one would show up in the guest as new hardware."""
    ports = elements(patch.devices(), "serial") or elements(patch.devices(), "console")
    if not ports or ports[0].getAttribute("type") != "pty" or first(ports[0], "log") is not None:
        return
    log = imported(patch.document, make("log", {"file": path, "append": "on"}))
    insert(ports[0], log, before=first(ports[0], "target"))
    patch.did("serial_log", f"serial console logged to {path}")


def _our_logs(patch: _Patch, vm_id: str) -> list[Element]:
    """libvirt repeats the first serial port's log in the console that mirrors it."""
    ports = elements(patch.devices(), "serial") + elements(patch.devices(), "console")
    logs = [log for port in ports for log in elements(port, "log")]
    return [log for log in logs if log.getAttribute("file").endswith(f"/{vm_id}.log")]


def _patch_mark(patch: _Patch, vm: Vm) -> None:
    wanted = imported(patch.document, metadata_element(vm), prefix=_PREFIX)
    old = managed_mark(patch.root)
    keys = set(patch.keys)
    if old is not None:
        keys |= set(old.getAttribute("changed").split())
    if keys:
        wanted.setAttribute("changed", " ".join(sorted(keys)))
    if old is not None:
        if _marks(old) == _marks(wanted):
            return
        parent = old.parentNode
        assert parent is not None, "the mark stands inside <metadata>"
        parent.replaceChild(wanted, old)
        return
    metadata = first(patch.root, "metadata")
    if metadata is None:
        metadata = imported(patch.document, make("metadata"))
        insert(patch.root, metadata, before=first(patch.root, "memory"))
    insert(metadata, wanted)
    patch.changes.append("marked as managed by virtha")


def _marks(element: Element) -> dict[str, str]:
    return {name: element.getAttribute(name) for name in ("id", "adopted", "changed")}


def _restore_ending(patch: _Patch, tag: str, ours: str, original: Element) -> None:
    element = first(patch.root, tag)
    before = text_of(first(original, tag))
    if element is None or text_of(element) != ours:
        return
    if before:
        set_text(element, before)
    else:
        remove(element)
    patch.changes.append(f"{tag} {ours} -> {before or 'unset'}")


def _drop(patch: _Patch, found: list[Element], words: str) -> None:
    for element in found:
        remove(element)
    if found:
        patch.changes.append(f"{words} removed")


def _drop_idle_serial_controller(patch: _Patch, original: Element) -> None:
    """libvirt added it for our channel; it goes if nobody else uses it."""

    def controllers(root: Element) -> list[Element]:
        found = elements(first(root, "devices") or root, "controller")
        return [item for item in found if item.getAttribute("type") == "virtio-serial"]

    devices = patch.devices()
    users = elements(devices, "channel") + elements(devices, "console")
    in_use = any(attribute(first(user, "target"), "type") == "virtio" for user in users)
    if not in_use and not controllers(original):
        _drop(patch, controllers(patch.root), "the controller of the guest agent's channel")


def _restore_watchdog(patch: _Patch, original: Element) -> None:
    ours = elements(patch.devices(), "watchdog")
    before = elements(first(original, "devices") or original, "watchdog")
    for card in before:
        _insert_card(patch, cloned(patch.document, card), ours)
    for card in ours:
        remove(card)
    words = ", ".join(_model(card) for card in before) or "none"
    patch.changes.append(f"watchdog card restored: {words}")


def _drop_empty_devices(patch: _Patch, original: Element) -> None:
    devices = first(patch.root, "devices")
    if devices is not None and not devices.childNodes and first(original, "devices") is None:
        remove(devices)
