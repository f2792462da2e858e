"""What no line of an inventory says alone: memory that is promised twice, start orders that can't begin,
affinity rules that contradict each other. Pure."""

from collections.abc import Callable, Sequence

from virtha.engine.affinity import check_affinity
from virtha.engine.dependencies import check_dependencies
from virtha.model.errors import InvalidInput
from virtha.model.ids import VmId
from virtha.model.size import format_size
from virtha.model.yaml_reader import wrong
from virtha.scenario.inventory import Inventory, InventoryVm


def check_inventory(inventory: Inventory) -> None:
    """Raises InvalidInput with the place of the VM with which it goes wrong."""
    _check_memory(inventory)
    _check_whole(inventory.vms, _dependencies, "vms.depends_on")
    _check_whole(inventory.vms, _affinity, "vms.groups")


def _check_memory(inventory: Inventory) -> None:
    percent = inventory.policy.recovery.memory_overcommit_percent
    hosts = {host.name: host for host in inventory.hosts}
    used = dict.fromkeys(hosts, 0)
    for vm in inventory.vms:
        if vm.on is None:
            continue
        host = hosts[vm.on]
        used[vm.on] += vm.memory_bytes
        room = host.memory_bytes * percent // 100 - host.reserved_bytes
        if used[vm.on] > room:
            raise wrong(
                vm.at,
                f"with {vm.name} the VMs on {host.name} need {format_size(used[vm.on])}, "
                f"and it has {format_size(room)} for them",
                field="vms.memory",
                fix="put it on another host, or raise recovery.memory_overcommit_percent in the policy",
            )


def _dependencies(vms: Sequence[InventoryVm]) -> None:
    check_dependencies({VmId(vm.name): [one.vm_id for one in vm.depends_on] for vm in vms})


def _affinity(vms: Sequence[InventoryVm]) -> None:
    check_affinity({VmId(vm.name): vm.groups for vm in vms})


def _check_whole(
    vms: Sequence[InventoryVm], check: Callable[[Sequence[InventoryVm]], None], field: str
) -> None:
    """``check`` names the VMs but no place. What is wrong with some of them stays wrong with more, so the
    first VM with which it goes wrong is found by halving."""
    try:
        check(vms)
        return
    except InvalidInput as error:
        found = error
    good, bad = 0, len(vms)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            check(vms[:middle])
            good = middle
        except InvalidInput as error:
            found, bad = error, middle
    raise wrong(vms[bad - 1].at, found.message, field=field, allowed=found.allowed, fix=found.fix)
