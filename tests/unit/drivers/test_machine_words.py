"""Which machine this is, by its firmware; and whether a power device means the same one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtha.drivers.machine_words import machine_identity
from virtha.model.evidence import IdentityMatch
from virtha.model.machine_identity import compare, spellings, uuid_digits
from virtha.model.power_settings import MachineIdentity

pytestmark = pytest.mark.req("F9")
UUID = "4c4c4544-0042-3510-8050-b7c04f4d4d31"


def test_it_reads_the_firmware(tmp_path: Path) -> None:
    assert machine_identity(tmp_path) == MachineIdentity()
    (tmp_path / "product_uuid").write_text(UUID.upper() + "\n")
    (tmp_path / "product_serial").write_text(" S 123 \n")
    assert machine_identity(tmp_path) == MachineIdentity(uuid=UUID.replace("-", ""), serial="S 123")
    (tmp_path / "product_uuid").write_text("03000200-0400-0500-0006-000700080009")
    assert machine_identity(tmp_path).uuid == "", "what a maker never set"


@given(st.uuids().map(lambda one: one.hex))
def test_one_uuid_in_any_order_of_bytes(digits: str) -> None:
    for spelt in spellings(digits):
        found = compare(MachineIdentity(uuid=spelt), MachineIdentity(uuid=digits))
        assert found is (IdentityMatch.MATCH if uuid_digits(digits) else IdentityMatch.UNKNOWN)


@pytest.mark.parametrize(
    ("device", "host", "match"),
    [
        (MachineIdentity(), MachineIdentity(uuid=UUID), IdentityMatch.UNKNOWN),
        (MachineIdentity(uuid="0" * 32), MachineIdentity(uuid=UUID), IdentityMatch.UNKNOWN),
        (MachineIdentity(uuid="f" * 32), MachineIdentity(uuid="f" * 32), IdentityMatch.UNKNOWN),
        (MachineIdentity(serial="s 1"), MachineIdentity(serial="S 1"), IdentityMatch.MATCH),
        (MachineIdentity(serial="S1"), MachineIdentity(serial="S2"), IdentityMatch.MISMATCH),
        (
            MachineIdentity(serial="To be filled by O.E.M."),
            MachineIdentity(serial="To Be Filled By O.E.M."),
            IdentityMatch.UNKNOWN,
        ),
        (
            MachineIdentity(uuid=UUID, serial="S1"),
            MachineIdentity(uuid=UUID.replace("1", "2"), serial="S1"),
            IdentityMatch.MISMATCH,
        ),
    ],
)
def test_what_says_something_is_compared(
    device: MachineIdentity, host: MachineIdentity, match: IdentityMatch
) -> None:
    assert compare(device, host) is match
