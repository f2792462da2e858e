"""Frames: a 4-byte big-endian length, then one message in msgpack."""

from functools import lru_cache
from struct import Struct

import msgspec

from virtha.model.errors import InvalidInput, Refused, VirthaError
from virtha.model.facts import Fact, Happened
from virtha.wire.messages import (
    FRAME_BYTES_MAX,
    VERSION_MAJOR,
    BeatAck,
    Facts,
    Message,
    Ping,
    Pong,
)

HEADER = Struct(">I")
_TEXT_MAX = 500
_HEADER_BYTES = HEADER.size

_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_decode = _decoder.decode

_ACK_SAMPLE = _encode(BeatAck(sequence=0))[:-1]
_BEAT_ACK = Struct(f">I{len(_ACK_SAMPLE)}ssQ")
_BEAT_ACK_LENGTH = _BEAT_ACK.size - _HEADER_BYTES
_MSGPACK_UINT64 = b"\xcf"


class _Envelope(msgspec.Struct, frozen=True, kw_only=True):
    """What any version's message has, for a good answer to one that we can't read."""

    type: str
    version_major: int | None = None


_decode_envelope = msgspec.msgpack.Decoder(_Envelope).decode
_KNOWN_TAGS = frozenset(str(kind.__struct_config__.tag) for kind in Message.__args__)


def encode_message(message: Message) -> bytes:
    """One message as a frame. Raises InvalidInput when it is larger than a frame may be."""
    payload = _encode(message)
    size = len(payload)
    if size > FRAME_BYTES_MAX:
        raise InvalidInput(
            f"a {message.__struct_config__.tag} message of {size} bytes does not fit a frame "
            f"of {FRAME_BYTES_MAX}",
            code="wire.refused.frame_size",
        )
    return HEADER.pack(size) + payload


def encode_beat_ack(sequence: int) -> bytes:
    """The same message as ``encode_message(BeatAck(…))``, made by one pack: it is sent once a second to
    each host. The number always takes nine bytes, which every msgpack reader accepts."""
    return _BEAT_ACK.pack(_BEAT_ACK_LENGTH, _ACK_SAMPLE, _MSGPACK_UINT64, sequence)


@lru_cache(maxsize=4_096)
def encode_ping(nonce: int) -> bytes:
    """All sessions count from one: of many the same is sent by each."""
    return encode_message(Ping(nonce=nonce))


@lru_cache(maxsize=4_096)
def encode_pong(nonce: int) -> bytes:
    return encode_message(Pong(nonce=nonce))


def encode_facts(facts: tuple[Fact, ...], *, gap: bool) -> tuple[bytes, int]:
    """The longest beginning of ``facts`` (by halving) that fits one frame, and its number of facts."""
    count = len(facts)
    while True:
        try:
            return encode_message(Facts(facts=facts[:count], gap=gap)), count
        except InvalidInput as error:
            if count == 1:
                return encode_message(Facts(facts=(_too_large(facts[0], error),), gap=gap)), 1
            count //= 2


def _too_large(fact: Fact, error: InvalidInput) -> Fact:
    """What stands in for a fact that no frame can carry: it must not block all those behind it."""
    fields = {"kind": str(fact.body.__struct_config__.tag), "size": error.message[:_TEXT_MAX]}
    return Fact(
        sequence=fact.sequence,
        boot=fact.boot,
        monotonic_ms=fact.monotonic_ms,
        wall_ms=fact.wall_ms,
        body=Happened(code="host.fact.too_large", fields={**fields}),
    )


def decode_payload(payload: bytes | bytearray | memoryview) -> Message:
    """One frame's content as a message.

    Raises Refused: `wire.refused.message` (unknown type), `wire.refused.version` (a hello or welcome of
    another major version that we can't read), `wire.refused.malformed`.
    """
    try:
        return _decode(payload)
    except RecursionError:
        raise _malformed("values are nested too deep") from None
    except ValueError as error:  # msgspec's own errors and text that is not UTF-8
        raise _explain(payload, error) from None
    except VirthaError as error:  # a value object that checks itself, as the policy does
        raise _malformed(str(error)) from None


def _explain(payload: bytes | bytearray | memoryview, error: ValueError) -> Refused:
    try:
        envelope = _decode_envelope(payload)
    except (ValueError, RecursionError):
        return _malformed(str(error))
    if envelope.type not in _KNOWN_TAGS:
        return Refused(
            f"unknown message type '{envelope.type[:64]}'",
            code="wire.refused.message",
            field="type",
            allowed=tuple(sorted(_KNOWN_TAGS)),
        )
    if envelope.version_major not in (None, VERSION_MAJOR):
        return version_refusal(envelope.version_major)
    return _malformed(str(error))


def version_refusal(peer_major: int | None) -> Refused:
    return Refused(
        f"the peer speaks protocol version {peer_major}, this side speaks {VERSION_MAJOR}",
        code="wire.refused.version",
        field="version_major",
        allowed=(str(VERSION_MAJOR),),
        fix="upgrade the older side",
    )


def _malformed(detail: str) -> Refused:
    return Refused(f"a frame can't be decoded: {detail}", code="wire.refused.malformed")


class FrameReader:
    """Cuts a byte stream into frames, holding at most one incomplete frame."""

    __slots__ = ("_buffer", "holds_partial_frame")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.holds_partial_frame = False

    def feed(self, data: bytes) -> tuple[list[bytes], Refused | None]:
        """The payloads that are complete now, and the error that ends the stream, if one did.

        The error comes beside the payloads, not instead: what was sent before it was sent.
        """
        self._buffer += data
        buffer = self._buffer
        payloads: list[bytes] = []
        position = 0
        error: Refused | None = None
        while len(buffer) - position >= _HEADER_BYTES:
            (length,) = HEADER.unpack_from(buffer, position)
            if not 0 < length <= FRAME_BYTES_MAX:
                # Judged by its header: a gigabyte that was announced is never buffered.
                error = _wrong_size(length)
                position = len(buffer)
                break
            end = position + _HEADER_BYTES + length
            if end > len(buffer):
                break
            payloads.append(bytes(buffer[position + _HEADER_BYTES : end]))
            position = end
        del buffer[:position]
        self.holds_partial_frame = bool(buffer)
        return payloads, error


def _wrong_size(length: int) -> Refused:
    return Refused(
        f"a frame of {length} bytes was announced",
        code="wire.refused.frame_size",
        field="length",
        allowed=(f"1 to {FRAME_BYTES_MAX} bytes",),
    )
