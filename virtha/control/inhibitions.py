"""Rules of inhibition: while one problem is told of, events that it explains are not."""

from difflib import get_close_matches
from uuid import uuid4

from virtha.alerts.inhibition import check_no_circle
from virtha.alerts.match import could_match
from virtha.control.event_matchers import matcher_from
from virtha.control.history import changes_between, record
from virtha.control.names import check_name, taken
from virtha.control.requests import InhibitionCreate
from virtha.control.routing_views import InhibitionView
from virtha.control.views import Caller, Page
from virtha.model.codes import EVENTS, MAY_RUN_TWICE, RECOVERY_ENDED, REGISTRY, SOLVED_BY
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.ids import InhibitionId
from virtha.model.routing import Inhibition, Matcher
from virtha.store.routing import (
    all_inhibitions,
    drop_inhibition,
    find_inhibition,
    inhibition_called,
    save_inhibition,
)
from virtha.store.store import Store, Transaction

INHIBITIONS_MAX = 50
"""Each event is held against all of them."""


class Inhibitions:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self) -> Page[InhibitionView]:
        """Those that can be read; of others an event told."""
        async with self._store.read() as tx:
            found, _ = await all_inhibitions(tx)
            return Page(
                items=tuple(InhibitionView(inhibition=one) for one in found),
                revision=await tx.revision_now(),
            )

    async def get(self, ref: str) -> InhibitionView:
        async with self._store.read() as tx:
            return InhibitionView(inhibition=await _the_inhibition(tx, ref))

    async def create(self, caller: Caller, request: InhibitionCreate) -> InhibitionView:
        check_name(request.name)
        async with self._store.write() as tx:
            present, _ = await all_inhibitions(tx)
            if await inhibition_called(tx, request.name) is not None:
                raise taken("inhibition", request.name)
            if len(present) >= INHIBITIONS_MAX:
                raise Refused(
                    f"there are {INHIBITIONS_MAX} rules already",
                    fix="remove some: virtha notify inhibition remove NAME",
                )
            made = Inhibition(
                id=InhibitionId(str(uuid4())),
                name=request.name,
                source=await matcher_from(tx, request.source, field="source"),
                target=await matcher_from(tx, request.target, field="target"),
                same=request.same,
            )
            _check_has_end(made.source)
            _check_is_kept_back(made.target)
            check_no_circle((*present, made))
            saved = await save_inhibition(tx, made)
            told = changes_between(None, saved)
            await record(
                tx, "notify.inhibition.created", by=caller.name, inhibition=saved.name, **told
            )
            return InhibitionView(inhibition=saved)

    async def delete(self, caller: Caller, ref: str) -> None:
        """What it held back and still goes on is told. One that nobody can read goes, too."""
        async with self._store.write() as tx:
            its_id, name = await _called(tx, ref)
            readable, _ = await all_inhibitions(tx)
            was = next((one for one in readable if one.id == its_id), None)
            told = changes_between(was, None) if was is not None else {}
            await drop_inhibition(tx, its_id)
            await record(tx, "notify.inhibition.removed", by=caller.name, inhibition=name, **told)


def _check_has_end(source: Matcher) -> None:
    """Only a problem of which the end is told goes on, and can inhibit."""
    if any(could_match(source, REGISTRY[code]) for code in SOLVED_BY):
        return
    raise InvalidInput(
        f"no event that it names is a problem with an end ({', '.join(source.codes)}): it would never inhibit",
        field="source.codes",
        fix="name for example host.unreachable; the guide lists problems and their ends",
    )


def _check_is_kept_back(target: Matcher) -> None:
    """Of what says that a VM may run twice, or stays down, no rule does (``alerts/hindrance.py``)."""
    never = MAY_RUN_TWICE | RECOVERY_ENDED
    if any(could_match(target, code) for code in EVENTS if code.name not in never):
        return
    raise InvalidInput(
        f"no event that it names is kept back by any rule ({', '.join(target.codes)}): it would never inhibit",
        field="target.codes",
        fix="name for example vm.agent.lost; the guide lists what is always told",
    )


async def _the_inhibition(tx: Transaction, ref: str) -> Inhibition:
    its_id, _ = await _called(tx, ref)
    found = await find_inhibition(tx, its_id)
    assert found is not None, "of this snapshot"
    return found


async def _called(tx: Transaction, ref: str) -> tuple[InhibitionId, str]:
    found = await inhibition_called(tx, ref)
    if found is None:
        present, _ = await all_inhibitions(tx)
        near = get_close_matches(ref, [one.name for one in present], n=3)
        raise NotFound(
            f"there is no inhibition '{ref[:64]}'",
            fix=f"did you mean {' or '.join(near)}?"
            if near
            else "'virtha notify inhibition list' shows all",
        )
    return found
