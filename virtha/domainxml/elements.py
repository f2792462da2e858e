"""Making XML elements: the few constructs that building and patching share."""

import re
from xml.etree.ElementTree import Element, SubElement

from virtha.domainxml.host_defaults import Cpu, CpuMode, HostDefaults, Rng, RngBackend
from virtha.model.machine import MachineType
from virtha.model.vm import Vm
from virtha.model.watchdog import Watchdog, models_that_fit

NAMESPACE = "https://virtha.dev/domain/1"
"""Of our metadata element: libvirt keeps foreign metadata by namespace, one element per namespace."""

GUEST_AGENT_CHANNEL = "org.qemu.guest_agent.0"
"""QEMU's guest agent finds its port by this name, whatever the order of ports (A3)."""

# XML 1.0, section 2.2 "Characters": nothing else may occur, not even escaped.
_NOT_XML = re.compile("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_text(text: str) -> str:
    """Text that XML can carry: what it can't becomes U+FFFD, for a VM's description must never
    make its domain unreadable. Markup is escaped by the writer."""
    return _NOT_XML.sub("\ufffd", text)


def make(tag: str, attributes: dict[str, str] | None = None, text: str | None = None) -> Element:
    element = Element(tag, {name: xml_text(value) for name, value in (attributes or {}).items()})
    if text is not None:
        element.text = xml_text(text)
    return element


def add(
    parent: Element, tag: str, attributes: dict[str, str] | None = None, text: str | None = None
) -> Element:
    element = SubElement(
        parent, tag, {name: xml_text(value) for name, value in (attributes or {}).items()}
    )
    if text is not None:
        element.text = xml_text(text)
    return element


def effective_watchdog(vm: Vm, host: HostDefaults) -> Watchdog | None:
    """The VM's own card, else the host's default where that fits the VM's machine (W10).

    A default that doesn't fit is no reason to refuse the VM, which never asked for it.
    """
    if vm.watchdog is not None or host.watchdog is None:
        return vm.watchdog
    fitting = models_that_fit(vm.architecture, vm.machine, libvirt_version=None)
    return host.watchdog if host.watchdog.model in fitting else None


def watchdog_element(watchdog: Watchdog) -> Element:
    return make("watchdog", {"model": watchdog.model.value, "action": watchdog.action.value})


def rng_element(rng: Rng) -> Element:
    element = make("rng", {"model": "virtio"})
    add(element, "rate", {"period": str(rng.rate_period_ms), "bytes": str(rng.rate_bytes)})
    if rng.backend is RngBackend.RANDOM:
        add(element, "backend", {"model": "random"}, rng.path)
    else:
        backend = add(element, "backend", {"model": "egd", "type": "unix"})
        add(backend, "source", {"mode": "connect", "path": rng.path})
    return element


def channel_element() -> Element:
    """libvirt makes the host side's socket path itself."""
    element = make("channel", {"type": "unix"})
    add(element, "target", {"type": "virtio", "name": GUEST_AGENT_CHANNEL})
    return element


def panic_element(machine: MachineType) -> Element:
    """The device through which a crashing kernel tells us (W12); s390's is built in."""
    return make("panic", {"model": "s390" if machine is MachineType.S390_CCW else "isa"})


def metadata_element(vm: Vm) -> Element:
    """Marks the domain as ours. Without the incarnation: that changes at each start, and a
    definition that had to be rewritten for each would be one more thing to fail."""
    return make(f"{{{NAMESPACE}}}vm", {"id": vm.id, "adopted": "yes" if vm.adopted else "no"})


def serial_element(log_path: str) -> Element:
    """``append``: the tail before a crash must outlive the restart. virtlogd bounds the file."""
    element = make("serial", {"type": "pty"})
    add(element, "log", {"file": log_path, "append": "on"})
    add(element, "target", {"port": "0"})
    return element


def cpu_element(cpu: Cpu, domain_type: str) -> Element | None:
    """``<cpu>``, or None where nothing was asked for under TCG.

    Under TCG libvirt refuses ``host-passthrough``; ``maximum`` is its counterpart there.
    """
    mode = cpu.mode
    if mode is None and cpu.model is not None:
        mode = CpuMode.CUSTOM
    if domain_type == "qemu":
        if mode is None and not cpu.features:
            return None
        if mode in (None, CpuMode.HOST_PASSTHROUGH, CpuMode.HOST_MODEL):
            mode = CpuMode.MAXIMUM
    mode = mode or CpuMode.HOST_MODEL
    element = make("cpu", {"mode": mode.value})
    if mode is CpuMode.CUSTOM:
        element.set("match", "exact")
        add(element, "model", {"fallback": "forbid"}, cpu.model or "qemu64")
    for feature in cpu.features:
        policy = "disable" if feature.startswith("-") else "require"
        add(element, "feature", {"policy": policy, "name": feature.removeprefix("-")})
    return element
