"""A small adversarial world for the storage lease: one writer, one reader, one control, one storage domain.

Real time is whole microseconds; every clock drifts. The writer runs the real guardian core, the reader's rounds go
to the real judge, blocks pass through the real codec. The kernel of the writer keeps its queue when processes
die or freeze; only a reset ends it. After the judge issued a proof, no write of that boot may land on the
VM's disk: checked at every event.
"""

import heapq
from collections.abc import Callable

from lease_blocks import (
    BOOT,
    CONTROL,
    DOMAIN,
    INDEX,
    OURS,
    POLICY,
    READER,
    US,
    WRITER,
    Blocks,
    Clock,
    TwoWriters,
    empty_mailbox,
    place,
    plain_slot,
)
from lease_writer import Writer

from virtha.engine.lease import LeaseJudge, LeaseTarget, SlotRound
from virtha.model.ids import BootId, Term
from virtha.model.policy import LeasePolicy
from virtha.model.proof import Proof
from virtha.model.slot import (
    Mailbox,
    Poison,
    Unreadable,
    decode_mailbox,
    decode_slot,
    encode_mailbox,
    encode_slot,
)
from virtha.model.time import Millis
from virtha.sentinel.lease_events import (
    WaiverEnded,
    WaiverGiven,
)


class World:
    def __init__(
        self,
        *,
        policy: LeasePolicy = POLICY,
        writer_rate: int = 1_000,
        watchdog_rate: int = 1_000,
        reader_rate: int = 1_000,
        has_watchdog: bool = True,
        no_way_out: bool = True,
    ) -> None:
        self.now = 0
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._sequence = 0
        self.blocks = Blocks()
        self.blocks.land("mail w", encode_mailbox(empty_mailbox()), 0)
        self.proof: Proof | None = None
        self.proof_at: int | None = None
        self.last_landing: int | None = None
        self.control_stopped = False
        self._control_counter = 0
        self.writer = Writer(
            self,
            policy,
            clock=Clock(writer_rate, 5_000),
            watchdog_clock=Clock(watchdog_rate),
            has_watchdog=has_watchdog,
            no_way_out=no_way_out,
        )
        self.reader = Reader(self, policy, Clock(reader_rate, 77_000))

    # Time

    def at(self, when: int, what: Callable[[], None]) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (max(when, self.now), self._sequence, what))

    def after(self, delay_us: int, what: Callable[[], None]) -> None:
        self.at(self.now + delay_us, what)

    def run_until(self, real_us: int) -> None:
        while self._heap and self._heap[0][0] <= real_us:
            self.now, _, what = heapq.heappop(self._heap)
            what()
            self.check()
        self.now = max(self.now, real_us)

    def run_ms(self, ms: int) -> None:
        self.run_until(self.now + ms * US)

    def check(self) -> None:
        """A running VM writes whenever it can."""
        if self.writer.vm_can_write():
            self.vm_wrote()

    def vm_wrote(self) -> None:
        self.last_landing = self.now
        if self.proof_at is not None:
            late_ms = (self.now - self.proof_at) / 1_000
            raise TwoWriters(f"a write landed {late_ms} ms after the proof ({self.proof})")

    def control_advances(self) -> None:
        """Just before each round: no reader has to wait for a control that the adversary could hold back."""
        if not self.control_stopped:
            self._control_counter += 1
            slot = plain_slot(CONTROL, BootId("c-boot"), self._control_counter)
            self.blocks.land("slot c", encode_slot(slot), self.now)


class Reader:
    """A host that reads rounds, poisons, and hands what it read to the judge."""

    def __init__(self, world: World, policy: LeasePolicy, clock: Clock) -> None:
        self.world, self.clock = world, clock
        self.policy = policy
        self.judge = LeaseJudge(OURS, policy)
        self.watch()
        self._counter = 0
        self._mail_counter = 0
        # The adversary's levers
        self.cache_from: int | None = None
        """Everything but its own writes is read as it was then, and its writes stay in its cache."""
        self.lag_us = 0
        self.poisons_next = False
        self._cached: dict[str, bytes] = {}
        self._round()

    def watch(self) -> None:
        self.judge.watch(LeaseTarget(host_id=WRITER, boot=BOOT, domain_ids=frozenset({DOMAIN})))

    def new_leader(self) -> None:
        self.judge = LeaseJudge(OURS, self.policy)
        for host_id, domain_id in self.world.writer.waived:
            self.judge.set_waiver(host_id, domain_id, stands=True)
        self.watch()

    def poison(self) -> None:
        """In a round of its own, now."""
        self.poisons_next = True
        self.read_now()

    def _round(self) -> None:
        self.read_now()
        self.world.after(self.policy.read_period_ms * US, self._round)

    def _put(self, name: str, block: bytes) -> None:
        if self.cache_from is None:
            self.world.blocks.land(name, block, self.world.now)
        else:
            self._cached[name] = block

    def _get(self, name: str) -> bytes:
        if self.cache_from is None:
            lag = 0 if name == "slot r" else self.lag_us
            return self.world.blocks.read(name, self.world.now - lag)
        return self._cached.get(name) or self.world.blocks.read(name, self.cache_from)

    def cache(self, on: bool) -> None:
        self.cache_from = self.world.now if on else None
        self._cached.clear()

    def read_now(self) -> None:
        self.world.control_advances()
        began = self.clock.read(self.world.now)
        self._counter += 1
        self._put("slot r", encode_slot(plain_slot(READER, BootId("r-boot"), self._counter)))
        if self.poisons_next:
            self.poisons_next = False
            self._mail_counter += 1
            mailbox = Mailbox(
                installation_id=OURS,
                domain_id=DOMAIN,
                index=INDEX[WRITER],
                host_id=WRITER,
                counter=self._mail_counter,
                poison=Poison(boot=BOOT, server="s1", term=Term(3), incident="i1"),
            )
            self._put("mail w", encode_mailbox(mailbox))
        seen = SlotRound(
            reader_id=READER,
            reader_boot=BootId("r-boot"),
            domain_id=DOMAIN,
            began_ms=began,
            ended_ms=self.clock.read(self.world.now),
            own_counter=self._counter,
            direct_io=True,
            slots={
                host: decode_slot(self._get(f"slot {host}"), place(host))
                for host in (WRITER, READER, CONTROL)
            },
            # Its own poison it reads back at once.
            mailboxes={WRITER: self._mail()},
        )
        self._judge(seen)

    def _mail(self) -> Mailbox | Unreadable:
        lag, self.lag_us = self.lag_us, 0
        reading = decode_mailbox(self._get("mail w"), place(WRITER))
        self.lag_us = lag
        return reading

    def _judge(self, seen: SlotRound) -> None:
        proofs = self.judge.read(Millis(self.world.now // US), seen)
        if proofs and self.world.proof is None:
            self.world.proof, self.world.proof_at = proofs[0], self.world.now
            return
        why = self.judge.reasons(WRITER)[DOMAIN]
        wait = why.fields.get("wait_ms")
        if isinstance(wait, int) and 0 < wait < self.policy.read_period_ms:
            # The adversary reads at the very moment at which it may be proof.
            self.world.at(self.clock.when(seen.began_ms + wait), self.read_now)

    @property
    def reason(self) -> str:
        return self.judge.reasons(WRITER)[DOMAIN].code


def waive(world: World) -> None:
    """The leader's intent first, then the waiver itself."""
    world.reader.judge.set_waiver(WRITER, DOMAIN, stands=True)
    world.writer.waiver_over = False
    world.writer.waived.add((WRITER, DOMAIN))
    world.writer.tell(WaiverGiven(domain_id=DOMAIN))


def end_waiver(world: World) -> None:
    world.writer.tell(WaiverEnded(domain_id=DOMAIN))
