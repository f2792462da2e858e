"""Disks of a running domain through libvirt: their sizes, and snapshots inside them by QEMU's own monitor.

libvirt itself makes no snapshot inside the disks of a running domain without its memory, so QEMU is asked: as all of
one transaction, in which either all disks get it or none (QEMU's ``blockdev-snapshot-internal-sync``).
"""

from typing import Any

import libvirt
import libvirt_qemu
import msgspec

from virtha.model.value import Value
from virtha.ports.hypervisor import HypervisorFailed, LiveDisk


class _Node(Value, frozen=True, kw_only=True):
    name: str
    """QEMU's name of it."""
    disk: LiveDisk


def live_disks(domain: "libvirt.virDomain") -> tuple[LiveDisk, ...]:
    return tuple(node.disk for node in _nodes(domain))


def grow(domain: "libvirt.virDomain", path: str, size_bytes: int) -> None:
    domain.blockResize(path, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)


def make_snapshot(domain: "libvirt.virDomain", paths: tuple[str, ...], name: str) -> None:
    nodes = _by_path(domain)
    actions = [
        {
            "type": "blockdev-snapshot-internal-sync",
            "data": {"device": _node(nodes, path).name, "name": name},
        }
        for path in paths
    ]
    _ask(domain, "transaction", {"actions": actions})


def delete_snapshot(domain: "libvirt.virDomain", path: str, name: str) -> None:
    """Absent is done already."""
    node = _node(_by_path(domain), path)
    if name in node.disk.snapshots:
        _ask(
            domain,
            "blockdev-snapshot-delete-internal-sync",
            {"device": node.name, "name": name},
        )


def _by_path(domain: "libvirt.virDomain") -> dict[str, _Node]:
    return {node.disk.path: node for node in _nodes(domain)}


def _node(nodes: dict[str, _Node], path: str) -> _Node:
    if path not in nodes:
        raise HypervisorFailed(f"the running domain does not have {path}")
    return nodes[path]


def _nodes(domain: "libvirt.virDomain") -> tuple[_Node, ...]:
    """Drives without a medium have no node."""
    found = []
    for block in _ask(domain, "query-block", {}):
        inserted = block.get("inserted")
        if inserted is None or "node-name" not in inserted:
            continue
        image = inserted["image"]
        found.append(
            _Node(
                name=inserted["node-name"],
                disk=LiveDisk(
                    path=_path(inserted["file"]),
                    size_bytes=image["virtual-size"],
                    snapshots=frozenset(one["name"] for one in image.get("snapshots", ())),
                ),
            )
        )
    return tuple(found)


def _path(text: str) -> str:
    """QEMU writes a file with options that its name can't say as ``json:{...}``."""
    if not text.startswith("json:"):
        return text
    node: Any = msgspec.json.decode(text.removeprefix("json:"))
    while isinstance(node, dict) and "filename" not in node:
        node = node.get("file")
    return str(node["filename"]) if isinstance(node, dict) else text


def _ask(domain: "libvirt.virDomain", command: str, arguments: dict[str, Any]) -> Any:
    """Raises HypervisorFailed with QEMU's own words."""
    request = {"execute": command, **({"arguments": arguments} if arguments else {})}
    text = libvirt_qemu.qemuMonitorCommand(domain, msgspec.json.encode(request).decode(), 0)
    answer = msgspec.json.decode(text)
    if "error" in answer:
        raise HypervisorFailed(f"QEMU: {answer['error'].get('desc', answer['error'])}")
    return answer["return"]
