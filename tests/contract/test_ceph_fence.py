"""The storage fence on a real Ceph of one node: who is shut out, who may be, and how it ends (safety.md, P3)."""

import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
from ceph_guest import OLD_HOST, Guest, new_image, of_user
from heartbeat_places import CephPlace
from msgspec.structs import replace
from own_ceph import OwnCeph

from virtha.agent import ceph_records
from virtha.drivers.ceph_blocklist import EXPIRY_S, CephBlocklist
from virtha.drivers.rbd_disks import RbdDisks
from virtha.model.errors import Failed, InvalidInput, Refused
from virtha.model.ids import BootId

pytestmark = [pytest.mark.req("F3"), pytest.mark.lab, pytest.mark.long]


@pytest.fixture
def place(own_ceph: OwnCeph) -> Iterator[CephPlace]:
    made = CephPlace(own_ceph, namespace=uuid4().hex)
    yield made
    made.close()


@pytest.fixture
def image(place: CephPlace) -> str:
    return new_image(place)


@pytest.mark.bad_input
@pytest.mark.parametrize(("user", "what"), [("narrow", "add"), ("virtha", "rm")])
def test_a_user_who_may_not_block_is_named(place: CephPlace, user: str, what: str) -> None:
    """``profile rbd`` lets a client add entries, and remove none."""
    with pytest.raises(InvalidInput, match=f"blocklist \\({what}\\)") as refused:
        place.opened(CephBlocklist(of_user(place, user))).check_permission()
    assert refused.value.field == "ceph.user"
    assert 'allow command "osd blocklist"' in refused.value.fix


def test_a_blocked_host_writes_nothing_more_and_the_next_one_need_not_wait(
    place: CephPlace, image: str
) -> None:
    """P3: a host that froze with its guest; what the guest does when it thaws lands nowhere."""
    old = Guest(place, image, OLD_HOST)
    old.write(1)
    assert "wrote" in old.answer()
    (watcher,) = place.opened(RbdDisks(place.pool)).watchers(image)
    assert watcher.address.startswith(f"{OLD_HOST}:")
    old.freeze()
    fence = place.opened(CephBlocklist(of_user(place, "admin")))
    blocked = fence.block([OLD_HOST])
    assert blocked.addresses == (OLD_HOST,)
    assert blocked.until_s > time.time() + EXPIRY_S - 86_400
    place.opened(CephBlocklist(place.pool)).wait_for(blocked.epoch)
    new = Guest(place, image)
    new.write(2)
    assert "wrote" in new.answer()
    old.write(3)
    old.thaw()
    assert "wrote" not in old.answer()
    assert new.holds(2)
    old.close()
    new.leave()
    with pytest.raises(Refused, match="has not booted"):
        fence.lift(blocked, boot=BootId("b1"), runs=BootId("b1"))
    with pytest.raises(Refused, match="not known which boot"):
        fence.lift(blocked, boot=BootId("b1"), runs=BootId(""))
    assert fence.check([OLD_HOST]).until_s == blocked.until_s
    for _ in range(2):
        assert fence.lift(blocked, boot=BootId("b1"), runs=BootId("b2")) == ()
    again = Guest(place, image, OLD_HOST)
    again.write(4)
    assert "wrote" in again.answer()
    again.close()


def test_an_entry_that_ends_too_soon_is_made_anew(place: CephPlace) -> None:
    """Ceph's own default is an hour, and it does not prolong what is there."""
    place.ceph.ceph("osd", "blocklist", "add", "127.0.0.3:0/0", "3600")
    fence = place.opened(CephBlocklist(of_user(place, "admin")))
    with pytest.raises(OSError, match=r"127\.0\.0\.3 is not on the blocklist, or not for long"):
        fence.check(["127.0.0.3"])
    first = fence.block(["127.0.0.3", "fd00::1"])
    assert first.until_s > time.time() + EXPIRY_S - 86_400
    assert fence.block(["127.0.0.3"]) == replace(first, addresses=("127.0.0.3",))
    assert fence.check(["127.0.0.3", "fd00::1"]) == first
    assert fence.lift(first, boot=BootId("b1"), runs=BootId("b2")) == ()
    with pytest.raises(OSError, match=r"fd00::1 is not"):
        fence.check(["127.0.0.3", "fd00::1"])
    with pytest.raises(OSError, match="is needed"):
        fence.wait_for(first.epoch + 1_000)


def test_an_entry_of_somebody_else_is_left_when_a_host_is_back(place: CephPlace) -> None:
    fence = place.opened(CephBlocklist(of_user(place, "admin")))
    blocked = fence.block(["127.0.0.4", "127.0.0.5"])
    place.ceph.ceph("osd", "blocklist", "rm", "127.0.0.4:0/0")
    place.ceph.ceph("osd", "blocklist", "add", "127.0.0.4:0/0", "3600")
    assert fence.lift(blocked, boot=BootId("b1"), runs=BootId("b2")) == ("127.0.0.4",)
    left = place.ceph.ceph("osd", "blocklist", "ls")
    assert "127.0.0.4:0/0" in left
    assert "127.0.0.5:0/0" not in left
    place.ceph.ceph("osd", "blocklist", "rm", "127.0.0.4:0/0")


def test_one_whose_end_was_never_read_back_is_lifted_too(place: CephPlace) -> None:
    """A helper died between its change and its answer: what is ours is told by how far away its end is."""
    fence = place.opened(CephBlocklist(of_user(place, "admin")))
    blocked = fence.block(["127.0.0.6"])
    place.ceph.ceph("osd", "blocklist", "add", "127.0.0.7:0/0", "3600")
    unread = replace(blocked, addresses=("127.0.0.6", "127.0.0.7"), until_s=0)
    assert fence.lift(unread, boot=BootId("b1"), runs=BootId("b2")) == ("127.0.0.7",)
    assert "127.0.0.6:0/0" not in place.ceph.ceph("osd", "blocklist", "ls")
    place.ceph.ceph("osd", "blocklist", "rm", "127.0.0.7:0/0")


def test_a_host_that_is_shut_out_is_told_so(
    place: CephPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    fence = place.opened(CephBlocklist(of_user(place, "admin")))
    blocked = fence.block([OLD_HOST])
    for name, value in place.ceph.from_address(OLD_HOST).items():
        monkeypatch.setenv(name, value)
    try:
        with pytest.raises(Failed, match="this host is shut out of the Ceph cluster") as told:
            ceph_records.read(place.pool, "any")
        assert "ceph osd blocklist ls" in told.value.fix
    finally:
        monkeypatch.undo()
        fence.lift(blocked, boot=BootId("b1"), runs=BootId("b2"))
        ceph_records.close_all()


def test_hosts_that_may_not_be_blocked_are_told(
    place: CephPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in place.ceph.from_address(OLD_HOST).items():
        monkeypatch.setenv(name, value)
    fence = place.opened(CephBlocklist(place.pool))
    assert fence.own_addresses() == (OLD_HOST,)
    assert fence.obstacle([OLD_HOST], own=[OLD_HOST, "10.0.0.5"]) == ""
    assert "behind NAT" in fence.obstacle([OLD_HOST], own=["10.0.0.5"])
    assert "Ceph daemons" in fence.obstacle(["127.0.0.1"], own=["127.0.0.1"])
    assert fence.obstacle([], own=["127.0.0.1"]) != ""
    for wrong in ("", "h1", "127.0.0.1:0/0", "10.0.0.0/8"):
        with pytest.raises(InvalidInput, match="is no IP address"):
            fence.block([wrong])
    with pytest.raises(InvalidInput, match="no address"):
        fence.block([])
