"""Tickets for consoles: for one VM, one user, one use, a minute. In memory: a restart of the server ends them."""

import hashlib
import secrets

from virtha.control.views import Caller
from virtha.model.console import ConsoleKind
from virtha.model.errors import Refused, Unauthenticated
from virtha.model.ids import TokenId, UserId, VmId
from virtha.model.value import Value
from virtha.ports.clock import Clock

VALID_MS = 60_000
TICKETS_MAX = 1_000
PER_USER_MAX = 50


class Admission(Value, frozen=True, kw_only=True):
    """What a ticket was made for."""

    vm_id: VmId
    kind: ConsoleKind
    user: str
    user_id: UserId | None = None
    """None: root on the server's own socket."""
    token_id: TokenId | None = None
    """With which its user came: they may no more with the console than with that, and no longer."""


class ConsoleTickets:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: dict[str, tuple[int, Admission]] = {}
        """By the ticket's digest: what a memory dump shows is no ticket."""
        self._over: dict[str, tuple[int, str]] = {}
        """Used or expired ones, for as long again, so that the error can say which."""

    def make(self, caller: Caller, vm_id: VmId, kind: ConsoleKind) -> str:
        """Raises Refused: too many are open."""
        self._forget()
        own = sum(admission.user == caller.name for _, admission in self._open.values())
        if len(self._open) >= TICKETS_MAX or own >= PER_USER_MAX:
            raise Refused(
                "too many tickets wait to be used",
                code="problem.console.busy",
                allowed=(f"{PER_USER_MAX} per user, {TICKETS_MAX} in all",),
                fix="use them, or wait a minute",
            )
        ticket = secrets.token_urlsafe(32)
        admission = Admission(
            vm_id=vm_id,
            kind=kind,
            user=caller.name,
            user_id=caller.user_id,
            token_id=caller.token_id,
        )
        self._open[_digest(ticket)] = (self._clock.monotonic_ms() + VALID_MS, admission)
        return ticket

    def use(self, ticket: str) -> Admission:
        """Raises Unauthenticated: unknown, used, or too old."""
        self._forget()
        digest = _digest(ticket)
        found = self._open.pop(digest, None)
        if found is not None:
            self._over[digest] = (self._clock.monotonic_ms() + VALID_MS, "problem.token.used")
            return found[1]
        _, code = self._over.get(digest, (0, "problem.token.unknown"))
        said = {
            "problem.token.used": "the ticket was used already",
            "problem.token.expired": "the ticket is too old: it was valid for a minute",
        }
        raise Unauthenticated(
            said.get(code, "there is no such ticket, or the server was started anew since"),
            code=code,
            field="ticket",
            fix="make a new one: POST /v1/vms/{ref}/console-tickets",
        )

    def _forget(self) -> None:
        now = self._clock.monotonic_ms()
        for digest, (ends, _) in tuple(self._open.items()):
            if now >= ends:
                del self._open[digest]
                self._over[digest] = (now + VALID_MS, "problem.token.expired")
        for digest, (ends, _) in tuple(self._over.items()):
            if now >= ends or len(self._over) > TICKETS_MAX:
                del self._over[digest]


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
