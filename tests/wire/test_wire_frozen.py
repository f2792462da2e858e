"""What version 1 sends and reads is frozen, byte by byte."""

import json
import typing

import msgspec
import pytest
from freeze_wire import (
    CHANNEL_SUBJECTS,
    DIRECTORY,
    FACT_BODIES,
    HARDWARE,
    MESSAGES,
    ORDER_BODIES,
    UNKNOWN_FIELDS,
    description,
    frames,
)

from virtha.model.console import ChannelSubject
from virtha.model.facts import FactBody
from virtha.model.orders import OrderBody
from virtha.wire.codec import HEADER, decode_payload, encode_message
from virtha.wire.messages import Message


def read(name: str) -> bytes:
    return (DIRECTORY / f"{name}.bin").read_bytes()


@pytest.mark.parametrize("name", MESSAGES)
def test_encoder_makes_the_frozen_bytes(name: str) -> None:
    assert encode_message(MESSAGES[name]) == read(name)


@pytest.mark.parametrize("name", MESSAGES)
def test_decoder_reads_the_frozen_bytes(name: str) -> None:
    frame = read(name)
    assert HEADER.unpack_from(frame) == (len(frame) - HEADER.size,)
    assert decode_payload(frame[HEADER.size :]) == MESSAGES[name]


@pytest.mark.parametrize("name", UNKNOWN_FIELDS)
def test_fields_of_a_later_minor_version_are_ignored(name: str) -> None:
    plain = MESSAGES[name.removeprefix("unknown_field_")]
    assert decode_payload(read(name)[HEADER.size :]) == plain


def test_the_fast_acknowledgement_is_the_same_message() -> None:
    frame = read("beat_ack_as_sent")
    assert frame == frames()["beat_ack_as_sent"]
    assert decode_payload(frame[HEADER.size :]) == MESSAGES["beat_ack"]


def test_every_kind_is_frozen() -> None:
    assert {type(message) for message in MESSAGES.values()} == set(typing.get_args(Message))
    assert {type(body) for body in (*FACT_BODIES, HARDWARE)} == set(typing.get_args(FactBody))
    assert {type(body) for body in ORDER_BODIES} == set(typing.get_args(OrderBody))
    assert {type(subject) for subject in CHANNEL_SUBJECTS} == set(typing.get_args(ChannelSubject))


def test_files_and_samples_are_the_same_set() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.bin")} == set(frames())
    assert {path.stem for path in DIRECTORY.glob("*.json")} == set(frames())


@pytest.mark.parametrize("name", frames())
def test_description_says_what_the_frame_holds(name: str) -> None:
    text = (DIRECTORY / f"{name}.json").read_text(encoding="utf-8")
    assert text == description(name)
    held = msgspec.msgpack.decode(read(name)[HEADER.size :])
    assert json.loads(text)["content"] == msgspec.to_builtins(held)  # bytes as base64
