"""The engines of all clusters on this server: one leader each, in the one term of the installation.

Implements ``ports.leaders.Leaders`` (the use cases' view) and ``gateway_use_cases.HostWatcher`` (the gateway's). What is
configured is followed by the store's revision, so that whatever changes it is seen. The wiring::

    engines = Engines(gateway=…, clock=…, journals=…, installation_id=…)
    control = make_control(…, leaders=engines)
    await engines.begin(control, term)
    await engines.run(stopping)
"""

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import structlog

from virtha.control import Control
from virtha.control.leading import Changes, LedHost, LedVm
from virtha.engine.configured import EngineVm
from virtha.engine.events import CopyGranted, EngineEvent
from virtha.model.errors import Failed, NotFound, Unavailable
from virtha.model.facts import Fact
from virtha.model.ids import BootId, ClusterId, HostId, InstallationId, Revision, Term, VmId
from virtha.model.vm import Reason
from virtha.ports.clock import Clock
from virtha.ports.leaders import Prospects
from virtha.server.cluster_feed import ClusterFeed
from virtha.server.gateway_use_cases import WatchedGateway
from virtha.server.leader import LostTerm
from virtha.store.installations import Lead
from virtha.store.power import PowerMark
from virtha.wire.lease_messages import LeaseAnswer
from virtha.wire.messages import Beat, PeerRole
from virtha.wire.witness_messages import WitnessAnswer

log = structlog.get_logger("virtha.server.engines")
GATHER_S = 0.02
"""Changes of the configuration that come within it are read together."""
RETRY_S = 0.2
"""While the database does not answer."""


class Engines:
    lead = True

    def __init__(
        self,
        *,
        gateway: WatchedGateway,
        clock: Clock,
        journals: Path,
        installation_id: InstallationId,
    ) -> None:
        """``journals``: below it each cluster's engine has its journal."""
        self._gateway = gateway
        self._clock = clock
        self._journals = journals
        self._installation_id = installation_id
        self._control: Control | None = None
        self._lead = Lead(timeline="", term=Term(0))
        self._own_term = Term(0)
        """The highest that this server has taken, or was told of by a host and goes on in."""
        self._feeds: dict[ClusterId, ClusterFeed] = {}
        self._cluster_of: dict[HostId, ClusterId] = {}
        self._cluster_of_vm: dict[VmId, ClusterId] = {}
        self._hosts: dict[HostId, LedHost] = {}
        self._vms: dict[VmId, LedVm] = {}
        self._revision = Revision(0)
        self._power = PowerMark()
        self._refreshing = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._leading: dict[ClusterId, asyncio.Task[None]] = {}
        self._failure: asyncio.Future[None] | None = None
        """Of this term."""

    # Its beginning and end

    async def begin(self, control: Control, term: Term) -> None:
        """Take all clusters over; before any host connects. Raises Failed (a record can't be read)."""
        self._control = control
        self._lead = Lead(timeline=(await control.leading.lead()).timeline, term=term)
        self._own_term = term
        self._gateway.watcher = self
        await self.refresh()

    async def run(self, stopping: asyncio.Event) -> None:
        """Until ``stopping``. Raises Failed: an engine stopped, or another server has taken over."""
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stopping.is_set():
                failure = self._failure = asyncio.get_running_loop().create_future()
                self._spawn(self._follow(), "the engines' configuration")
                for feed in self._feeds.values():
                    if feed.leader is not None:
                        self._run_feed(feed)
                await asyncio.wait({stop, failure}, return_when=asyncio.FIRST_COMPLETED)
                await self._end_tasks()
                if failure.done():
                    await self._after(failure.exception())
        finally:
            stop.cancel()
            self._gateway.watcher = None
            await self._end_tasks()
            await self._close_feeds()

    async def _after(self, error: BaseException | None) -> None:
        """A host that has followed a later term raised ours (M1): this server goes on in it, as after a restart."""
        if not isinstance(error, LostTerm):
            assert error is not None
            raise error
        present = await self._present_lead()
        if present.timeline != self._lead.timeline:
            raise Failed(
                "the database was restored while this server ran on it",
                fix="start the server again: it goes on from the restored records, and asks every host first",
            )
        if not self._lead.term < present.term <= self._own_term:
            raise Failed(
                "another server has taken this installation over: "
                f"the term is {present.term}, ours was {self._lead.term}",
                fix="let only one server use this database",
            )
        log.warning("a host has seen a later term: all engines begin anew", term=present.term)
        self._lead = present
        await self._close_feeds()
        self._hosts, self._vms, self._revision, self._power = {}, {}, Revision(0), PowerMark()
        self._cluster_of, self._cluster_of_vm = {}, {}
        self._gateway.begin_anew(str(uuid.uuid4()))
        await self._refreshed()

    async def _present_lead(self) -> Lead:
        while True:
            with contextlib.suppress(Unavailable):
                return await self._use.leading.lead()
            await asyncio.sleep(RETRY_S)

    async def _close_feeds(self) -> None:
        feeds, self._feeds = self._feeds, {}
        for feed in feeds.values():
            await feed.stop()
            await asyncio.to_thread(feed.close)

    async def _end_tasks(self) -> None:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @property
    def _use(self) -> Control:
        assert self._control is not None, "begin first"
        return self._control

    # Tasks of one term

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(error)

    def _run_feed(self, feed: ClusterFeed) -> None:
        assert feed.leader is not None
        task = self._spawn(feed.run(), f"leader of {feed.cluster_id}")
        self._leading[feed.cluster_id] = task

    # What is configured

    async def _follow(self) -> None:
        while True:
            await self._use.leading.moved_beyond(self._revision)
            await asyncio.sleep(GATHER_S)
            await self._refreshed()

    async def _refreshed(self) -> None:
        while True:
            try:
                await self.refresh()
                return
            except Unavailable as error:
                log.warning("the engines' configuration can't be read now", error=str(error))
            await asyncio.sleep(RETRY_S)

    async def refresh(self) -> None:
        """Tell the engines of all that is committed by now. Raises Unavailable, LostTerm, Failed."""
        async with self._refreshing:
            changes = await self._use.leading.changes(
                self._revision, hosts=self._hosts, vms=self._vms, power=self._power
            )
            if changes.timeline != self._lead.timeline:
                raise LostTerm
            self._take(changes)
            for cluster_id in changes.policies:
                if cluster_id not in self._feeds:
                    await self._take_over(cluster_id, changes.hold)
            self._revision, self._power = changes.revision, changes.power

    def _take(self, changes: Changes) -> None:
        for cluster_id in self._feeds.keys() - changes.policies.keys():
            if cluster_id in self._leading:
                self._leading.pop(cluster_id).cancel()
            self._feeds.pop(cluster_id).close()
        for cluster_id, feed in self._feeds.items():
            feed.policy(changes.policies[cluster_id])
            feed.hold(changes.hold)
        for host_id in sorted(changes.gone_hosts):
            gone = self._hosts.pop(host_id, None)
            self._cluster_of.pop(host_id, None)
            if gone is not None and gone.cluster_id in self._feeds:
                self._feeds[gone.cluster_id].host_gone(host_id)
        for vm_id in sorted(changes.gone_vms):
            left = self._vms.pop(vm_id, None)
            self._cluster_of_vm.pop(vm_id, None)
            if left is not None and left.cluster_id in self._feeds:
                self._feeds[left.cluster_id].vm_gone(vm_id)
        for host in changes.hosts:
            self._hosts[host.host.host_id] = host
            self._cluster_of[host.host.host_id] = host.cluster_id
            if host.cluster_id in self._feeds:
                self._feeds[host.cluster_id].host(host)
        for vm in changes.vms:
            self._vms[vm.vm.vm_id] = vm
            self._cluster_of_vm[vm.vm.vm_id] = vm.cluster_id
            if vm.cluster_id in self._feeds:
                self._feeds[vm.cluster_id].vm(vm)

    async def _take_over(self, cluster_id: ClusterId, hold: str | None) -> None:
        feed = ClusterFeed(
            cluster_id,
            lead=self._lead,
            installation_id=self._installation_id,
            leading=self._use.leading,
            orders=self._use.engine_orders,
            power=self._use.engine_power,
            clock=self._clock,
            journal=self._journals / cluster_id,
            sessions=self._gateway.sessions,
            lines=self._gateway,
            acknowledged=self._acknowledge,
        )
        # From now on it is told: what it is told before it has read the records waits.
        self._feeds[cluster_id] = feed
        try:
            taken = await self._use.leading.take_over(cluster_id, self._lead)
        except NotFound:
            self._feeds.pop(cluster_id).close()
            return
        except BaseException:
            self._feeds.pop(cluster_id).close()
            raise
        if taken is None:
            self._feeds.pop(cluster_id).close()
            raise LostTerm
        feed.begin(
            taken,
            hosts=[one for one in self._hosts.values() if one.cluster_id == cluster_id],
            vms=[one for one in self._vms.values() if one.cluster_id == cluster_id],
            hold=hold,
        )
        if self._failure is not None and not self._failure.done():
            self._run_feed(feed)

    @property
    def feeds(self) -> Mapping[ClusterId, ClusterFeed]:
        """Of the clusters that this server leads."""
        return self._feeds

    # Leaders: what the use cases tell and ask

    def granted(self, cluster_id: ClusterId, vm: EngineVm, granted: CopyGranted) -> None:
        feed = self._feeds.get(cluster_id)
        if feed is not None:
            feed.granted(LedVm(cluster_id=cluster_id, vm=vm), granted)

    def term_raised(self, term: Term) -> None:
        self._own_term = Term(max(self._own_term, term))

    def offer(self, cluster_id: ClusterId, event: EngineEvent) -> bool:
        feed = self._feeds.get(cluster_id)
        if feed is None or feed.leader is None:
            return False
        feed.offer(event)
        return True

    def verdict(self, host_id: HostId) -> str | None:
        feed = self._feed_of(host_id)
        if feed is None or feed.leader is None:
            return None
        verdict = feed.leader.engine.verdict(host_id)
        return verdict.value if verdict is not None else None

    def explain_host(self, host_id: HostId) -> tuple[Reason, ...]:
        feed = self._feed_of(host_id)
        if feed is None or feed.leader is None:
            return ()
        return feed.explain_host(host_id)

    def explain_vm(self, vm_id: VmId) -> tuple[Reason, ...]:
        cluster_id = self._cluster_of_vm.get(vm_id)
        feed = self._feeds.get(cluster_id) if cluster_id is not None else None
        if feed is None or feed.leader is None:
            return ()
        return feed.leader.engine.explain_vm(vm_id)

    def lease_prospects(self, cluster_id: ClusterId) -> Prospects | None:
        feed = self._feeds.get(cluster_id)
        return None if feed is None else feed.lease_prospects()

    # HostWatcher: what the gateway sees

    def _feed_of(self, host_id: HostId) -> ClusterFeed | None:
        """None: it joined just now; its sessions are asked for when it is known here."""
        cluster_id = self._cluster_of.get(host_id)
        return self._feeds.get(cluster_id) if cluster_id is not None else None

    def beat(self, host_id: HostId, beat: Beat) -> None:
        feed = self._feed_of(host_id)
        if feed is not None:
            feed.beat(host_id, beat)

    def session(
        self, host_id: HostId, role: PeerRole, boot: BootId, *, up: bool, broken: bool = False
    ) -> None:
        feed = self._feed_of(host_id)
        if feed is not None:
            feed.session(host_id, role, boot, up=up, broken=broken)

    def lease(self, host_id: HostId, answer: LeaseAnswer) -> None:
        feed = self._feed_of(host_id)
        if feed is not None:
            feed.lease(host_id, answer)

    def witness(self, host_id: HostId, answer: WitnessAnswer) -> None:
        feed = self._feed_of(host_id)
        if feed is not None:
            feed.witness(host_id, answer)

    async def facts(
        self, host_id: HostId, boot: BootId, facts: Sequence[Fact], recorded: int
    ) -> None:
        feed = self._feed_of(host_id)
        try:
            if feed is None or feed.leader is None or not feed.knows(facts):
                await self._refreshed()
                feed = self._feed_of(host_id)
            if feed is not None and feed.leader is not None:
                await feed.facts(host_id, boot, facts, recorded, self._lead.timeline)
        except (LostTerm, Failed) as error:
            # Not acknowledged: they come again.
            self._fail(error)

    def _acknowledge(self, receipts: Mapping[HostId, int]) -> None:
        for host_id, sequence in receipts.items():
            self._gateway.acknowledge(host_id, sequence)
