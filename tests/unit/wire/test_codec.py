"""Frames: cut anywhere, refused by their header, and unreadable content named for what it is."""

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from virtha.model.errors import InvalidInput, Refused, VirthaError
from virtha.model.ids import BootId
from virtha.wire.codec import (
    HEADER,
    FrameReader,
    decode_payload,
    encode_beat_ack,
    encode_message,
)
from virtha.wire.messages import FRAME_BYTES_MAX, Beat, BeatAck, Bye, Message, Ping, Refuse

encode = msgspec.msgpack.encode

# A busy machine makes examples slowly; that says nothing about the code.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def frame_of(content: object) -> bytes:
    payload = encode(content)
    return HEADER.pack(len(payload)) + payload


@pytest.mark.parametrize(
    ("payload", "code", "says"),
    [
        (encode({"type": "teleport"}), "wire.refused.message", "teleport"),
        (encode({"type": "teleport", "nonce": 1}), "wire.refused.message", "teleport"),
        (encode({"type": "ping"}), "wire.refused.malformed", "nonce"),
        (encode({"type": "ping", "nonce": "x"}), "wire.refused.malformed", "$.nonce"),
        (encode({"nonce": 1}), "wire.refused.malformed", "type"),
        (encode({"type": 5}), "wire.refused.malformed", "$.type"),
        (encode([1]), "wire.refused.malformed", "array"),
        (encode({"type": "ping", "nonce": 1}) + b"x", "wire.refused.malformed", "trailing"),
        (b"\xc1", "wire.refused.malformed", "opcode"),
        (b"\x82\xa4type\xa3bye\xa4code\xa2\xff\xfe", "wire.refused.malformed", "utf-8"),
        # An array that says it has 4 G entries, in 20 bytes.
        (b"\x82\xa4type\xa5facts\xa5facts\xdd\xff\xff\xff\xff", "wire.refused.malformed", "trunc"),
        (
            b"\x83\xa4type\xa4ping\xa5nonce\x01\xa1x" + b"\x91" * 100_000 + b"\x01",
            "wire.refused.malformed",
            "nested",
        ),
        (encode({"type": "hello", "version_major": 2}), "wire.refused.version", "2"),
        (encode({"type": "hello", "version_major": 1}), "wire.refused.malformed", "version_minor"),
    ],
)
def test_what_cannot_be_read_is_named(payload: bytes, code: str, says: str) -> None:
    with pytest.raises(Refused) as refused:
        decode_payload(payload)
    assert refused.value.code == code
    assert says in str(refused.value)


def test_unknown_message_lists_what_is_known() -> None:
    with pytest.raises(Refused) as refused:
        decode_payload(encode({"type": "teleport"}))
    assert refused.value.field == "type"
    assert "beat" in refused.value.allowed


@pytest.mark.parametrize("length", [1 << 30, FRAME_BYTES_MAX + 1, 0])
@pytest.mark.bad_input("frame of 1 GiB")
def test_a_frame_is_judged_by_its_header(length: int) -> None:
    reader = FrameReader()
    payloads, error = reader.feed(HEADER.pack(length) + b"x" * 10)
    assert payloads == []
    assert error is not None and error.code == "wire.refused.frame_size"
    assert not reader.holds_partial_frame


def test_frames_before_a_bad_header_still_count() -> None:
    payloads, error = FrameReader().feed(frame_of({"type": "ping", "nonce": 1}) + b"\xff" * 4)
    assert [decode_payload(payload) for payload in payloads] == [Ping(nonce=1)]
    assert error is not None


def test_the_largest_frame_passes_and_one_more_byte_does_not() -> None:
    overhead = len(encode_message(Refuse(code="c", message="x" * 70_000))) - 70_000 - HEADER.size
    fits = Refuse(code="c", message="x" * (FRAME_BYTES_MAX - overhead))
    payloads, error = FrameReader().feed(encode_message(fits))
    assert error is None
    assert decode_payload(payloads[0]) == fits
    with pytest.raises(InvalidInput) as refused:
        encode_message(Refuse(code="c", message="x" * (FRAME_BYTES_MAX - overhead + 1)))
    assert refused.value.code == "wire.refused.frame_size"


@settings(CALM)
@given(st.integers(0, 2**64 - 1))
def test_fast_acknowledgement_reads_as_the_plain_one(sequence: int) -> None:
    payloads, error = FrameReader().feed(encode_beat_ack(sequence))
    assert error is None
    assert decode_payload(payloads[0]) == BeatAck(sequence=sequence)


MESSAGES: tuple[Message, ...] = (
    Ping(nonce=1),
    Bye(),
    Beat(sequence=5, boot=BootId("b" * 36), monotonic_ms=9, inventory_revision=1, agent_alive=True),
    Refuse(code="wire.refused.version", message="y" * 300),
)


@settings(CALM)
@given(
    st.lists(st.sampled_from(MESSAGES), max_size=12),
    st.lists(st.integers(1, 400), max_size=40),
)
def test_a_stream_split_anywhere_gives_the_same_messages(
    messages: list[Message], cuts: list[int]
) -> None:
    stream = b"".join(encode_message(message) for message in messages)
    reader = FrameReader()
    got: list[Message] = []
    position = 0
    for cut in [*cuts, len(stream)]:
        payloads, error = reader.feed(stream[position : position + cut])
        position += cut
        assert error is None
        got.extend(decode_payload(payload) for payload in payloads)
    assert got == messages
    assert not reader.holds_partial_frame


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(max_size=8)
    | st.floats(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(CALM, max_examples=300)
@given(
    st.binary(max_size=200)
    | JUNK.map(encode)
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["hello", "welcome", "facts", "settings", "order", "beat"])},
        optional={
            "settings": JUNK,
            "facts": JUNK,
            "order": JUNK,
            "sequence": JUNK,
            "host_id": JUNK,
        },
    ).map(encode)
)
def test_garbage_raises_typed_errors_only(payload: bytes) -> None:
    try:
        decode_payload(payload)
    except VirthaError as error:
        assert error.code.startswith("wire.refused.")
