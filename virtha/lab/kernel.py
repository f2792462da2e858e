"""Unpacks a Linux kernel here, so that no guest has to: under TCG a guest spends more than half of its boot on that.

A bzImage is the boot loader's part (sectors of real-mode code, with the header of Documentation/arch/x86/boot.rst of the
kernel), the kernel's own unpacking code, and the packed kernel, an ELF file. What is made of it keeps the first part, so
that any boot loader takes it for the kernel that it is, and brings the kernel as it lies in memory, behind a few
instructions that put it there and jump into it, as unpacking code does at its end: in 64-bit mode, the first 4 GiB
mapped to themselves, ESI on what the real-mode code found out.
"""

import lzma
import struct
from typing import NamedTuple

from virtha.model.errors import Failed

# Offsets in the header, from the beginning of the file.
SETUP_SECTORS = 0x1F1
SYSTEM_SIZE = 0x1F4
"""Of all that follows the real-mode code, in units of 16 bytes."""
MAGIC, MAGIC_VALUE = 0x202, b"HdrS"
VERSION = 0x206
VERSION_MIN = 0x20C
"""2.12, Linux 3.8: all fields below are there, and it is a 64-bit kernel that can tell."""
ENTRY_32 = 0x214
RELOCATABLE = 0x234
PAYLOAD_OFFSET, PAYLOAD_BYTES = 0x248, 0x24C
MEMORY_NEEDED = 0x260
"""From where it is loaded; loaders put the initial RAM disk behind it."""
_HEADER_END = MEMORY_NEEDED + 4

_XZ = b"\xfd7zXZ\0"
_ELF64 = b"\x7fELF\x02\x01"
_LOADED = 1
"""PT_LOAD of ELF: what lies in memory."""
_SECTOR = 512
_PAGE = 4096

LOADED_AT = 0x10_0000
"""Where loaders put what follows the real-mode code of one that is not relocatable."""
_KERNEL_AT = LOADED_AT + 0x8000
"""Before it: the code in one page, six page tables from the next one on."""

# {name} stands for four bytes, little-endian.
_CODE = (
    "fa",  # cli
    "89 f5",  # mov ebp, esi       kept: what the real-mode code found out
    # To its place from the last word on: the two places overlap, and it goes upwards.
    "fd",  # std
    "be {last_word}",  # mov esi
    "bf {last_target}",  # mov edi
    "b9 {words}",  # mov ecx
    "f3 a5",  # rep movsd
    "fc",  # cld
    # What the kernel has behind it are zeros.
    "bf {zeros_at}",  # mov edi
    "b9 {zero_words}",  # mov ecx
    "31 c0",  # xor eax, eax
    "f3 ab",  # rep stosd
    # Page tables: 4 GiB in pages of 2 MiB, each mapped to itself.
    "bf 00 10 10 00",  # mov edi, 0x101000
    "b9 00 18 00 00",  # mov ecx, 0x1800     six tables of 1,024 words
    "f3 ab",  # rep stosd
    "c7 05 00 10 10 00 07 20 10 00",  # mov dword [0x101000], 0x102007
    "b8 07 30 10 00",  # mov eax, 0x103007
    "bf 00 20 10 00",  # mov edi, 0x102000
    "b9 04 00 00 00",  # mov ecx, 4
    "89 07 05 00 10 00 00 83 c7 08 e2 f4",  # 1: mov [edi], eax; add eax, 0x1000; add edi, 8; loop 1b
    "b8 83 00 00 00",  # mov eax, 0x83        present, writable, large
    "bf 00 30 10 00",  # mov edi, 0x103000
    "b9 00 08 00 00",  # mov ecx, 2048
    "89 07 05 00 00 20 00 83 c7 08 e2 f4",  # 1: mov [edi], eax; add eax, 0x200000; add edi, 8; loop 1b
    # 64-bit mode.
    "0f 01 15 {table_word_at}",  # lgdt
    "0f 20 e0 83 c8 20 0f 22 e0",  # mov eax, cr4; or eax, 0x20 (PAE); mov cr4, eax
    "b8 00 10 10 00 0f 22 d8",  # mov eax, 0x101000; mov cr3, eax
    "b9 80 00 00 c0 0f 32 0d 00 01 00 00 0f 30",  # mov ecx, 0xc0000080 (EFER); rdmsr; or eax, 0x100 (LME); wrmsr
    "89 ee",  # mov esi, ebp
    "0f 20 c0 0d 01 00 00 80 0f 22 c0",  # mov eax, cr0; or eax, 0x80000001 (PG, PE); mov cr0, eax
    "ea {long_at} 10 00",  # ljmp 0x10:long
)
_LONG_CODE = (
    "b8 18 00 00 00 8e d8 8e c0 8e d0",  # mov eax, 0x18; mov ds, eax; mov es, eax; mov ss, eax
    "b8 {entry} ff e0",  # mov eax, entry; jmp rax
)
_SEGMENTS = struct.pack("<4Q", 0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF)
"""Selector 0x10: 64-bit code; 0x18: data (__BOOT_CS and __BOOT_DS of Linux)."""


class _Kernel(NamedTuple):
    at: int
    """Physical, as are all places here."""
    entry: int
    content: bytes
    end: int
    """Of the memory that it takes, with the zeros behind ``content``."""


def unpacked(image: bytes) -> bytes:
    """The same kernel as one that need not unpack itself; ``image`` as it is where it isn't packed by xz, as Debian 12's are.
    It lies where it was linked to, as with ``nokaslr``. Raises Failed."""
    if len(image) < _HEADER_END or image[MAGIC : MAGIC + 4] != MAGIC_VALUE:
        raise Failed("the kernel is no bzImage of Linux")
    (version,) = struct.unpack_from("<H", image, VERSION)
    rest = (image[SETUP_SECTORS] + 1) * _SECTOR
    offset, size = struct.unpack_from("<II", image, PAYLOAD_OFFSET)
    payload = image[rest + offset : rest + offset + size]
    if version < VERSION_MIN or not payload.startswith(_XZ):
        return image
    unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ)
    try:
        kernel = _read_elf(unpacker.decompress(payload))
    except (lzma.LZMAError, struct.error) as error:
        raise Failed(f"the kernel can't be unpacked: {error}") from error
    if not unpacker.eof:
        raise Failed("the kernel can't be unpacked: it is cut off")
    if kernel.at < _KERNEL_AT or len(kernel.content) % 4 or (kernel.end - kernel.at) % 4:
        raise Failed(f"the kernel's place is another than Linux has: {kernel.at:#x}")
    behind = _begin(kernel).ljust(_KERNEL_AT - LOADED_AT, b"\0") + kernel.content
    made = bytearray(image[:rest])
    struct.pack_into("<I", made, SYSTEM_SIZE, -(-len(behind) // 16))
    struct.pack_into("<I", made, ENTRY_32, LOADED_AT)
    struct.pack_into("<B", made, RELOCATABLE, 0)
    struct.pack_into("<I", made, MEMORY_NEEDED, kernel.end - LOADED_AT)
    return bytes(made + behind)


def _read_elf(elf: bytes) -> _Kernel:
    if not elf.startswith(_ELF64):
        raise Failed("what is packed in the kernel is no 64-bit ELF file")
    entry, headers_at = struct.unpack_from("<QQ", elf, 24)
    entry_bytes, count = struct.unpack_from("<HH", elf, 54)
    parts = []
    for number in range(count):
        kind, _flags, offset, _virtual, at, file_bytes, memory_bytes = struct.unpack_from(
            "<IIQQQQQ", elf, headers_at + number * entry_bytes
        )
        if kind == _LOADED:
            parts.append((at, elf[offset : offset + file_bytes], at + memory_bytes))
    if not parts:
        raise Failed("the packed kernel has nothing to load")
    first = min(at for at, _, _ in parts)
    content = bytearray(max(at + len(part) for at, part, _ in parts) - first)
    for at, part, _ in parts:
        content[at - first : at - first + len(part)] = part
    # Half of Debian's are zeros at its end.
    used = bytes(content).rstrip(b"\0")
    padded = used.ljust(-(-len(used) // _PAGE) * _PAGE, b"\0")
    return _Kernel(first, entry, padded, max(end for _, _, end in parts))


def _begin(kernel: _Kernel) -> bytes:
    size, zeros_at = len(kernel.content), kernel.at + len(kernel.content)
    values = {
        "last_word": _KERNEL_AT + size - 4,
        "last_target": zeros_at - 4,
        "words": size // 4,
        "zeros_at": zeros_at,
        "zero_words": max(0, kernel.end - zeros_at) // 4,
        "entry": kernel.entry,
    }
    # All lengths are known before the places are: a name is four bytes, whatever it stands for.
    code_bytes, long_bytes = (len(_assemble(lines, {})) for lines in (_CODE, _LONG_CODE))
    values["long_at"] = LOADED_AT + code_bytes
    segments_at = LOADED_AT + code_bytes + long_bytes
    values["table_word_at"] = segments_at + len(_SEGMENTS)
    code = _assemble(_CODE, values) + _assemble(_LONG_CODE, values)
    return code + _SEGMENTS + struct.pack("<HI", len(_SEGMENTS) - 1, segments_at)


def _assemble(lines: tuple[str, ...], values: dict[str, int]) -> bytes:
    """``values`` by name; a name without one is zero."""
    made = bytearray()
    for word in " ".join(lines).split():
        if word.startswith("{"):
            made += struct.pack("<I", values.get(word.strip("{}"), 0))
        else:
            made += bytes.fromhex(word)
    return bytes(made)
