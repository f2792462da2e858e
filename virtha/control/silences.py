"""Silences: for a while nothing that matches is told. Who set it, why and until when is kept, and told itself."""

from uuid import uuid4

from msgspec.structs import replace

from virtha.control.event_matchers import matcher_from
from virtha.control.history import changes_between, record
from virtha.control.names import check_limit, check_text
from virtha.control.requests import MatcherRequest, SilenceCreate, SilenceQuery
from virtha.control.routing_views import SilenceState, SilenceView
from virtha.control.views import Caller, Page
from virtha.model.errors import InvalidInput, NotFound, Refused
from virtha.model.ids import SilenceId
from virtha.model.routing import Silence
from virtha.model.time import UtcMillis, format_duration_ms, format_utc, parse_utc
from virtha.store.clusters import find_cluster
from virtha.store.hosts import find_host
from virtha.store.routing import find_silence, save_silence, silences_after, silences_page
from virtha.store.store import Store, Transaction
from virtha.store.vms import find_vm

LENGTH_MS_MAX = 30 * 86_400_000
SILENCES_MAX = 200
"""At once: each event is held against all of them."""


class Silences:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def list(self, query: SilenceQuery) -> Page[SilenceView]:
        """The next to end first."""
        limit, after = check_limit(query.limit), _place(query.after)
        async with self._store.read() as tx:
            now = self._store.clock.wall_ms()
            found = await silences_page(tx, 0 if query.ended else now, after, limit + 1)
            shown = found[:limit]
            return Page(
                items=tuple([await _view(tx, one, now) for one in shown]),
                revision=await tx.revision_now(),
                next=f"{shown[-1].ends}-{shown[-1].id}" if len(found) > limit else None,
            )

    async def get(self, silence_id: str) -> SilenceView:
        async with self._store.read() as tx:
            return await _view(tx, await _the_silence(tx, silence_id), self._store.clock.wall_ms())

    async def create(self, caller: Caller, request: SilenceCreate) -> SilenceView:
        check_text(request.reason, field="reason")
        if not request.reason.strip():
            raise InvalidInput("is missing", field="reason", fix="say why, for those who wonder")
        _check_names_something(request.matcher)
        async with self._store.write() as tx:
            now = tx.clock.wall_ms()
            begins, ends = _span(request, now)
            present, _ = await silences_after(tx, now)
            if len(present) >= SILENCES_MAX:
                raise Refused(
                    f"there are {SILENCES_MAX} silences already",
                    fix="end some: virtha notify silence end ID",
                )
            made = Silence(
                id=SilenceId(str(uuid4())),
                matcher=await matcher_from(tx, request.matcher, field="matcher"),
                reason=request.reason.strip(),
                by=caller.name,
                begins=begins,
                ends=ends,
            )
            saved = await save_silence(tx, made)
            await record(
                tx,
                "notify.silence.set",
                by=caller.name,
                cluster_id=saved.matcher.cluster_id,
                user=caller.name,
                silence=saved.id,
                reason=saved.reason,
                until=format_utc(saved.ends),
                **changes_between(None, saved),
            )
            return await _view(tx, saved, now)

    async def end(self, caller: Caller, silence_id: str) -> SilenceView:
        """Now. What it held back and still goes on is told."""
        async with self._store.write() as tx:
            present, now = await _the_silence(tx, silence_id), tx.clock.wall_ms()
            if present.ends <= now:
                raise Refused(f"it has ended at {format_utc(present.ends)}")
            saved = await save_silence(
                tx, replace(present, begins=UtcMillis(min(present.begins, now)), ends=now)
            )
            await record(
                tx,
                "notify.silence.ended",
                by=caller.name,
                cluster_id=saved.matcher.cluster_id,
                user=caller.name,
                silence=saved.id,
                reason=saved.reason,
                **changes_between(present, saved),
            )
            return await _view(tx, saved, now)


def _place(after: str | None) -> tuple[int, str]:
    """Of the last silence of a page: its end, and its id."""
    if after is None:
        return -1, ""
    ends, dash, silence_id = after.partition("-")
    if not (dash and ends.isascii() and ends.isdigit() and len(ends) < 19):
        raise InvalidInput(
            f"'{after[:50]}' is no place in this list", field="after", fix="use next of a page"
        )
    return int(ends), silence_id


def _span(request: SilenceCreate, now: UtcMillis) -> tuple[UtcMillis, UtcMillis]:
    begins = parse_utc(request.begins, field="begins") if request.begins is not None else now
    if (request.ends is None) == (request.duration_ms is None):
        raise InvalidInput(
            "is missing" if request.ends is None else "excludes duration_ms",
            field="ends",
            fix="give ends or duration_ms",
        )
    if request.ends is not None:
        ends = parse_utc(request.ends, field="ends")
    else:
        ends = UtcMillis(begins + (request.duration_ms or 0))
    field = "ends" if request.ends is not None else "duration_ms"
    if ends <= begins:
        raise InvalidInput(
            f"it would end at {format_utc(ends)}, and begins at {format_utc(begins)}",
            field=field,
            fix="give a later end",
        )
    if ends <= now:
        raise InvalidInput(
            f"it would have ended at {format_utc(ends)}; it is {format_utc(now)} now",
            field=field,
            fix="give an end that is to come",
        )
    if ends - max(begins, now) > LENGTH_MS_MAX:
        raise InvalidInput(
            f"it would last for {format_duration_ms(ends - begins)}",
            field=field,
            allowed=(f"at most {format_duration_ms(LENGTH_MS_MAX)}",),
            fix="for what is never to be told, change the route",
        )
    return begins, ends


def _check_names_something(matcher: MatcherRequest) -> None:
    if matcher == MatcherRequest(severity=matcher.severity):
        raise InvalidInput(
            "names nothing: every event would be silenced, alerts too",
            field="matcher",
            fix="name codes, a cluster, a host, a VM or labels; if all is meant, the code '*'",
        )


async def _the_silence(tx: Transaction, silence_id: str) -> Silence:
    found = await find_silence(tx, silence_id)
    if found is None:
        raise NotFound(
            f"there is no silence '{silence_id[:100]}'",
            fix="'virtha notify silence list' shows them",
        )
    return found


async def _view(tx: Transaction, one: Silence, now: int) -> SilenceView:
    matcher = one.matcher
    cluster = await find_cluster(tx, matcher.cluster_id) if matcher.cluster_id is not None else None
    host = await find_host(tx, matcher.host_id) if matcher.host_id is not None else None
    vm = await find_vm(tx, matcher.vm_id) if matcher.vm_id is not None else None
    state = SilenceState.ACTIVE
    if one.ends <= now:
        state = SilenceState.ENDED
    elif one.begins > now:
        state = SilenceState.PENDING
    return SilenceView(
        silence=one,
        state=state,
        cluster_name=cluster.name if cluster is not None else None,
        host_name=host.host.name if host is not None else None,
        vm_name=vm.vm.name if vm is not None else None,
    )
