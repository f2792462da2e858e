"""What the ``ceph-rbd`` drivers keep beyond the suite of their ports, on a real Ceph of one node."""

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from ceph_guest import BOUND_S, PATIENCE_MS, Guest, new_image, of_user, until
from heartbeat_places import DS1, OURS, CephPlace
from msgspec.structs import replace
from own_ceph import OwnCeph

from virtha.drivers.ceph_client import CephClient
from virtha.drivers.ceph_library import Rados, _Asked, _Read, unsettled
from virtha.drivers.ceph_slots import CephSlots
from virtha.drivers.rbd_disks import WATCH_MS, RbdDisks
from virtha.model.errors import InvalidInput
from virtha.model.host import CephPool
from virtha.model.ids import BootId, HostId
from virtha.model.slot import BlockFault, Slot, Unreadable

pytestmark = [pytest.mark.req("F3"), pytest.mark.lab, pytest.mark.long]

H1, H2 = HostId("h1"), HostId("h2")
SLOT = Slot(installation_id=OURS, domain_id=DS1, index=0, host_id=H1, boot=BootId("b"), counter=1)


@pytest.fixture
def place(own_ceph: OwnCeph) -> Iterator[CephPlace]:
    made = CephPlace(own_ceph, namespace=uuid4().hex)
    yield made
    made.close()


@pytest.fixture
def image(place: CephPlace) -> str:
    return new_image(place)


# Heartbeats


class Asking(threading.Thread):
    """One call in a thread of its own, as a guardian's worker has it."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self.error: OSError | None = None
        self.start()

    def run(self) -> None:
        try:
            self._call()
        except OSError as error:
            self.error = error


def test_what_hangs_lands_when_the_storage_goes_on(place: CephPlace) -> None:
    one = place.driver()
    one.prepare(0, H1)
    one.write_slot(SLOT)
    place.ceph.hang()
    asking = Asking(lambda: one.write_slot(replace(SLOT, counter=2)))
    asking.join(
        0.5
    )  # long enough for an answer, had there been one: only time shows that there is none
    assert asking.is_alive()
    place.ceph.go_on()
    asking.join(BOUND_S)
    assert asking.error is None
    assert place.driver().read_slot(0) == replace(SLOT, counter=2)


def test_what_was_given_up_lands_on_nothing_newer(
    place: CephPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guardian that dies while its write hangs, and the next one of that boot."""
    first = place.driver()
    first.prepare(0, H1)
    first.write_slot(SLOT)
    place.ceph.hang()
    monkeypatch.setattr("virtha.drivers.ceph_slots.PATIENCE_MS", 500)
    with pytest.raises(OSError, match="does not answer") as failed:
        first.write_slot(replace(SLOT, counter=2))
    assert failed.value.errno == errno.ETIMEDOUT
    monkeypatch.undo()
    place.ceph.go_on()
    second = place.driver()
    second.write_slot(replace(SLOT, counter=3))
    late = first  # it looks at what stands there first: nothing old is written over it
    late.write_slot(replace(SLOT, counter=4))
    second.write_slot(replace(SLOT, counter=5))
    assert place.driver().read_slot(0) == replace(SLOT, counter=5)


def test_a_write_that_expects_something_older_changes_nothing(place: CephPlace) -> None:
    """What a late write is, seen from the OSD."""
    one = place.driver()
    one.prepare(0, H1)
    one.write_slot(SLOT)
    before = place.blocks_of(0)
    one.write_slot(replace(SLOT, counter=2))
    client = place.opened(CephClient(place.pool))
    with pytest.raises(OSError) as refused:
        client.ask(
            "write",
            name="virtha.heartbeat.0",
            offset=0,
            data=b"late",
            expected=[(0, before[:512])],
            exclusive=False,
            whole=False,
            patience_ms=PATIENCE_MS,
        )
    assert refused.value.errno == errno.EILSEQ
    assert one.read_slot(0) == replace(SLOT, counter=2)


def test_a_place_that_becomes_anothers_is_not_written(place: CephPlace) -> None:
    """Between two renewals, of which the second looks at nothing first: the OSD does (G7)."""
    one = place.driver()
    one.prepare(0, H1)
    one.write_slot(SLOT)
    client = place.opened(CephClient(place.pool))
    client.ask("remove", name="virtha.heartbeat.0", patience_ms=PATIENCE_MS)
    with pytest.raises(OSError):
        one.write_slot(replace(SLOT, counter=2))
    place.driver(domain_id="ds2").prepare(0, H1)
    before = place.blocks_of(0)
    for _ in range(2):
        with pytest.raises(OSError, match="the mailbox is misplaced"):
            one.write_slot(replace(SLOT, counter=2))
    assert place.blocks_of(0) == before


def test_a_full_cluster_takes_renewals(place: CephPlace) -> None:
    one = place.driver()
    one.prepare(0, H1)
    one.write_slot(SLOT)
    place.ceph.fill()
    client = place.opened(CephClient(place.pool))
    new = {"expected": [], "exclusive": True, "whole": True, "patience_ms": PATIENCE_MS}
    try:
        with pytest.raises(OSError, match="No space left"):
            client.ask("write", name="more", offset=0, data=bytes(4_096), **new)
        for counter in range(2, 10):
            one.write_slot(replace(SLOT, counter=counter))
    finally:
        place.ceph.empty()
    assert place.driver().read_slot(0) == replace(SLOT, counter=9)


def test_renewals_need_no_monitor(place: CephPlace) -> None:
    one = place.driver()
    one.prepare(0, H1)
    one.write_slot(SLOT)
    place.ceph.monitor_hangs()
    try:
        for counter in range(2, 10):
            one.write_slot(replace(SLOT, counter=counter))
            assert one.read_slots({H1: 0})[H1] == replace(SLOT, counter=counter)
    finally:
        place.ceph.monitor_goes_on()


def test_a_slot_that_does_not_answer_says_nothing(
    place: CephPlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = place.driver()
    one.prepare(0, H1)
    monkeypatch.setattr("virtha.drivers.ceph_slots.OTHERS_MS", 200)
    place.ceph.hang()
    try:
        found = one.read_slots({H1: 0, H2: 1})
        mailboxes = one.read_mailboxes({H1: 0, H2: 1})
    finally:
        place.ceph.go_on()
    unread = Unreadable(fault=BlockFault.UNREAD, detail="ETIMEDOUT")
    assert found == mailboxes == dict.fromkeys((H1, H2), unread)


def test_what_the_library_gives_up_is_unknown(place: CephPlace) -> None:
    """By its own time, before that of whoever asks: neither done nor absent, and the next question is answered."""
    one = place.opened(CephClient(place.pool, op_s=1))
    new = {"offset": 0, "expected": [], "exclusive": True, "whole": True}
    assert one.ask("read", wanted=[("a", 0, 4)], wait_ms=50_000, patience_ms=PATIENCE_MS) == [
        errno.ENOENT
    ]
    process = one._process
    place.ceph.hang()
    try:
        words = {"wanted": [("a", 0, 4)], "wait_ms": 50_000, "patience_ms": PATIENCE_MS}
        assert one.ask("read", **words) == [errno.ETIMEDOUT]
        for what, more in (
            ("write", {"name": "a", "data": b"late", **new}),
            ("images", {}),
            ("look", {"name": "i", "head_bytes": 16, "objects_max": 1, "wait_ms": 5_000}),
        ):
            with pytest.raises(OSError) as failed:
                one.ask(what, patience_ms=PATIENCE_MS, **more)
            assert failed.value.errno == errno.ETIMEDOUT, what
    finally:
        place.ceph.go_on()
    assert one._process is process
    until(lambda: one.ask("images", patience_ms=PATIENCE_MS) == [])


def test_what_is_read_lands_in_memory_that_is_kept_for_it(place: CephPlace) -> None:
    """In this process, so that it can be looked into: an answer that nobody waits for any more, whatever became of its asker."""
    place.client().ask(
        "write",
        name="a",
        offset=0,
        data=b"answer",
        expected=[],
        exclusive=True,
        whole=True,
        patience_ms=PATIENCE_MS,
    )
    options = {"mon_host": place.ceph.monitor, "keyring": place.pool.keyring, "log_file": ""}
    rados = Rados(options, user="virtha", pool="vms", namespace=place.pool.namespace)
    assert rados.read_all([("a", 0, 6)], wait_ms=50_000) == [b"answer"]
    before = unsettled()
    place.ceph.hang()
    try:
        assert rados.read_all([("a", 0, 6)], wait_ms=1) == [errno.ETIMEDOUT]
        broken: Any = [("a", 0, 6), (None, 0, 6)]
        with pytest.raises(AttributeError):
            rados.read_all(broken, wait_ms=1)
        gc.collect()
        left = list(_Asked._kept.values())[-2:]
        assert unsettled() == before + 2
    finally:
        place.ceph.go_on()
    until(lambda: all(one.done for one in left))
    assert [bytes(one._buffer.raw) for one in left if isinstance(one, _Read)] == [b"answer"] * 2
    assert unsettled() == before


@pytest.mark.req("G7")
def test_a_pool_that_was_made_anew_is_another_one(place: CephPlace) -> None:
    """Under the same name, in the same cluster. Seen by a connection that was there, and by each one after."""
    ceph, name = place.ceph, f"p{uuid4().hex}"
    ceph.ceph("config", "set", "mon", "mon_allow_pool_delete", "true")
    ceph.ceph("osd", "pool", "create", name, "1", "1")
    pool = replace(place.pool, pool=name, user="admin", keyring=str(ceph.keyring("admin")))
    pool = replace(pool, namespace="")
    slots, client = _slots(place, pool), place.opened(CephClient(pool))
    slots.prepare(0, H1)
    slots.write_slot(SLOT)
    wanted = {"wanted": [("missing", 0, 4)], "wait_ms": 50_000, "patience_ms": PATIENCE_MS}
    assert client.ask("read", **wanted) == [errno.ENOENT]
    ceph.ceph("osd", "pool", "delete", name, name, "--yes-i-really-really-mean-it")
    with pytest.raises(OSError, match="was deleted, or made anew"):
        client.ask("read", **wanted)
    ceph.ceph("osd", "pool", "create", name, "1", "1")
    for _ in range(2):
        with pytest.raises(OSError, match="another pool") as refused:
            client.ask("read", **wanted)
        assert refused.value.errno == errno.EIDRM
    with pytest.raises(OSError):
        slots.write_slot(replace(SLOT, counter=2))
    with pytest.raises(InvalidInput, match="another pool") as prepared:
        slots.prepare(0, H1)
    assert prepared.value.field == "ceph.pool"
    assert "add it anew" in prepared.value.fix
    fresh = place.opened(CephClient(pool))
    assert fresh.ask(
        "read", wanted=[("virtha.heartbeat.0", 0, 4)], wait_ms=50_000, patience_ms=PATIENCE_MS
    ) == [errno.ENOENT]
    ceph.ceph("osd", "pool", "delete", name, name, "--yes-i-really-really-mean-it")


def test_its_process_ends_with_whoever_asks(place: CephPlace) -> None:
    """Also where the storage hangs: nothing is left that could write."""
    script = (
        "import sys; from test_ceph_contract import hanging_client; hanging_client(sys.argv[1:])"
    )
    pool = place.pool
    words = [pool.monitors[0], pool.namespace, pool.keyring]
    asks = subprocess.Popen(
        [sys.executable, "-c", script, *words],
        cwd=Path(__file__).parent,
        stdout=subprocess.PIPE,
    )
    assert asks.stdout is not None
    child = int(asks.stdout.readline())
    handle = os.pidfd_open(child)
    place.ceph.hang()
    try:
        asks.kill()
        asks.wait(BOUND_S)
        asks.stdout.close()
        until(lambda: _ended(handle))
    finally:
        place.ceph.go_on()
        os.close(handle)


def hanging_client(words: list[str]) -> None:
    pool = CephPool(
        monitors=(words[0],), pool="vms", namespace=words[1], user="virtha", keyring=words[2]
    )
    client = CephClient(pool)
    client.ask("identity", patience_ms=PATIENCE_MS)
    assert client._process is not None
    print(client._process.pid, flush=True)
    while True:
        client.ask(
            "read", wanted=[("any", 0, 1)], wait_ms=10 * PATIENCE_MS, patience_ms=10 * PATIENCE_MS
        )


def _ended(handle: int) -> bool:
    try:
        signal.pidfd_send_signal(handle, 0)
    except ProcessLookupError:
        return True
    return False


# Bad input


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("other", "field", "words"),
    [
        ({"monitors": ("127.0.0.1:1",)}, "ceph.monitors", "no Ceph monitor answers"),
        ({"monitors": ("nobody.invalid",)}, "ceph.monitors", "no Ceph monitor answers"),
        ({"pool": "nowhere"}, "ceph.pool", "there is no pool 'nowhere'"),
        ({"user": "nobody"}, "ceph.keyring", "has no key of client.nobody"),
        ({"keyring": "/nowhere"}, "ceph.keyring", "can't be read: No such file"),
        ({"user": None}, "ceph.user", "refuse a client without a key"),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_a_wrong_setting_is_named(
    place: CephPlace, other: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        _slots(place, replace(place.pool, **other)).prepare(0, H1)
    assert refused.value.field == field
    assert refused.value.fix


@pytest.mark.bad_input
def test_a_wrong_key_is_named(place: CephPlace, tmp_path: Path) -> None:
    text = place.ceph.keyring("narrow").read_text().replace("client.narrow", "client.virtha")
    (tmp_path / "keyring").write_text(text)
    with pytest.raises(InvalidInput, match=r"refuse client.virtha") as refused:
        _slots(place, replace(place.pool, keyring=str(tmp_path / "keyring"))).prepare(0, H1)
    assert refused.value.field == "ceph.keyring"


@pytest.mark.bad_input
def test_a_user_who_may_not_write_is_named(place: CephPlace) -> None:
    with pytest.raises(InvalidInput, match=r"client.blind may not write") as refused:
        _slots(place, of_user(place, "blind")).prepare(0, H1)
    assert refused.value.field == "ceph.user"
    assert "ceph auth caps client.blind" in refused.value.fix


def _slots(place: CephPlace, pool: CephPool) -> CephSlots:
    return place.opened(CephSlots(pool, installation_id=OURS, domain_id=DS1))


# Disks


@pytest.mark.req("F2")
def test_a_write_to_an_image_is_a_sign_and_none_is_none(place: CephPlace, image: str) -> None:
    disks = place.opened(RbdDisks(place.pool))
    first = disks.read_signs([image, "missing"])
    assert first["missing"] is None
    assert first[image] is not None
    assert disks.read_signs([image])[image] == first[image]
    guest = Guest(place, image)
    guest.write(7)
    assert "wrote" in guest.answer()
    second = disks.read_signs([image])[image]
    assert second != first[image]
    # The same bytes again: no content differs, and no time stamp.
    guest.write(7)
    assert "wrote" in guest.answer()
    third = disks.read_signs([image])[image]
    assert third != second
    assert disks.read_signs([image])[image] == third
    guest.close()


@pytest.mark.req("F2")
def test_an_idle_guest_is_seen_to_live_and_a_dead_one_is_not(place: CephPlace, image: str) -> None:
    now_s = [0.0]
    disks = place.opened(RbdDisks(place.pool, now_s=lambda: now_s[0]))
    guest = Guest(place, image)
    guest.write(7)
    assert "wrote" in guest.answer()
    first = disks.read_signs([image])[image]
    (watcher,) = disks.watchers(image)
    assert watcher.address.startswith("127.0.0.1:")
    now_s[0] = WATCH_MS / 1_000 - 1
    assert disks.read_signs([image])[image] == first
    now_s[0] += 1
    alive = disks.read_signs([image])[image]
    assert alive != first
    guest.close()
    until(lambda: disks.watchers(image) == ())
    now_s[0] += WATCH_MS / 1_000
    assert disks.read_signs([image])[image] == alive


def test_disks_of_a_pool_that_hangs_say_nothing(
    place: CephPlace, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    disks = place.opened(RbdDisks(place.pool))
    assert disks.read_signs([image])[image] is not None
    monkeypatch.setattr("virtha.drivers.rbd_disks.PATIENCE_MS", 500)
    place.ceph.hang()
    try:
        assert disks.read_signs([image])[image] is None
    finally:
        place.ceph.go_on()
    monkeypatch.undo()
    assert disks.read_signs([image])[image] is not None


def test_an_image_has_the_lock_that_shuts_out_who_had_it_before(
    place: CephPlace, image: str
) -> None:
    client = place.opened(CephClient(place.pool))
    words = {"head_bytes": 16, "objects_max": 1, "wait_ms": 5_000, "patience_ms": PATIENCE_MS}
    assert client.ask("look", name=image, **words)["exclusive"]
    client.ask("resize_image", name=image, size_bytes=2 << 30, patience_ms=PATIENCE_MS)
    assert client.ask("look", name=image, **words)["size_bytes"] == 2 << 30
    with pytest.raises(FileExistsError):
        client.ask("create_image", name=image, size_bytes=1 << 30, patience_ms=PATIENCE_MS)
    assert client.ask("images", patience_ms=PATIENCE_MS) == [image]
    client.ask("remove_image", name=image, patience_ms=PATIENCE_MS)
    with pytest.raises(FileNotFoundError):
        client.ask("look", name=image, **words)
