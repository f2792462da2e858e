"""QEMU's portable pixmaps as PNG, which browsers and people's programs show. libvirt 9 gives no PNG by itself."""

import re
import struct
import zlib

from virtha.model.errors import Failed

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER = re.compile(rb"P6\s+(\d{1,5})\s+(\d{1,5})\s+255\s")
SIDE_MAX = 16_384


def as_png(picture: bytes) -> bytes:
    """Raises Failed: neither a PNG nor a whole binary pixmap with 8 bits per colour."""
    if picture.startswith(SIGNATURE):
        return picture
    header = _HEADER.match(picture)
    if header is None:
        raise Failed("the hypervisor's screenshot is in an unknown format")
    width, height = int(header[1]), int(header[2])
    pixels = memoryview(picture)[header.end() :]
    row = 3 * width
    if not 0 < width <= SIDE_MAX or not 0 < height <= SIDE_MAX or len(pixels) < row * height:
        raise Failed(f"the hypervisor's screenshot of {width} x {height} is cut short")
    packer = zlib.compressobj(1)
    packed = bytearray()
    for line in range(height):
        packed += packer.compress(b"\0")  # no filter
        packed += packer.compress(pixels[line * row : (line + 1) * row])
    packed += packer.flush()
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return SIGNATURE + _chunk(b"IHDR", size) + _chunk(b"IDAT", bytes(packed)) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
