"""The installation's one row, and its settings."""

from sqlalchemy import delete, func, insert, select, update

from virtha.model.host import Installation
from virtha.model.ids import InstallationId, Revision, Term
from virtha.model.user import Setting, SettingScope
from virtha.model.value import Value
from virtha.store.body import put
from virtha.store.schema import event, installation, setting
from virtha.store.store import Transaction, WriteTransaction


class Lead(Value, frozen=True, kw_only=True):
    """What lets a leader write and order. Of an earlier timeline it is over, whatever its term: a restored database counts
    from its backup's again, and may come to a number that another leader still goes by (M1, M2)."""

    timeline: str
    term: Term


class InstallationRow(Value, frozen=True, kw_only=True):
    installation: Installation
    term: Term
    timeline: str
    """Made anew by each restore (M2)."""
    events_pruned_to: Revision
    revision: Revision

    @property
    def lead(self) -> Lead:
        return Lead(timeline=self.timeline, term=self.term)


async def add_installation(tx: WriteTransaction, made: Installation, *, timeline: str) -> None:
    await tx.connection.execute(
        insert(installation).values(
            id=made.id,
            name=made.name,
            hold=made.hold,
            revision=0,
            term=0,
            timeline=timeline,
            host_number_last=0,
            events_pruned_to=0,
        )
    )


async def find_installation(tx: Transaction) -> InstallationRow | None:
    row = (await tx.connection.execute(select(installation))).one_or_none()
    if row is None:
        return None
    return InstallationRow(
        installation=Installation(id=InstallationId(row.id), name=row.name, hold=row.hold),
        term=Term(row.term),
        timeline=row.timeline,
        events_pruned_to=Revision(row.events_pruned_to),
        revision=Revision(row.revision),
    )


async def the_installation(tx: Transaction) -> InstallationRow:
    """Raises NotFound before ``virtha server init``."""
    row = await find_installation(tx)
    if row is None:
        await tx.revision_now()  # raises, with the fix
    assert row is not None
    return row


async def set_hold(tx: WriteTransaction, reason: str | None) -> None:
    _ = tx.revision
    await tx.connection.execute(update(installation).values(hold=reason))


async def set_term(tx: WriteTransaction, term: Term) -> None:
    _ = tx.revision
    await tx.connection.execute(update(installation).values(term=term))


async def set_timeline(tx: WriteTransaction, timeline: str) -> None:
    _ = tx.revision
    await tx.connection.execute(update(installation).values(timeline=timeline))


async def next_host_number(tx: WriteTransaction) -> int:
    """Counts up and is never given again (L1), so it is not the highest of the hosts there are."""
    found = await tx.connection.scalar(select(installation.c.host_number_last))
    number = int(found or 0) + 1
    await tx.connection.execute(update(installation).values(host_number_last=number))
    return number


async def prune_events(tx: WriteTransaction, *, older_than_ms: int) -> int:
    """Forget events recorded before ``older_than_ms`` (UTC). Returns how many went.

    Followers that are behind get `problem.gone` instead of a gap.
    """
    newest = await tx.connection.scalar(
        select(func.max(event.c.revision)).where(event.c.at < older_than_ms)
    )
    if newest is None:
        return 0
    done = await tx.connection.execute(delete(event).where(event.c.revision <= newest))
    await tx.connection.execute(update(installation).values(events_pruned_to=newest))
    return int(done.rowcount)


async def all_settings(tx: Transaction) -> tuple[Setting, ...]:
    rows = await tx.connection.execute(
        select(setting).order_by(setting.c.key, setting.c.scope, setting.c.subject)
    )
    return tuple(
        Setting(
            key=row.key,
            scope=SettingScope(row.scope),
            subject=row.subject,
            value=row.value,
            revision=Revision(row.revision),
        )
        for row in rows
    )


async def put_setting(tx: WriteTransaction, value: Setting) -> None:
    await put(
        tx,
        setting,
        {"key": value.key, "scope": value.scope.value, "subject": value.subject},
        {"value": value.value, "revision": tx.revision},
    )


async def drop_setting(tx: WriteTransaction, key: str, scope: SettingScope, subject: str) -> bool:
    done = await tx.connection.execute(
        delete(setting).where(
            setting.c.key == key, setting.c.scope == scope.value, setting.c.subject == subject
        )
    )
    if done.rowcount:
        _ = tx.revision
    return bool(done.rowcount)
