"""Power devices of hosts as the engine knows them, and the way to one of them for an order of its own.

A device's id names its settings' revision: whatever was tested or read of it before they were changed is another
device's to the engine, and proves nothing of this one (P1).
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from virtha.control.device_turns import DeviceTurns
from virtha.control.power_checks import check_led_elsewhere
from virtha.control.power_neighbours import neighbours_of
from virtha.control.secret_box import SecretBox
from virtha.model.errors import Failed
from virtha.model.ids import ClusterId, HostId, Revision, Term
from virtha.model.power import PowerDeviceId, PowerFeed, PowerLevel
from virtha.model.power_settings import MachineIdentity, PowerDriver, PowerSettings, merged
from virtha.model.value import Value
from virtha.ports.power import NeighbourPower, PowerDevice, PowerDevices
from virtha.store.hosts import find_host
from virtha.store.installations import Lead, the_installation
from virtha.store.power import (
    PowerRow,
    power_of_cluster,
    power_of_clusters,
    power_of_host,
    power_of_hosts,
)
from virtha.store.store import Store, Transaction

NOT_LED = "power.not_led"
CHANGED = "power.changed"
UNUSABLE = "power.unusable_settings"


def device_id(name: str, revision: Revision) -> PowerDeviceId:
    """``revision``: of the newer of the cluster's and the host's settings."""
    return PowerDeviceId(f"{name}@{revision}")


class PowerWay(Value, frozen=True, kw_only=True):
    """To one device, as it is set up now. ``secrets``: not for showing. ``machine``: what its host says it is."""

    host_id: HostId
    name: str
    term: Term
    settings: PowerSettings
    secrets: dict[str, str]
    machine: MachineIdentity


class NoWay(Value, frozen=True, kw_only=True):
    """``code``: why there is none (``power.…``)."""

    code: str
    detail: str = ""


class LedDevice(Value, frozen=True, kw_only=True):
    """A host's device with what its cluster adds to it."""

    own: PowerRow
    shared: PowerRow | None

    @property
    def name(self) -> str:
        return self.own.record.name

    @property
    def settings(self) -> PowerSettings:
        above = self.shared.record.settings if self.shared is not None else PowerSettings()
        return merged(above, self.own.record.settings)

    @property
    def revision(self) -> Revision:
        return max(row.record.revision for row in (self.own, self.shared) if row is not None)

    @property
    def level(self) -> int:
        level = self.settings.level
        return 1 if level is None else level

    @property
    def id(self) -> PowerDeviceId:
        return device_id(self.name, self.revision)


def _devices(own: Iterable[PowerRow], shared: Iterable[PowerRow]) -> list[LedDevice]:
    """A cluster's device is a host's only where the host gives it an address of its own."""
    by_name = {row.record.name: row for row in shared}
    return [LedDevice(own=row, shared=by_name.get(row.record.name)) for row in own]


def _levels(devices: Iterable[LedDevice]) -> tuple[PowerLevel, ...]:
    """Also with devices that can't be used as they are set up: a level is off when all of its devices are, and one that
    was left out would let the others prove what they don't."""
    feeds: dict[int, list[PowerFeed]] = defaultdict(list)
    for one in devices:
        feed = PowerFeed(device=one.id, reads_state=one.settings.has_status)
        feeds[one.level].append(feed)
    return tuple(
        PowerLevel(feeds=tuple(sorted(feeds[level], key=lambda feed: feed.device)))
        for level in sorted(feeds)
    )


async def led_devices(
    tx: Transaction, hosts: Mapping[HostId, ClusterId]
) -> Mapping[HostId, list[LedDevice]]:
    """Of those hosts that have any, in no order of levels."""
    own: dict[HostId, list[PowerRow]] = defaultdict(list)
    for row in await power_of_hosts(tx, hosts.keys()):
        assert row.record.host_id is not None
        own[row.record.host_id].append(row)
    clusters: Collection[ClusterId] = {hosts[host_id] for host_id in own}
    shared: dict[ClusterId, list[PowerRow]] = defaultdict(list)
    for row in await power_of_clusters(tx, clusters):
        assert row.record.cluster_id is not None
        shared[row.record.cluster_id].append(row)
    return {host_id: _devices(rows, shared[hosts[host_id]]) for host_id, rows in own.items()}


async def power_levels(
    tx: Transaction, hosts: Mapping[HostId, ClusterId]
) -> Mapping[HostId, tuple[PowerLevel, ...]]:
    """Of those hosts that have any."""
    return {host_id: _levels(there) for host_id, there in (await led_devices(tx, hosts)).items()}


class EnginePower:
    def __init__(
        self,
        store: Store,
        box: SecretBox,
        devices: PowerDevices | None,
        neighbours: NeighbourPower | None = None,
        turns: DeviceTurns | None = None,
    ) -> None:
        """``neighbours`` None: this server asks all devices itself, or none."""
        self._store = store
        self._box = box
        self._devices = devices
        self._neighbours = neighbours
        self._turns = turns or DeviceTurns()

    async def way(self, lead: Lead, host_id: HostId, device: PowerDeviceId) -> PowerWay | NoWay:
        """To be asked right before each attempt: whoever leads no more sends nothing, and nothing goes to a device that is
        another one by now. Raises Unavailable."""
        async with self._store.read() as tx:
            if (await the_installation(tx)).lead != lead:
                return NoWay(code=NOT_LED)
            host = await find_host(tx, host_id)
            if host is None:
                return NoWay(code=CHANGED, detail="the host was removed")
            there = _devices(
                await power_of_host(tx, host_id),
                await power_of_cluster(tx, host.host.cluster_id),
            )
        found = next((one for one in there if one.id == device), None)
        if found is None:
            return NoWay(code=CHANGED)
        told = host.status.capabilities.machine
        try:
            return PowerWay(
                host_id=host_id,
                name=found.name,
                term=lead.term,
                settings=found.settings,
                secrets=self._secrets(found.shared) | self._secrets(found.own),
                machine=told if isinstance(told, MachineIdentity) else MachineIdentity(),
            )
        except Failed as error:
            return NoWay(code=UNUSABLE, detail=error.message)

    def device(self, way: PowerWay) -> PowerDevice:
        """Raises InvalidInput (it can't be used as it is set up), Failed (this server switches no power)."""
        return self._turns.taking(way.host_id, way.name, self._device(way), for_engine=True)

    def _device(self, way: PowerWay) -> PowerDevice:
        check_led_elsewhere(way.settings)  # what was set before is checked as well
        if way.settings.from_agents and self._neighbours is not None:
            return self._neighbours.device(
                way.host_id,
                way.name,
                way.settings,
                way.secrets,
                among=neighbours_of(self._store, way.host_id),
                term=way.term,
            )
        if self._devices is None or way.settings.from_agents:
            raise Failed("this server switches no power")
        return self._devices.device(way.settings, way.secrets)

    async def get_ready(self, way: PowerWay) -> None:
        """What a device of that kind needs once and takes longer for than a reading may: a fence agent's own description.
        Raises NotFound, Failed."""
        ours = self._devices is not None and not way.settings.from_agents
        if ours and way.settings.driver is PowerDriver.FENCE_AGENT:
            assert self._devices is not None
            await self._devices.agent(way.settings.agent or "")

    def _secrets(self, row: PowerRow | None) -> dict[str, str]:
        if row is None or row.sealed is None:
            return {}
        return self._box.open(row.sealed, of=row.record.id)
