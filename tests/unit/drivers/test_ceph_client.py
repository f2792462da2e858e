"""What of Ceph's drivers needs no cluster: how addresses and keys are read, and how wrong settings are told."""

from pathlib import Path

import pytest

from virtha.agent.ceph_records import key_of
from virtha.drivers.ceph_blocklist import CephBlocklist, _entry, _ip_of, _utc_s
from virtha.drivers.ceph_client import CephClient, CephUnusable
from virtha.drivers.ceph_process import _is_monitor
from virtha.drivers.ceph_slots import unusable
from virtha.model.errors import Failed
from virtha.model.host import CephPool

pytestmark = pytest.mark.req("F3")

POOL = CephPool(monitors=("10.0.0.11",), pool="vms", user="virtha")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.5:0/123", "10.0.0.5"),
        ("v2:10.0.0.5:6800/13130", "10.0.0.5"),
        ("v1:[fd00::5]:0/0", "fd00::5"),
        ("[fd00:0::5]:0/7", "fd00::5"),
        ("10.0.0.5", "10.0.0.5"),
    ],
)
def test_an_address_as_ceph_writes_it(text: str, address: str) -> None:
    assert _ip_of(text) == address
    assert _ip_of(_entry(address)) == address


def test_the_end_of_an_entry_is_utc() -> None:
    assert _utc_s("2036-11-19T12:26:26.500000+0000") == 2110710386.5
    assert _utc_s("2036-11-19T13:26:26.500000+0100") == 2110710386.5


@pytest.mark.bad_input
def test_a_key_ring_is_looked_at_before_anybody_is_asked(tmp_path: Path) -> None:
    keyring = tmp_path / "keyring"
    pool = CephPool(monitors=("192.0.2.1",), pool="vms", user="virtha", keyring=str(keyring))
    keyring.write_text("[client.other]\n  key = QQ==\n")
    with pytest.raises(CephUnusable) as refused:
        CephClient(pool).ask("identity", patience_ms=60_000)
    told = unusable(refused.value, pool)
    assert told.field == "ceph.keyring"
    assert f"{keyring} has no key of client.virtha" in told.message
    assert f"ceph auth get client.virtha -o {keyring}" in told.fix
    with pytest.raises(Failed, match=r"has no key of client\.virtha"):
        key_of(pool)
    keyring.write_text(
        '[client.other]\n key = AAAA\n[client.virtha]\n\tkey = QUJD\n caps mon = "x"\n'
    )
    assert key_of(pool) == b"ABC"
    keyring.write_text("[client.virtha]\n key = no*base64\n")
    with pytest.raises(Failed, match="can't be read"):
        key_of(pool)


def test_no_user_needs_no_key() -> None:
    assert key_of(CephPool(monitors=("10.0.0.11",), pool="vms")) is None
    assert POOL.keyring_path == "/etc/ceph/ceph.client.virtha.keyring"
    assert POOL.gate_path == "/rbd:vms:"


def test_hosts_that_can_not_be_blocked_need_a_seen_address() -> None:
    fence = CephBlocklist(POOL)
    assert "behind NAT" in fence.obstacle(["10.0.0.5"], own=["10.0.0.6"])
    fence.close()


def test_nobody_is_taken_for_a_monitor() -> None:
    assert not _is_monitor("127.0.0.1:1")
    assert not _is_monitor("[::1]:1")
