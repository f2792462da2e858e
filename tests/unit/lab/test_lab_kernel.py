"""The tiny guest's kernel is unpacked beforehand: which bytes come to lie where, and what is left as it is. That it boots, all tests
with a real guest show."""

import lzma
import struct

import pytest

from virtha.lab import kernel
from virtha.model.errors import Failed

SETUP_SECTORS = 3
REST = (SETUP_SECTORS + 1) * 512
AT = 0x100_0000
TEXT, DATA = bytes(range(256)) * 40, b"\x5a" * 100
DATA_AT = AT + 0x4000
END = DATA_AT + 0x3000


def elf(*, machine_class: int = 2) -> bytes:
    """Two parts to load, the second with zeros behind it, and a note."""
    head = b"\x7fELF" + bytes([machine_class, 1, 1]) + bytes(9)
    head += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, AT + 0x40, 64, 0, 0, 64, 56, 3, 0, 0, 0)
    text_at = 64 + 3 * 56
    rows = (
        (1, text_at, AT, len(TEXT), len(TEXT)),
        (4, 0, 0, 16, 16),
        (1, text_at + len(TEXT), DATA_AT, len(DATA), END - DATA_AT),
    )
    for kind, offset, at, file_bytes, memory_bytes in rows:
        head += struct.pack(
            "<IIQQQQQQ", kind, 5, offset, 0xFFFF_FFFF_0000_0000, at, file_bytes, memory_bytes, 4096
        )
    return head + TEXT + DATA


def image(payload: bytes, *, version: int = 0x20F) -> bytes:
    """As a bzImage lies on disk; real-mode code that can be told from nothing."""
    head = bytearray(b"\xee" * REST)
    unpacking = b"unpacks" * 10
    head[kernel.SETUP_SECTORS] = SETUP_SECTORS
    head[kernel.MAGIC : kernel.MAGIC + 4] = b"HdrS"
    struct.pack_into("<H", head, kernel.VERSION, version)
    struct.pack_into("<B", head, kernel.RELOCATABLE, 1)
    struct.pack_into("<II", head, kernel.PAYLOAD_OFFSET, len(unpacking), len(payload))
    return bytes(head) + unpacking + payload


def packed(content: bytes) -> bytes:
    """As the kernel's build does: with the size behind it."""
    return lzma.compress(content, check=lzma.CHECK_CRC32) + struct.pack("<I", len(content))


def test_the_kernel_lies_behind_the_real_mode_code_as_it_will_in_memory() -> None:
    before = image(packed(elf()))
    made = kernel.unpacked(before)
    changed = {at for at in range(REST) if made[at] != before[at]}
    fields = {
        kernel.SYSTEM_SIZE: 4,
        kernel.ENTRY_32: 4,
        kernel.RELOCATABLE: 1,
        kernel.MEMORY_NEEDED: 4,
    }
    assert changed <= {at + byte for at, size in fields.items() for byte in range(size)}
    (units,) = struct.unpack_from("<I", made, kernel.SYSTEM_SIZE)
    assert len(made) - REST <= units * 16 < len(made) - REST + 16
    assert struct.unpack_from("<I", made, kernel.ENTRY_32) == (kernel.LOADED_AT,)
    assert made[kernel.RELOCATABLE] == 0
    assert struct.unpack_from("<I", made, kernel.MEMORY_NEEDED) == (END - kernel.LOADED_AT,)
    content = made[REST + 0x8000 :]
    assert content[: len(TEXT)] == TEXT
    assert content[DATA_AT - AT : DATA_AT - AT + len(DATA)] == DATA
    assert content.count(0) == len(content) - len(DATA) - (len(TEXT) - TEXT.count(0))
    assert len(content) % 4096 == 0 and len(content) < END - AT, "zeros at its end are left out"


def test_the_code_before_it_moves_all_of_it_and_zeroes_what_is_behind() -> None:
    made = kernel.unpacked(image(packed(elf())))
    size = len(made) - REST - 0x8000
    code = made[REST : REST + 0x1000].rstrip(b"\0")
    source_at = kernel.LOADED_AT + 0x8000
    moved = struct.pack("<BIBIBI", 0xBE, source_at + size - 4, 0xBF, AT + size - 4, 0xB9, size // 4)
    assert moved in code
    assert struct.pack("<BIBI", 0xBF, AT + size, 0xB9, (END - AT - size) // 4) in code
    # It jumps into 64-bit code within itself, and that to where the ELF file begins.
    (target,) = struct.unpack_from("<I", code, code.index(b"\xea") + 1)
    long_code = code[target - kernel.LOADED_AT :]
    assert long_code.startswith(b"\xb8\x18\0\0\0\x8e\xd8")
    assert b"\xb8" + struct.pack("<I", AT + 0x40) + b"\xff\xe0" in long_code


@pytest.mark.parametrize(
    "kept",
    [
        image(b"\x28\xb5\x2f\xfd zstd"),
        image(b"\x1f\x8b gzip"),
        image(packed(elf()), version=0x20A),
    ],
)
def test_what_is_packed_otherwise_unpacks_itself(kept: bytes) -> None:
    assert kernel.unpacked(kept) == kept


def test_it_is_unpacked_once() -> None:
    made = kernel.unpacked(image(packed(elf())))
    assert kernel.unpacked(made) == made


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (b"", "no bzImage"),
        (bytes(4_096), "no bzImage"),
        (image(packed(elf())[:100]), "can't be unpacked|no 64-bit ELF"),
        (image(b"\xfd7zXZ\0 not at all"), "can't be unpacked"),
        (image(packed(b"no ELF file")), "no 64-bit ELF"),
        (image(packed(elf(machine_class=1))), "no 64-bit ELF"),
        (image(packed(elf()[:70])), "can't be unpacked"),
    ],
)
def test_a_damaged_kernel_is_told(bad: bytes, words: str) -> None:
    with pytest.raises(Failed, match=words):
        kernel.unpacked(bad)
