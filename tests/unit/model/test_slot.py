"""Slots and mailboxes as bytes: frozen for version 1, and what damaged or foreign blocks are read as."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_promise import whole_promise

from virtha.model.errors import InvalidInput
from virtha.model.ids import BootId, HostId, InstallationId, StorageDomainId, Term
from virtha.model.policy import LeasePolicy
from virtha.model.slot import (
    BLOCK_BYTES,
    SECTOR_BYTES,
    BlockFault,
    Declaration,
    Mailbox,
    Place,
    Poison,
    Slot,
    Unreadable,
    decode_mailbox,
    decode_slot,
    encode_mailbox,
    encode_slot,
    owner_bytes,
)

FROZEN = Path(__file__).parents[2] / "slots" / "v1"
INSTALLATION = InstallationId("0b8a2d1e-6f0c-4a55-9a53-0f6f3c1d7a10")
DOMAIN = StorageDomainId("5f7b1c9a-2a44-4a39-8f3e-93c6d0a4be11")
HOST = HostId("c2a9b7de-1d2e-4f51-8a7b-6e5d4c3b2a12")
BOOT = BootId("9e107d9d-3720-4b2a-b6bd-8d4e1c2f3a13")
PLACE = Place(installation_id=INSTALLATION, domain_id=DOMAIN, index=7)
SLOT = Slot(
    installation_id=INSTALLATION,
    domain_id=DOMAIN,
    index=7,
    host_id=HOST,
    boot=BOOT,
    counter=123_456,
    submitted_ms=9_000_000,
    good_ms=8_999_000,
    acknowledged_poison=3,
    declaration=whole_promise(LeasePolicy()),
)
MAILBOX = Mailbox(
    installation_id=INSTALLATION,
    domain_id=DOMAIN,
    index=7,
    host_id=HOST,
    counter=3,
    poison=Poison(boot=BOOT, server="s1", term=Term(42), incident="h7-19"),
)
SLOTS = {
    "slot_held": SLOT,
    "slot_waived": msgspec.structs.replace(
        SLOT, good_ms=None, acknowledged_poison=0, declaration=Declaration(waived=True)
    ),
}
MAILBOXES = {
    "mailbox_poisoned": MAILBOX,
    "mailbox_clear": msgspec.structs.replace(MAILBOX, counter=0, poison=None),
}


def frozen(name: str, made: bytes, content: Slot | Mailbox, *, rewrite: bool) -> bytes:
    """Written once per version of the format. All that is not zero lies in the first sector."""
    block, told = FROZEN / f"{name}.bin", FROZEN / f"{name}.json"
    text = json.dumps(msgspec.to_builtins(content), indent=1) + "\n"
    if rewrite:
        FROZEN.mkdir(parents=True, exist_ok=True)
        block.write_bytes(made[:SECTOR_BYTES])
        told.write_text(text)
    assert told.read_text() == text
    return block.read_bytes()


@pytest.mark.parametrize("name", SLOTS)
def test_slots_are_frozen(name: str, rewrite: bool) -> None:
    made = encode_slot(SLOTS[name])
    sector = frozen(name, made, SLOTS[name], rewrite=rewrite)
    assert made == sector.ljust(BLOCK_BYTES, b"\0")
    assert decode_slot(sector, PLACE) == SLOTS[name]


@pytest.mark.parametrize("name", MAILBOXES)
def test_mailboxes_are_frozen(name: str, rewrite: bool) -> None:
    made = encode_mailbox(MAILBOXES[name])
    sector = frozen(name, made, MAILBOXES[name], rewrite=rewrite)
    assert made == sector.ljust(BLOCK_BYTES, b"\0")
    assert decode_mailbox(sector, PLACE) == MAILBOXES[name]


def future(block: bytes) -> bytes:
    """A later version, whole: the checksum is the one thing that all versions share."""
    from zlib import crc32

    said = block[:8] + (2).to_bytes(2, "little") + block[10 : SECTOR_BYTES - 4]
    return said + crc32(said).to_bytes(4, "little")


WHOLE = encode_slot(SLOT)
NEWER = encode_slot(msgspec.structs.replace(SLOT, counter=123_457, submitted_ms=9_001_000))


@pytest.mark.parametrize(
    ("block", "place", "fault"),
    [
        (bytes(BLOCK_BYTES), PLACE, BlockFault.EMPTY),
        (NEWER[:200] + WHOLE[200:], PLACE, BlockFault.TORN),
        (WHOLE[:300] + bytes(BLOCK_BYTES - 300), PLACE, BlockFault.TORN),
        (encode_mailbox(MAILBOX), PLACE, BlockFault.ALIEN),
        (b"\xff" * BLOCK_BYTES, PLACE, BlockFault.ALIEN),
        (
            WHOLE,
            msgspec.structs.replace(PLACE, installation_id=InstallationId("other")),
            BlockFault.FOREIGN,
        ),
        (WHOLE, msgspec.structs.replace(PLACE, index=8), BlockFault.MISPLACED),
        (
            WHOLE,
            msgspec.structs.replace(PLACE, domain_id=StorageDomainId("ds2")),
            BlockFault.MISPLACED,
        ),
        (future(WHOLE), PLACE, BlockFault.FUTURE),
        (future(WHOLE)[:400] + bytes(112), PLACE, BlockFault.TORN),
        (b"", PLACE, BlockFault.SHORT),
        (WHOLE[: SECTOR_BYTES - 1], PLACE, BlockFault.SHORT),
    ],
)
def test_what_is_not_a_whole_slot_in_its_place_says_why(
    block: bytes, place: Place, fault: BlockFault
) -> None:
    read = decode_slot(block, place)
    assert isinstance(read, Unreadable)
    assert read.fault is fault


def test_a_block_of_zeros_is_no_clean_mailbox() -> None:
    read = decode_mailbox(bytes(BLOCK_BYTES), PLACE)
    assert isinstance(read, Unreadable) and read.fault is BlockFault.EMPTY


@pytest.mark.parametrize(
    ("slot", "field"),
    [
        (msgspec.structs.replace(SLOT, host_id=HostId("h" * 41)), "slot.host_id"),
        (msgspec.structs.replace(SLOT, boot=BootId("ä")), "slot.boot"),
        (msgspec.structs.replace(SLOT, boot=BootId("a\0b")), "slot.boot"),
        (msgspec.structs.replace(SLOT, counter=-1), "slot.counter"),
        (msgspec.structs.replace(SLOT, index=1 << 32), "slot.index"),
        (
            msgspec.structs.replace(SLOT, declaration=Declaration(kill_ms=1 << 32)),
            "slot.declaration.kill_ms",
        ),
    ],
)
def test_what_does_not_fit_a_block_names_its_field(slot: Slot, field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        encode_slot(slot)
    assert caught.value.field == field


def test_a_poison_names_a_boot() -> None:
    poison = Poison(boot=BootId(""), server="s1", term=Term(1), incident="i")
    with pytest.raises(InvalidInput) as caught:
        encode_mailbox(msgspec.structs.replace(MAILBOX, poison=poison))
    assert caught.value.field == "mailbox.poison.boot"


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(
    declaration=st.builds(
        Declaration,
        armed=st.booleans(),
        no_way_out=st.booleans(),
        fed_by_renewer=st.booleans(),
        direct_io=st.booleans(),
        waived=st.booleans(),
        watchdog_ms=st.integers(0, 1 << 31),
        self_fence_after_ms=st.integers(0, 1 << 31),
        kill_ms=st.integers(0, 1 << 31),
    ),
    counter=st.integers(0, (1 << 63) - 1),
    good_ms=st.none() | st.integers(0, 1 << 60),
    cut=st.integers(1, SECTOR_BYTES - 1),
)
def test_any_slot_is_read_as_written_and_never_from_a_torn_block(
    declaration: Declaration, counter: int, good_ms: int | None, cut: int
) -> None:
    slot = msgspec.structs.replace(SLOT, declaration=declaration, counter=counter, good_ms=good_ms)
    block = encode_slot(slot)
    assert decode_slot(block, PLACE) == slot
    torn = block[:cut] + WHOLE[cut:]
    assert decode_slot(torn, PLACE) in (
        slot,
        SLOT,
        Unreadable(fault=BlockFault.TORN),
    )


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(st.binary(max_size=SECTOR_BYTES + 8))
def test_any_bytes_are_read_without_an_error(block: bytes) -> None:
    assert isinstance(decode_slot(block, PLACE), Unreadable)
    assert isinstance(decode_mailbox(block, PLACE), Unreadable)


@pytest.mark.req("F3")
def test_every_mailbox_of_a_host_begins_with_its_owner() -> None:
    """And no other host's, place's, domain's or installation's does: storage that compares asks just that (G7)."""
    owner = owner_bytes(PLACE, HOST)
    clean = Mailbox(
        installation_id=INSTALLATION, domain_id=DOMAIN, index=7, host_id=HOST, counter=0
    )
    poison = Poison(boot=BOOT, server="s1", term=Term(3), incident="7")
    for mailbox in (clean, msgspec.structs.replace(clean, counter=9, poison=poison)):
        assert encode_mailbox(mailbox).startswith(owner)
    for other in (
        {"installation_id": InstallationId("x")},
        {"domain_id": StorageDomainId("x")},
        {"index": 8},
        {"host_id": HostId(HOST + "0")},
        {"host_id": HostId(HOST[:-1])},
    ):
        assert not encode_mailbox(msgspec.structs.replace(clean, **other)).startswith(owner)
    assert not encode_slot(SLOT).startswith(owner)
