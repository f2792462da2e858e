"""Orders of a helper: to shut another host out of a Ceph cluster by its addresses, and to let it in again (P3, ADR 20).

Each is carried out in the worker of the domain that it names, one after the other: an order's answer says that all that came before
it there is over. What fails in the midst is not known to be undone, so only what was looked at before is refused.
"""

from functools import partial

from virtha.agent import ceph_records
from virtha.agent.answers import Answer, of_error
from virtha.agent.ceph_sight import card_addresses, pool_of
from virtha.agent.host_context import HostContext
from virtha.agent.storage import check_header
from virtha.drivers.ceph_blocklist import Blocked
from virtha.model.errors import Refused, VirthaError
from virtha.model.facts import Result
from virtha.model.host import StorageDomain
from virtha.model.ids import InstallationId
from virtha.model.orders import LetInHost, ShutOutHost
from virtha.model.value import Fields

DEADLINE_MS = 120_000
"""Some six questions to the monitors of 20 s each at most (``ceph_blocklist.PATIENCE_MS``); mostly a tenth of a second."""


class CephOrders:
    def __init__(self, host: HostContext) -> None:
        self._host = host

    async def shut_out(self, order: ShutOutHost) -> Answer:
        return await self._in_worker(order)

    async def let_in(self, order: LetInHost) -> Answer:
        if not order.runs or order.boot == order.runs:
            raise Refused(
                "the host has not booted since it was shut out",
                fix="reboot it, then its storage is given back",
            )
        return await self._in_worker(order)

    async def _in_worker(self, order: ShutOutHost | LetInHost) -> Answer:
        host = self._host
        domain = host.storage_domain(order.domain_id)
        call = partial(_carry_out, domain, host.installation_id, order)
        try:
            fields = await host.workers.call(domain, call, deadline_ms=DEADLINE_MS)
        except _Undone as error:
            raise error.why from error
        except (VirthaError, OSError) as error:
            return _unfinished(of_error(error))
        return Answer(result=Result.OK, fields=fields)


class _Undone(Exception):
    """Refused before anything was done."""

    def __init__(self, why: VirthaError) -> None:
        super().__init__(str(why))
        self.why = why


def _unfinished(answer: Answer) -> Answer:
    """A permission that lacks for the second of two addresses leaves the first one done."""
    result = Result.FAILED if answer.result is Result.REFUSED else answer.result
    return Answer(result=result, code=answer.code, message=answer.message)


# In the domain's worker


def _carry_out(
    domain: StorageDomain, installation_id: InstallationId, order: ShutOutHost | LetInHost
) -> Fields:
    try:
        check_header(domain, installation_id)
        check_order(domain, order)
    except (VirthaError, OSError) as error:
        why = error if isinstance(error, VirthaError) else Refused(str(error))
        raise _Undone(why) from error
    list_of = ceph_records.blocklist(pool_of(domain))
    if isinstance(order, ShutOutHost):
        done = list_of.block(order.addresses)
        return {
            "fsid": order.fsid,
            "addresses": ",".join(done.addresses),
            "epoch": done.epoch,
            "until_s": done.until_s,
        }
    blocked = Blocked(addresses=order.addresses, until_s=order.until_s, epoch=0)
    left = list_of.lift(blocked, boot=order.boot, runs=order.runs)
    return {"left": ",".join(left)}


def check_order(domain: StorageDomain, order: ShutOutHost | LetInHost) -> None:
    """Raises Refused: it is about another cluster, or about this host itself; OSError, VirthaError."""
    pool = pool_of(domain)
    fsid, _ = ceph_records.identity(pool)
    if fsid != order.fsid:
        raise Refused(
            f"storage domain {domain.name} is in Ceph cluster {fsid} here, and the order is about {order.fsid}",
            fix="compare the domain's monitors on both hosts",
        )
    if isinstance(order, ShutOutHost):
        own = {*ceph_records.blocklist(pool).own_addresses(), *card_addresses()}
        mine = sorted(own.intersection(order.addresses))
        if mine:
            raise Refused(f"{', '.join(mine)} is this host's own address")
