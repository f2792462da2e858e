"""Frames: a 4-byte big-endian length, then one message in msgpack."""

from struct import Struct

import msgspec

from virtha.model.errors import InvalidInput, Refused, VirthaError
from virtha.wire.messages import FRAME_BYTES_MAX, VERSION_MAJOR, BeatAck, Message

HEADER = Struct(">I")
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
        # One whole frame per read is the common case: a beat, or its acknowledgement.
        size = len(data) - _HEADER_BYTES
        if 0 < size <= FRAME_BYTES_MAX and not self._buffer:
            (length,) = HEADER.unpack_from(data)
            if length == size:
                return [data[_HEADER_BYTES:]], None
        return self._feed_slowly(data)

    def _feed_slowly(self, data: bytes) -> tuple[list[bytes], Refused | None]:
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
