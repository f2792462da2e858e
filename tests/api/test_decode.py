"""Bodies and queries: the error names the real field, what is allowed there and the nearest name."""

import pytest

from virtha.api.decode import BODY_BYTES_MAX, decode_body, decode_query, explain
from virtha.control.requests import EventQuery, UserCreate, VmCreate, VmQuery, VmStart
from virtha.model.errors import InvalidInput
from virtha.model.policy import Policy
from virtha.model.vm import VmState

GOOD = b'{"name": "web1", "memory_bytes": 1024, "machine": "pc", "disks": [{"image": "tiny"}]}'


def test_a_good_body() -> None:
    request = decode_body(GOOD, VmCreate)
    assert (request.name, request.machine, request.disks[0].image) == ("web1", "pc", "tiny")


def test_no_body_is_an_empty_object() -> None:
    assert decode_body(b"  ", VmStart) == VmStart()


@pytest.mark.req("X1")
@pytest.mark.parametrize(
    ("body", "code", "field", "part", "fix"),
    [
        (b"{", "problem.invalid", "body", "no JSON", "send one JSON object"),
        (b"\xff", "problem.invalid", "body", "no JSON", "send one JSON object"),
        (b"[]", "problem.invalid", "body", "a list", ""),
        (b"null", "problem.invalid", "body", "null", ""),
        (b"[" * 100_000, "problem.invalid", "body", "nested", ""),
        (b'{"nam": "x"}', "problem.unknown_field", "nam", "no such field", "did you mean name?"),
        (b'{"zzzz": 1}', "problem.unknown_field", "zzzz", "no such field", "leave it out"),
        (b'{"name": "x"}', "problem.invalid", "memory_bytes", "required", "add memory_bytes"),
        (
            b'{"name": "x", "memory_bytes": "512MiB"}',
            "problem.invalid",
            "memory_bytes",
            "expected `int`, got `str`",
            "",
        ),
        (
            b'{"name": "x", "memory_bytes": 1, "machine": "q36"}',
            "problem.invalid",
            "machine",
            "q36",
            "write one of the allowed values",
        ),
        (
            b'{"name": "x", "memory_bytes": 1, "disks": [{}, {"immage": "t"}]}',
            "problem.unknown_field",
            "disks[1].immage",
            "no such field",
            "did you mean image?",
        ),
        (
            b'{"name": "x", "memory_bytes": 1, "nics": [{}]}',
            "problem.invalid",
            "nics[0].bridge",
            "required",
            "add nics[0].bridge",
        ),
        (
            b'{"name": "x", "memory_bytes": 1, "watchdog": {"model": 3}}',
            "problem.invalid",
            "watchdog.model",
            "expected `str`",
            "",
        ),
        (
            b'{"name": "x\\u0000", "memory_bytes": 1}',
            "problem.invalid",
            "name",
            "control characters",
            "use printable characters",
        ),
        (
            b'{"name": "x", "memory_bytes": 1, "disks": [{"size_bytes": 9223372036854775808}]}',
            "problem.invalid",
            "disks[0].size_bytes",
            "too large",
            "",
        ),
    ],
)
@pytest.mark.bad_input("unknown field")
def test_bad_bodies(body: bytes, code: str, field: str, part: str, fix: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_body(body, VmCreate)
    error = caught.value
    assert (error.code, error.field, error.fix) == (code, field, fix)
    assert part in error.message


def test_an_enumeration_lists_what_is_allowed() -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_body(b'{"name": "n", "password": "p", "role": "boss"}', UserCreate)
    assert caught.value.allowed == ("none", "viewer", "operator", "administrator")
    with pytest.raises(InvalidInput) as caught:
        decode_body(b'{"name": "n", "memory_bytes": 1, "on_io_error": "retry"}', VmCreate)
    assert caught.value.field == "on_io_error"
    assert caught.value.allowed == ("auto_resume", "leave_paused", "kill")
    with pytest.raises(InvalidInput) as caught:
        decode_query([("order", "up")], EventQuery)
    assert caught.value.allowed == ("asc", "desc")


def test_a_value_of_the_model_is_strict_as_a_request() -> None:
    """Policy ignores unknown fields on the wire; of a user it is a misspelt setting that would be lost."""
    with pytest.raises(InvalidInput) as caught:
        decode_body(b'{"restart": {"restart_max": 3}}', Policy)
    assert caught.value.field == "restart.restart_max"
    assert caught.value.fix == "did you mean restarts_max?"


def test_a_values_own_check_comes_through() -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_body(b'{"restart": {"window_ms": 1000}}', Policy)
    assert caught.value.field == "restart.window_ms"
    assert "lengthen restart.window" in caught.value.fix


def test_a_query_reads_text_as_its_types() -> None:
    query = decode_query([("state", "running"), ("ha", "true"), ("limit", "7")], VmQuery)
    assert (query.state, query.ha, query.limit) == (VmState.RUNNING, True, 7)
    assert decode_query([("cluster", "null")], VmQuery).cluster == "null"


@pytest.mark.parametrize(
    ("pairs", "field"),
    [
        ([("limit", "many")], "limit"),
        ([("limit", "1"), ("limit", "2")], "limit"),
        ([("ha", "perhaps")], "ha"),
        ([("ha", "null")], "ha"),
        ([("state", "flying")], "state"),
        ([("lmit", "1")], "lmit"),
        ([("cluster", "a\x00")], "cluster"),
        ([("limit", "99999999999999999999")], "limit"),
    ],
)
def test_bad_queries(pairs: list[tuple[str, str]], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        decode_query(pairs, VmQuery)
    assert caught.value.field == field


def test_a_sentence_nobody_foresaw_still_becomes_an_error() -> None:
    error = explain("Something new - at `$.disks[3]`", VmCreate)
    assert (error.message, error.field) == ("something new", "disks[3]")
    assert explain("?", VmCreate).field == "body"


def test_the_limit_is_what_the_brief_says() -> None:
    assert BODY_BYTES_MAX == 1_048_576
