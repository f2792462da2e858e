"""Which host makes the disks of a VM."""

import msgspec

from virtha.control.launch import Surroundings, place
from virtha.control.placement import Placement, no_host_fits
from virtha.model.host import Host
from virtha.model.time import Millis
from virtha.model.vm import Vm
from virtha.ports.hosts import HostLinks

_NEEDED_TO_DEFINE = {"host.unfit.disconnected", "host.unfit.libvirt", "host.unfit.storage"}


def choose_maker(vm: Vm, surroundings: Surroundings, links: HostLinks, now: Millis) -> Host:
    """The host that would start ``vm``, else one that sees its storage. ``now``: this server's monotonic clock.

    Raises Refused: none is connected and sees it; says so per host.
    """
    placement = place(vm, surroundings, links, now)
    if placement.chosen is not None:
        return placement.chosen
    in_the_way = tuple(
        msgspec.structs.replace(
            one,
            reasons=tuple(reason for reason in one.reasons if reason.code in _NEEDED_TO_DEFINE),
        )
        for one in placement.unfit
    )
    for one in in_the_way:
        if not one.reasons:
            return one.host
    raise no_host_fits(vm, Placement(chosen=None, unfit=in_the_way))
