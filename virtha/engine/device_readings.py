"""What power devices say of themselves and of their hosts: readings and tests, in the records that proofs rest on (P1)."""

from virtha.engine.events import PowerRead, PowerTested
from virtha.engine.read_back import fold_reading
from virtha.engine.state import Cluster, HostNode
from virtha.engine.verdict import last_sign_ms
from virtha.model.evidence import IdentityMatch, PowerState
from virtha.model.power import PowerDeviceId
from virtha.model.time import Millis


def power_read(cluster: Cluster, event: PowerRead) -> None:
    node = cluster.hosts.get(event.host_id)
    if node is None:
        return
    node.power[event.device] = (event.state, Millis(cluster.now))
    if event.state is PowerState.OFF and event.identity is not IdentityMatch.MISMATCH:
        since_ms = node.off_since.get(event.device)
        if since_ms is None or last_sign_ms(node) >= since_ms:
            node.off_since[event.device] = Millis(cluster.now)
    else:
        node.off_since.pop(event.device, None)
    if event.identity is IdentityMatch.MISMATCH:
        _is_foreign(cluster, node, event.device)
    elif event.state is PowerState.ON and _is_beating(cluster, node):
        node.set(on_devices=(*_without(node.record.on_devices, event.device), event.device))
    incident = node.record.incident
    if incident is not None and incident.fence is not None:
        fold_reading(cluster, node, incident.fence, event)
    cluster.touch(node)


def power_tested(cluster: Cluster, event: PowerTested) -> None:
    """Only a test made while that very boot was beating says that the device is this host's (P1)."""
    node = cluster.hosts.get(event.host_id)
    if node is None or event.boot != node.record.boot or not _is_beating(cluster, node):
        return
    record = node.record
    if event.identity is IdentityMatch.MISMATCH:
        _is_foreign(cluster, node, event.device)
        return
    identified = _without(record.identified_devices, event.device)
    tested = _without(record.tested_devices, event.device)
    on = _without(record.on_devices, event.device)
    if event.passed:
        tested, on = (*tested, event.device), (*on, event.device)
        if event.identity is IdentityMatch.MATCH:
            identified = (*identified, event.device)
    node.set(
        identified_devices=identified,
        tested_devices=tested,
        on_devices=on,
        # One that it did not pass says nothing in the device's favour.
        foreign_devices=_without(record.foreign_devices, event.device)
        if event.passed
        else record.foreign_devices,
        disproved_devices=_without(record.disproved_devices, event.device)
        if event.passed
        else record.disproved_devices,
    )
    cluster.touch(node)


def _is_beating(cluster: Cluster, node: HostNode) -> bool:
    suspect_ms = cluster.policy.detection.suspect_after_ms
    return node.sign_ms is not None and cluster.now - node.sign_ms < suspect_ms


def _is_foreign(cluster: Cluster, node: HostNode, device: PowerDeviceId) -> None:
    """It names another machine: it proves nothing, and gets no orders until a test clears it."""
    record = node.record
    if device not in record.foreign_devices:
        cluster.tell("fence.device_of_another", host=node, device=device)
    node.set(
        identified_devices=_without(record.identified_devices, device),
        tested_devices=_without(record.tested_devices, device),
        on_devices=_without(record.on_devices, device),
        foreign_devices=(*_without(record.foreign_devices, device), device),
    )
    cluster.touch(node)


def _without(
    devices: tuple[PowerDeviceId, ...], device: PowerDeviceId
) -> tuple[PowerDeviceId, ...]:
    return tuple(one for one in devices if one != device)
