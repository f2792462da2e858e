"""The installation's one row, and its settings."""

from collections.abc import Collection

from sqlalchemy import delete, func, insert, select, update

from virtha.model.host import Installation
from virtha.model.ids import InstallationId, Revision, Term
from virtha.model.user import Setting, SettingScope
from virtha.model.value import Value
from virtha.store.body import put
from virtha.store.schema import event, installation, setting
from virtha.store.store import Transaction, WriteTransaction

IDS_AT_ONCE = 500


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


async def newest_before(tx: Transaction, at_ms: int) -> Revision | None:
    """The last event that was recorded before that moment (UTC); None: there is none."""
    found = await tx.connection.scalar(select(func.max(event.c.revision)).where(event.c.at < at_ms))
    return None if found is None else Revision(found)


async def prune_events(tx: WriteTransaction, up_to: Revision, *, spared: Collection[int]) -> int:
    """Forget events up to there, but for some. Returns how many went.

    Followers that are behind get `problem.gone` instead of a gap.
    """
    kept = sorted(one for one in spared if one <= up_to)
    gone, after = 0, 0
    for start in range(0, len(kept) + 1, IDS_AT_ONCE):
        some = kept[start : start + IDS_AT_ONCE]
        last = some[-1] if len(some) == IDS_AT_ONCE else up_to
        done = await tx.connection.execute(
            delete(event).where(
                event.c.revision > after, event.c.revision <= last, event.c.revision.not_in(some)
            )
        )
        gone, after = gone + int(done.rowcount), last
    # Of what was spared before, nothing says that all above it is still there.
    behind = installation.c.events_pruned_to < up_to
    await tx.connection.execute(update(installation).where(behind).values(events_pruned_to=up_to))
    return gone


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
