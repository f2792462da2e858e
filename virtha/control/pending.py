"""Which changes of a VM wait for its next start. Pure: what is wanted beside what its copy runs with."""

import msgspec

from virtha.control.views import PendingChange
from virtha.model.size import format_size
from virtha.model.vm import Disk, Hardware, Nic, Vm, VmState
from virtha.model.watchdog import Watchdog, WatchdogModel
from virtha.store.vms import VmRow

_MEBIBYTE = 1 << 20
_NOT_RUNNING = (VmState.DOWN, VmState.STARTING)


def hardware_of(row: VmRow) -> Hardware | None:
    """What its present copy has; None: it has none, or its host has not said yet."""
    status = row.status
    if not status.holders or row.shown in _NOT_RUNNING or status.running is None:
        return None
    return status.running.hardware if status.running.incarnation == status.incarnation else None


def pending_changes(row: VmRow) -> tuple[PendingChange, ...]:
    has = hardware_of(row)
    if has is None:
        return ()
    vm = row.vm
    found = [
        _change("memory_bytes", has.memory_bytes, vm.memory_bytes)
        if _whole_mebibytes(has.memory_bytes) != _whole_mebibytes(vm.memory_bytes)
        else None,
        _change("vcpus", has.vcpus, vm.vcpus),
        _change("machine", has.machine.value, vm.machine.value),
        _change("watchdog", *_cards(has, vm.watchdog)),
    ]
    # Sizes are no part of the domain's XML; what the record says of one holds for both.
    disks = {disk.path: disk for disk in (*has.disks, *vm.disks)}
    attached, wanted = {disk.path for disk in has.disks}, {disk.path for disk in vm.disks}
    for path, disk in sorted(disks.items()):
        text = _disk_text(disk)
        found.append(
            _change(
                f"disks.{disk.name}",
                text if path in attached else None,
                text if path in wanted else None,
            )
        )
    cards = {nic.mac: _nic_text(nic) for nic in has.nics}
    wanted_cards = {nic.mac: _nic_text(nic) for nic in vm.nics}
    found += [
        _change(f"nics.{mac}", cards.get(mac), wanted_cards.get(mac))
        for mac in sorted({*cards, *wanted_cards})
    ]
    return tuple(change for change in found if change is not None)


def without_pending(row: VmRow) -> Vm:
    """The VM as it runs. Disks stay as they are wanted: they hold data, and are removed by name."""
    has, vm = hardware_of(row), row.vm
    if has is None:
        return vm
    memory_bytes = has.memory_bytes
    if _whole_mebibytes(memory_bytes) == _whole_mebibytes(vm.memory_bytes):
        memory_bytes = vm.memory_bytes  # what libvirt rounded is no change
    running, wanted = _cards(has, vm.watchdog)
    own = None if has.watchdog == has.default_watchdog or running is None else has.watchdog
    cards = {nic.mac: nic for nic in vm.nics}
    return msgspec.structs.replace(
        vm,
        memory_bytes=memory_bytes,
        vcpus=has.vcpus,
        machine=has.machine,
        watchdog=vm.watchdog if running == wanted else own,
        nics=tuple(_same_card(nic, cards.get(nic.mac)) for nic in has.nics),
    )


def _same_card(runs: Nic, wanted: Nic | None) -> Nic:
    """With what no XML has of it."""
    return runs if wanted is None else msgspec.structs.replace(runs, id=wanted.id, name=wanted.name)


def _change(
    field: str, running: str | int | None, wanted: str | int | None
) -> PendingChange | None:
    if running == wanted:
        return None
    return PendingChange(field=field, running=running, wanted=wanted)


def _whole_mebibytes(size_bytes: int) -> int:
    """libvirt gives QEMU whole MiB, rounded up."""
    return -(-size_bytes // _MEBIBYTE)


def _cards(has: Hardware, wanted: Watchdog | None) -> tuple[str | None, str | None]:
    """Of the copy, and of the record; what the host gives by default counts as asked for."""
    wanted = wanted or has.default_watchdog
    running = has.watchdog
    if wanted is None and running is not None and running.model is WatchdogModel.ITCO:
        running = None  # q35's own, which libvirt shows from 9.1 on, asked for or not
    return _card(running), _card(wanted)


def _card(watchdog: Watchdog | None) -> str | None:
    return None if watchdog is None else f"{watchdog.model.value}:{watchdog.action.value}"


def _disk_text(disk: Disk) -> str:
    size = f" ({format_size(disk.size_bytes)})" if disk.size_bytes else ""
    return f"{disk.path} on {disk.bus}{size}"


def _nic_text(nic: Nic) -> str:
    return f"{nic.model} on {nic.bridge}"
