import pytest

from virtha.model.errors import InvalidInput
from virtha.model.machine import MachineType
from virtha.model.watchdog import (
    Watchdog,
    WatchdogAction,
    WatchdogModel,
    models_that_fit,
    parse_watchdog,
)

pytestmark = pytest.mark.req("W1", "W2")
LIBVIRT_9_0 = 9_000_000
LIBVIRT_9_1 = 9_001_000


@pytest.mark.parametrize(
    ("architecture", "machine", "version", "expected"),
    [
        ("x86_64", MachineType.Q35, LIBVIRT_9_0, ["i6300esb", "ib700"]),
        ("x86_64", MachineType.Q35, LIBVIRT_9_1, ["i6300esb", "ib700", "itco"]),
        ("x86_64", MachineType.PC, LIBVIRT_9_1, ["i6300esb", "ib700"]),
        ("x86_64", MachineType.PC, None, ["i6300esb", "ib700"]),
        ("s390x", MachineType.S390_CCW, LIBVIRT_9_0, ["diag288"]),
        ("aarch64", MachineType.Q35, LIBVIRT_9_0, []),
    ],
)
def test_models_by_machine_and_libvirt(
    architecture: str, machine: MachineType, version: int | None, expected: list[str]
) -> None:
    assert [*models_that_fit(architecture, machine, libvirt_version=version)] == expected


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("i6300esb", "problem.watchdog.action"),
        ("i6300esb:", "problem.watchdog.action"),
        ("i6300esb:explode", "problem.watchdog.action"),
        ("i6300:reset", "problem.watchdog.model"),
        ("", "problem.watchdog.model"),
        ("i6300esb:reset:", "problem.watchdog.action"),
    ],
)
@pytest.mark.bad_input("missing action")
def test_wrong_text_says_what_is_allowed(text: str, code: str) -> None:
    with pytest.raises(InvalidInput) as wrong:
        parse_watchdog(text)
    assert wrong.value.code == code
    assert wrong.value.allowed


def test_good_text() -> None:
    assert parse_watchdog("ib700:inject-nmi") == Watchdog(
        model=WatchdogModel.IB700, action=WatchdogAction.INJECT_NMI
    )
