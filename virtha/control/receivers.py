"""Receivers: the ways to those who are told. Their secrets go in and never come out."""

from collections.abc import Iterable, Mapping
from hashlib import sha256
from urllib.parse import urlsplit
from uuid import uuid4

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from virtha.control.history import changes_between, record, secrets_changed
from virtha.control.names import (
    check_limit,
    check_name,
    check_revision,
    page_of,
    taken,
    the_receiver,
)
from virtha.control.notifier_bell import NotifierBell
from virtha.control.receiver_checks import check_secrets, check_settings, kind_of
from virtha.control.requests import PageQuery, ReceiverChange, ReceiverCreate
from virtha.control.secret_box import SecretBox
from virtha.control.subscriptions import DROPPED
from virtha.control.views import Caller, Page, ReceiverView
from virtha.model.codes import render
from virtha.model.errors import InvalidInput, Refused, VirthaError
from virtha.model.ids import ReceiverId, Revision
from virtha.model.notification import Receiver, ReceiverSettings, WebhookSettings
from virtha.model.time import UtcMillis
from virtha.store.deliveries import drop_pending, oldest_pending
from virtha.store.delivery_counts import delivery_counts
from virtha.store.notifications import (
    ReceiverRow,
    drop_receiver,
    find_receiver,
    receivers_after,
    save_receiver,
    save_receiver_status,
    sealed_count,
    subscriptions_to,
)
from virtha.store.store import Store, Transaction, WriteTransaction


class Receivers:
    def __init__(self, store: Store, box: SecretBox, bell: NotifierBell) -> None:
        self._store = store
        self._box = box
        self._bell = bell

    async def list(self, query: PageQuery) -> Page[ReceiverView]:
        limit = check_limit(query.limit)
        async with self._store.read() as tx:
            rows, more = page_of(await receivers_after(tx, query.after or "", limit + 1), limit)
            return Page(
                items=await _views(tx, rows),
                revision=await tx.revision_now(),
                next=rows[-1].receiver.name if more else None,
            )

    async def get(self, ref: str) -> ReceiverView:
        async with self._store.read() as tx:
            return await _view(tx, await the_receiver(tx, ref))

    async def create(self, caller: Caller, request: ReceiverCreate) -> ReceiverView:
        check_name(request.name)
        check_settings(request.settings)
        check_secrets(request.settings, request.secrets)
        made = Receiver(
            id=ReceiverId(str(uuid4())),
            name=request.name,
            settings=request.settings,
            secrets=tuple(sorted(request.secrets)),
            enabled=request.enabled,
        )
        sealed = self._seal(made.id, request.secrets)
        async with self._store.write() as tx:
            if await find_receiver(tx, made.name) is not None:
                raise taken("receiver", made.name)
            saved = await save_receiver(tx, made, sealed)
            await _record(tx, "notify.receiver.created", caller, None, saved)
            return await _view(tx, ReceiverRow(receiver=saved))

    async def change(
        self, caller: Caller, ref: str, request: ReceiverChange, if_match: Revision | None = None
    ) -> ReceiverView:
        async with self._store.write() as tx:
            row = await the_receiver(tx, ref)
            present = row.receiver
            check_revision(if_match, present.revision)
            if request.name is not UNSET and request.name != present.name:
                check_name(request.name)
                if await find_receiver(tx, request.name) is not None:
                    raise taken("receiver", request.name)
            settings = request.settings if request.settings is not UNSET else present.settings
            if kind_of(settings) != kind_of(present.settings):
                raise InvalidInput(
                    f"{present.name} is of type {kind_of(present.settings)}, and stays it",
                    field="settings.type",
                    allowed=(kind_of(present.settings),),
                    fix="create another receiver",
                )
            check_settings(settings)
            _check_not_led_away(present, settings, request)
            names, sealed = self._changed_secrets(row, request)
            changed = msgspec.structs.replace(
                present,
                name=request.name if request.name is not UNSET else present.name,
                settings=settings,
                secrets=names,
                enabled=request.enabled if request.enabled is not UNSET else present.enabled,
            )
            saved = await save_receiver(tx, changed, sealed)
            if not saved.enabled:
                await drop_pending(tx, code=DROPPED, receiver_id=saved.id)
            if row.status.away_told:
                # It may be mended, or switched off: routes take that for the end of its absence. If not, it is told anew.
                status = msgspec.structs.replace(row.status, away_told=False)
                await save_receiver_status(tx, saved.id, status)
                row = msgspec.structs.replace(row, status=status)
            await _record(
                tx, "notify.receiver.changed", caller, present, saved, secrets=request.secrets
            )
            view = await _view(tx, msgspec.structs.replace(row, receiver=saved))
        self._bell.hurry(saved.id)
        return view

    def _changed_secrets(
        self, row: ReceiverRow, request: ReceiverChange
    ) -> tuple[tuple[str, ...], str | None]:
        """Names and sealed text. What is there is opened only where something is to stay beside what is
        given: with the key lost, all can be given anew."""
        settings = request.settings if request.settings is not UNSET else row.receiver.settings
        if not request.secrets:
            # Their names tell whether they fit; what they are was checked when they were set.
            placeholder = "x" * 8
            check_secrets(settings, dict.fromkeys(row.receiver.secrets, placeholder))
            return row.receiver.secrets, row.sealed
        staying = set(row.receiver.secrets) - request.secrets.keys()
        kept = self.opened(row) if staying else {}
        after = {name: kept[name] for name in staying}
        after |= {name: secret for name, secret in request.secrets.items() if secret is not None}
        check_secrets(settings, after)
        return tuple(sorted(after)), self._seal(row.receiver.id, after)

    async def delete(self, caller: Caller, ref: str, if_match: Revision | None = None) -> None:
        async with self._store.write() as tx:
            receiver = (await the_receiver(tx, ref)).receiver
            check_revision(if_match, receiver.revision)
            using = [one.name for one in await subscriptions_to(tx, receiver.id)]
            if using:
                more = f" and {len(using) - 10} more" if len(using) > 10 else ""
                raise Refused(
                    f"subscriptions use {receiver.name}: {', '.join(using[:10])}{more}",
                    fix="remove them first: virtha notify unsubscribe NAME",
                )
            await drop_pending(tx, code=DROPPED, receiver_id=receiver.id)
            await drop_receiver(tx, receiver.id)
            await _record(tx, "notify.receiver.removed", caller, receiver, None)

    async def check_secrets_readable(self) -> None:
        """At the server's start: with an unusable key it is told, and other things go on."""
        async with self._store.read() as tx:
            if await sealed_count(tx) == 0:
                return
            rows = await receivers_after(tx, "", _LOOKED_AT)
        for row in rows:
            try:
                self.opened(row)
            except VirthaError as error:
                async with self._store.write() as wtx:
                    await record(wtx, "notify.secrets_unreadable", detail=error.message)
                return

    def opened(self, row: ReceiverRow) -> dict[str, str]:
        """Its secrets. Raises Failed, which names the key's file."""
        return self._box.open(row.sealed, of=row.receiver.id) if row.sealed is not None else {}

    def _seal(self, receiver_id: ReceiverId, secrets: Mapping[str, str]) -> str | None:
        return self._box.seal(secrets, of=receiver_id) if secrets else None


_LOOKED_AT = 1_000


def _check_not_led_away(
    present: Receiver, settings: ReceiverSettings, request: ReceiverChange
) -> None:
    """Secrets are for the one that they were given for: who could lead them elsewhere could read them
    there. A webhook's only signs, and is not sent."""
    if isinstance(settings, WebhookSettings):
        return
    for field in ("host", "url", "authority_pem"):
        before, after = getattr(present.settings, field, None), getattr(settings, field, None)
        staying = [name for name in present.secrets if name not in request.secrets]
        if before != after and staying:
            raise InvalidInput(
                f"must be given anew, for {field} changes",
                field=f"secrets.{staying[0]}",
                fix="send it along with the new settings",
            )


async def _record(
    tx: WriteTransaction,
    code: str,
    caller: Caller,
    before: Receiver | None,
    after: Receiver | None,
    *,
    secrets: Iterable[str] = (),
) -> None:
    receiver = after or before
    assert receiver is not None
    told = changes_between(_without_path(before), _without_path(after))
    await record(
        tx,
        code,
        by=caller.name,
        receiver=receiver.name,
        receiver_id=receiver.id,
        kind=kind_of(receiver.settings),
        **told,
        **secrets_changed(secrets),
    )


def _without_path(receiver: Receiver | None) -> Receiver | None:
    """A hook's address often is the only word that is needed to write there: events go further than the list of receivers does, and
    tell whose it is, and no more than a digest of the rest."""
    if receiver is None or not isinstance(receiver.settings, WebhookSettings):
        return receiver
    parts = urlsplit(receiver.settings.url)
    rest = receiver.settings.url.partition(parts.netloc)[2]
    shown = f"{parts.scheme}://{parts.netloc}/"
    if rest not in ("", "/"):
        shown += f"… (SHA-256 {sha256(rest.encode()).hexdigest()[:16]}…)"
    return replace(receiver, settings=replace(receiver.settings, url=shown))


async def _view(tx: Transaction, row: ReceiverRow) -> ReceiverView:
    return (await _views(tx, (row,)))[0]


async def _views(tx: Transaction, rows: tuple[ReceiverRow, ...]) -> tuple[ReceiverView, ...]:
    counts: dict[ReceiverId, dict[str, int]] = {}
    for one in await delivery_counts(tx):
        counts.setdefault(one.receiver_id, {})[one.state.value] = one.count
    oldest = await oldest_pending(tx)
    views = []
    for row in rows:
        of = row.receiver.id
        using = await subscriptions_to(tx, of)
        views.append(_made(row, counts.get(of, {}), oldest.get(of), tuple(s.name for s in using)))
    return tuple(views)


def _made(
    row: ReceiverRow, counts: dict[str, int], oldest: UtcMillis | None, using: tuple[str, ...]
) -> ReceiverView:
    return ReceiverView(
        receiver=row.receiver,
        kind=kind_of(row.receiver.settings),
        status=row.status,
        reason_text=render(row.status.code, {}) if row.status.code is not None else "",
        deliveries=counts,
        oldest_pending=oldest,
        subscriptions=using,
    )
