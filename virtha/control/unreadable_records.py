"""Telling of records that can't be read, so that one of them keeps nobody from being told of all else (ADR 21)."""

from collections.abc import Collection

import structlog

from virtha.control.history import record
from virtha.store.body import Unreadable
from virtha.store.store import WriteTransaction

log = structlog.get_logger("virtha.control.unreadable_records")


async def tell_of(tx: WriteTransaction, news: Collection[Unreadable]) -> None:
    """``news``: of which nothing was told yet, or not since it could be read."""
    for one in sorted(news, key=lambda one: (one.kind, one.name)):
        log.error("a record can't be read", kind=one.kind, name=one.name, why=one.why)
        await record(tx, "notify.record_unreadable", kind=one.kind, name=one.name)
