import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.model.errors import InvalidInput
from virtha.model.size import format_size, parse_size_bytes
from virtha.model.time import (
    UtcMillis,
    format_duration_ms,
    format_utc,
    parse_duration_ms,
    parse_utc,
)


@pytest.mark.parametrize(
    ("text", "expected_ms"),
    [("200ms", 200), ("1.5s", 1_500), ("10m", 600_000), ("1h30m", 5_400_000), ("2d", 172_800_000)],
)
def test_durations(text: str, expected_ms: int) -> None:
    assert parse_duration_ms(text, field="f") == expected_ms


@pytest.mark.parametrize("text", ["", "5", "s", "1.5", "-1s", "1x", "1s2", "0.5ms"])
def test_what_is_no_duration_names_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        parse_duration_ms(text, field="beat")
    assert wrong.value.field == "beat"


@given(st.integers(min_value=0, max_value=10**10))
def test_a_written_duration_reads_back(duration_ms: int) -> None:
    assert parse_duration_ms(format_duration_ms(duration_ms), field="f") == duration_ms


@given(st.integers(min_value=0, max_value=4 * 10**12))
def test_a_written_time_reads_back(moment: int) -> None:
    assert parse_utc(format_utc(UtcMillis(moment)), field="at") == moment


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("yesterday", "is not a time"),
        ("", "is not a time"),
        ("2026-13-01T00:00:00Z", "is not a time"),
        ("1795266307123", "is not a time"),
        ("2026-11-21T13:05:07", "does not say its time zone"),
        ("2026-11-21", "does not say its time zone"),
    ],
)
def test_a_wrong_time_names_the_field_and_shows_a_right_one(text: str, says: str) -> None:
    with pytest.raises(InvalidInput, match=f"at: '{text}' {says}") as wrong:
        parse_utc(text, field="at")
    assert parse_utc(wrong.value.fix.rpartition(" ")[2], field="at") == 1_769_860_800_000


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00Z", "2026-01-31T13:30:00.000+01:30", " 2026-01-31 12:00:00+00:00"]
)
def test_any_zone_will_do(text: str) -> None:
    assert format_utc(parse_utc(text, field="at")) == "2026-01-31T12:00:00.000Z"


def test_moments_that_no_calendar_has_are_shown_as_the_nearest() -> None:
    assert format_utc(1 << 62) == "9999-12-31T23:59:59.999Z"
    assert format_utc(-(1 << 62)) == "0001-01-01T00:00:00.000Z"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512MiB", 512 << 20), ("2GiB", 2 << 30), ("1.5 GiB", 3 << 29), ("4096", 4096), ("0B", 0)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size_bytes(text, field="memory") == expected


@pytest.mark.parametrize(
    "text", ["", "2GB", "2G", "-1MiB", "MiB", "1.0001KiB", "two", "9" * 5_000, "9999999TiB"]
)
def test_what_is_no_size_names_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        parse_size_bytes(text, field="memory")
    assert wrong.value.field == "memory"


def test_sizes_are_shown_with_their_unit() -> None:
    assert [format_size(n) for n in (0, 1023, 1 << 10, 3 << 29, 512 << 20, 1 << 40)] == [
        "0B", "1023B", "1KiB", "1.5GiB", "512MiB", "1TiB",
    ]  # fmt: skip
