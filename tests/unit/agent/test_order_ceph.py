"""A helper's orders about another host, and what a start waits for, with the monitors played at the client's edge (P3). A real
Ceph is in `tests/contract/test_ceph_fence.py`."""

import asyncio
import errno
import json
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import UNSET, convert
from msgspec.structs import replace

from virtha.agent import ceph_records, ceph_sight, order_ceph
from virtha.agent.answers import Answer
from virtha.agent.ceph_images import await_maps
from virtha.agent.ceph_sight import CephSights, card_addresses
from virtha.agent.host_context import HostContext
from virtha.agent.order_ceph import CephOrders
from virtha.agent.storage import StorageWorkers
from virtha.drivers.ceph_blocklist import EXPIRY_S
from virtha.model.errors import InvalidInput, Refused
from virtha.model.facts import Result
from virtha.model.host import CephPool, StorageDomain
from virtha.model.ids import BootId, ClusterId, HostId, InstallationId, StorageDomainId
from virtha.model.orders import LetInHost, ShutOut, ShutOutHost, StartVm

pytestmark = [pytest.mark.req("F9"), pytest.mark.req("F3")]

FSID, OLD, OWN = "fsid-1", "10.0.0.1", "10.0.0.2"
DOMAIN = StorageDomain(
    id=StorageDomainId("rbd1"),
    name="rbd1",
    cluster_id=ClusterId("c1"),
    path="ceph:vms",
    ceph=CephPool(monitors=("10.0.0.9",), pool="vms", user="virtha"),
)
SHUT_OUT = ShutOutHost(
    host_id=HostId("h1"),
    boot=BootId("b1"),
    domain_id=DOMAIN.id,
    fsid=FSID,
    addresses=(OLD,),
    by="engine",
)
LET_IN = LetInHost(
    host_id=HostId("h1"),
    boot=BootId("b1"),
    runs=BootId("b2"),
    domain_id=DOMAIN.id,
    fsid=FSID,
    addresses=(OLD,),
    until_s=0,
    by="engine",
)


class Monitors:
    """What they answer, and the list that they keep."""

    def __init__(self) -> None:
        self.listed: dict[str, float] = {}
        self.epoch = 10
        self.addresses = f"v1:{OWN}:0/77"
        self.daemons = ["10.0.0.9"]
        self.refuses: set[tuple[str, str]] = set()
        """(add or rm, address)"""
        self.newest_maps = 0
        self.says_absent = self.silent = False

    def ask(self, what: str, **words: Any) -> Any:
        match what:
            case "identity":
                return FSID, 1
            case "addresses":
                return self.addresses
            case "newest_map":
                self.newest_maps += 1
                return None
        raise AssertionError(what)

    def command(self, *, prefix: str, **words: Any) -> str:
        match prefix:
            case "osd blocklist ls":
                return json.dumps(
                    [{"addr": f"{one}:0/0", "until": _utc(at)} for one, at in self.listed.items()]
                )
            case "osd blocklist":
                self._change(words["blocklistop"], words["addr"].removesuffix(":0/0"), words)
                return ""
            case "osd dump":
                osds = [{"public_addr": f"{one}:6800/1"} for one in self.daemons]
                return json.dumps({"epoch": self.epoch, "osds": osds})
            case "mon dump":
                return json.dumps({"mons": []})
        raise AssertionError(prefix)

    def _change(self, operation: str, address: str, words: dict[str, Any]) -> None:
        if self.silent:
            raise TimeoutError(errno.ETIMEDOUT, "no answer")
        if (operation, address) in self.refuses:
            raise PermissionError(errno.EACCES, "no")
        if operation == "rm" and address not in self.listed:
            if self.says_absent:
                raise FileNotFoundError(errno.ENOENT, f"{address} isn't blocklisted")
            return  # and the map stays as it is
        self.epoch += 1
        if operation == "rm":
            self.listed.pop(address, None)
        else:
            self.listed[address] = datetime.now(UTC).timestamp() + words["expire"]


def _utc(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> Monitors:
    played = Monitors()
    monkeypatch.setattr(ceph_records, "_client_of", lambda _pool: played)
    monkeypatch.setattr(order_ceph, "check_header", lambda *_words: None)
    cards = frozenset({OWN, "10.0.0.22"})
    monkeypatch.setattr(ceph_sight, "card_addresses", lambda: cards)
    monkeypatch.setattr(order_ceph, "card_addresses", lambda: cards)
    return played


def helper() -> HostContext:
    found = SimpleNamespace(
        workers=StorageWorkers(),
        installation_id=InstallationId("i"),
        storage_domain=lambda _domain_id: DOMAIN,
    )
    return cast(HostContext, found)


def carried_out(order: ShutOutHost | LetInHost) -> Answer:
    orders = CephOrders(helper())
    if isinstance(order, ShutOutHost):
        return asyncio.run(orders.shut_out(order))
    return asyncio.run(orders.let_in(order))


def test_what_is_answered_is_what_was_read_back(monitors: Monitors) -> None:
    answer = carried_out(replace(SHUT_OUT, addresses=(OLD, "10.0.0.11")))
    told = convert(answer.fields, ShutOut)
    assert answer.result is Result.OK and told.fsid == FSID
    assert set(told.addresses.split(",")) == {OLD, "10.0.0.11"} == set(monitors.listed)
    assert told.epoch == monitors.epoch == 12
    assert told.until_s > datetime.now(UTC).timestamp() + EXPIRY_S - 86_400
    again = carried_out(replace(SHUT_OUT, addresses=(OLD, "10.0.0.11")))
    assert convert(again.fields, ShutOut) == told, "asked again it changes nothing"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"fsid": "another"}, "cluster"),
        ({"addresses": (OLD, OWN)}, "own address"),
        ({"addresses": (OLD, "10.0.0.22")}, "own address"),
    ],
)
def test_another_cluster_and_its_own_addresses_are_refused(
    monitors: Monitors, changes: dict[str, Any], what: str
) -> None:
    with pytest.raises(Refused, match=what):
        carried_out(replace(SHUT_OUT, **changes))
    assert monitors.listed == {}


def test_what_fails_in_the_midst_is_not_called_refused(monitors: Monitors) -> None:
    """The first address stands by then: nothing would lift it."""
    monitors.refuses = {("add", "10.0.0.11")}
    answer = carried_out(replace(SHUT_OUT, addresses=(OLD, "10.0.0.11")))
    assert answer.result is Result.FAILED and OLD in monitors.listed
    assert "may not change the cluster's blocklist" in answer.message


def test_it_is_let_in_also_where_its_end_was_never_read_back(monitors: Monitors) -> None:
    carried_out(SHUT_OUT)
    monitors.listed["10.0.0.5"] = monitors.listed[OLD]
    soon = datetime.now(UTC).timestamp() + 3_600
    monitors.listed["10.0.0.6"] = soon
    answer = carried_out(replace(LET_IN, addresses=(OLD, "10.0.0.6")))
    assert answer.result is Result.OK and answer.fields == {"left": "10.0.0.6"}
    assert set(monitors.listed) == {"10.0.0.5", "10.0.0.6"}, "somebody else's are left"


def test_the_same_boot_is_never_let_in(monitors: Monitors) -> None:
    carried_out(SHUT_OUT)
    for runs in (LET_IN.boot, BootId("")):
        with pytest.raises(Refused, match="has not booted"):
            carried_out(replace(LET_IN, runs=runs))
    assert OLD in monitors.listed


# What a host says of itself


def test_it_tells_every_address_that_it_had_and_what_speaks_against_it(monitors: Monitors) -> None:
    sights = CephSights(BootId("b1"))
    first = sights.look(DOMAIN, 0)
    assert (first.boot, first.fsid, first.addresses, first.obstacle) == ("b1", FSID, (OWN,), "")
    monitors.addresses = "v2:10.0.0.22:0/5"
    second = sights.look(DOMAIN, 1)
    assert second.addresses == (OWN, "10.0.0.22") and second.obstacle == ""
    monitors.addresses = "v1:192.0.2.7:0/5"
    assert "NAT" in sights.look(DOMAIN, 2).obstacle


def test_daemons_that_come_later_are_noticed(monitors: Monitors) -> None:
    sights = CephSights(BootId("b1"))
    assert sights.look(DOMAIN, 0).obstacle == ""
    monitors.daemons = [OWN]
    assert sights.look(DOMAIN, 1_000).obstacle == ""
    assert "Ceph daemons" in sights.look(DOMAIN, ceph_sight.OBSTACLE_EVERY_MS + 1).obstacle


@pytest.mark.bad_input
def test_a_key_without_the_permission_is_told_before_it_is_needed(monitors: Monitors) -> None:
    """``profile rbd`` lets a client add entries, and take none off: who was shut out would stay so."""
    sights = CephSights(BootId("b1"))
    monitors.refuses = {("rm", "192.0.2.1")}
    assert sights.look(DOMAIN, 0).lacks == "", "asked though the policy does not count on it"
    lacks = sights.look(DOMAIN, 1_000, helps=True).lacks
    assert "client.virtha may not change the cluster's blocklist (rm)" in lacks
    assert 'allow command "osd blocklist"' in lacks
    monitors.refuses = set()
    assert sights.look(DOMAIN, 2_000, helps=True).lacks == lacks, "asked at each look"
    later = 1_001 + ceph_sight.OBSTACLE_EVERY_MS
    assert sights.look(DOMAIN, later, helps=True).lacks == ""
    assert monitors.epoch == 10, "the cluster's map became another one by asking"


def test_a_cluster_that_says_that_nothing_was_there_permits_it(monitors: Monitors) -> None:
    monitors.says_absent = True
    assert CephSights(BootId("b1")).look(DOMAIN, 0, helps=True).lacks == ""


def test_monitors_that_do_not_answer_leave_it_unknown(monitors: Monitors) -> None:
    """Told is what was told before: the report goes on with that (``reports``)."""
    sights = CephSights(BootId("b1"))
    known = sights.look(DOMAIN, 0)
    monitors.silent = True
    with pytest.raises(TimeoutError):
        sights.look(DOMAIN, 1_000, helps=True)
    assert sights.last == known


def test_the_cards_of_this_machine_are_read() -> None:
    assert "127.0.0.1" in card_addresses()


# The start


def waits(epochs: object, domain: StorageDomain = DOMAIN) -> None:
    disk = SimpleNamespace(storage_domain_id=domain.id)
    order = SimpleNamespace(ceph_epochs=epochs, vm=SimpleNamespace(disks=(disk,)))
    host = SimpleNamespace(workers=StorageWorkers(), storage_domain=lambda _one: domain)
    asyncio.run(await_maps(cast(HostContext, host), cast(StartVm, order)))


def test_a_start_waits_for_the_map(monitors: Monitors) -> None:
    waits(UNSET)
    assert monitors.newest_maps == 0
    waits({FSID: 10})
    assert monitors.newest_maps == 1
    with pytest.raises(OSError, match="11 is needed"):
        waits({FSID: 11})


@pytest.mark.parametrize("domain", [DOMAIN, replace(DOMAIN, ceph=UNSET, path="/srv")])
def test_a_start_on_other_storage_than_the_proof_is_about_is_refused(
    monitors: Monitors, domain: StorageDomain
) -> None:
    with pytest.raises(Refused, match="is elsewhere"):
        waits({"another": 1}, domain)


@pytest.mark.bad_input
def test_an_order_about_a_directory_is_refused(monitors: Monitors) -> None:
    host = helper()
    host.storage_domain = lambda _one: replace(DOMAIN, ceph=UNSET, path="/srv")  # type: ignore[method-assign]  # a host with such a domain
    with pytest.raises(InvalidInput, match="no pool of a Ceph cluster") as refused:
        asyncio.run(CephOrders(host).shut_out(SHUT_OUT))
    assert refused.value.field == "domain_id"
