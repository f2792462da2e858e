"""The question of one host to another's guardian, and its signed answer: one of each on a connection of its own.

Who asks is not asked for: whoever reaches the port may know that this host lives. The answer is signed with the key of
the host's certificate over a number that the asker has just made up, so nobody can play back an older one.
"""

import msgspec

from virtha.model.errors import Refused
from virtha.model.ids import BootId, HostId
from virtha.model.value import Value
from virtha.wire.codec import HEADER

NONCE_BYTES = 32
FRAME_BYTES_MAX = 8_192
_PURPOSE = b"virtha probe 1\0"
"""A signature given here is good for nothing else."""


class ProbeQuestion(Value, frozen=True, kw_only=True, tag="probe_question"):
    nonce: bytes


class ProbeAnswer(Value, frozen=True, kw_only=True, tag="probe_answer"):
    host_id: HostId
    boot: BootId
    certificate_pem: str
    signature: bytes
    """Over ``signed_words``."""


def signed_words(nonce: bytes, host_id: HostId, boot: BootId) -> bytes:
    return _PURPOSE + nonce + host_id.encode() + b"\0" + boot.encode()


def encode(message: ProbeQuestion | ProbeAnswer) -> bytes:
    payload = msgspec.msgpack.encode(message)
    assert len(payload) <= FRAME_BYTES_MAX, "a probe that fits no frame"
    return HEADER.pack(len(payload)) + payload


def frame_size(header: bytes) -> int:
    """Raises Refused."""
    size = int(HEADER.unpack(header)[0])
    if not 0 < size <= FRAME_BYTES_MAX:
        raise _malformed(f"a frame of {size} bytes")
    return size


def decode_question(payload: bytes) -> ProbeQuestion:
    """Raises Refused."""
    try:
        question = msgspec.msgpack.decode(payload, type=ProbeQuestion)
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from None
    if len(question.nonce) != NONCE_BYTES:
        raise _malformed(f"a number of {len(question.nonce)} bytes")
    return question


def decode_answer(payload: bytes) -> ProbeAnswer:
    """Raises Refused."""
    try:
        return msgspec.msgpack.decode(payload, type=ProbeAnswer)
    except (ValueError, RecursionError) as error:
        raise _malformed(str(error)) from None


def _malformed(detail: str) -> Refused:
    return Refused(f"this is no probe: {detail}", code="wire.refused.malformed")
