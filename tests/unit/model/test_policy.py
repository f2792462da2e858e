import pytest

from virtha.model.errors import InvalidInput
from virtha.model.policy import IoErrorPolicy, RestartPolicy

pytestmark = pytest.mark.req("A8", "W12")


def test_delays_grow_to_a_bound() -> None:
    policy = RestartPolicy(delay_ms=1_000, delay_growth=3, delay_ms_max=60_000)
    assert [policy.delay_before_ms(n) for n in range(1, 8)] == [
        0, 1_000, 3_000, 9_000, 27_000, 60_000, 60_000,
    ]  # fmt: skip
    assert policy.delay_before_ms(10_000) == 60_000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"restarts_max": -1}, "restart.restarts_max"),
        ({"window_ms": 1}, "restart.window_ms"),
        ({"delay_ms": 70_000}, "restart.delay_ms"),
        ({"delay_growth": 0}, "restart.delay_growth"),
        ({"reset_loop_count": 1}, "restart.reset_loop_count"),
        ({"restarts_max": 20, "window_ms": 60_000}, "restart.window_ms"),
    ],
)
def test_a_policy_that_can_not_work_is_refused_naming_the_field(
    changes: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        RestartPolicy(**changes)
    assert refused.value.field == field


@pytest.mark.req("S6")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"check_interval_ms": 1}, "io_error.check_interval_ms"),
        ({"resumes_max": 0}, "io_error.resumes_max"),
        ({"delay_ms": 70_000}, "io_error.delay_ms"),
        ({"kill_after_ms": 1_999}, "io_error.kill_after_ms"),
        ({"delay_growth": 11}, "io_error.delay_growth"),
        ({"resumes_max": 20, "window_ms": 60_000}, "io_error.window_ms"),
    ],
)
def test_resumes_that_could_never_end_are_refused_naming_the_field(
    changes: dict[str, int], field: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        IoErrorPolicy(**changes)
    assert refused.value.field == field


def test_the_waits_before_resumes_grow_to_a_bound() -> None:
    policy = IoErrorPolicy()
    assert [policy.delay_before_ms(n) for n in range(1, 7)] == [
        1_000, 3_000, 9_000, 27_000, 60_000, 60_000,
    ]  # fmt: skip


def test_the_sum_is_shown_when_the_limit_could_never_bite() -> None:
    with pytest.raises(InvalidInput, match=r"add up to .* the limit could never be reached"):
        RestartPolicy(restarts_max=20, window_ms=60_000)


def test_no_restarts_at_all_is_a_valid_wish() -> None:
    assert RestartPolicy(restarts_max=0).restarts_max == 0
