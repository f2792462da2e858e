"""Which settings of two hosts reach one machine (P1)."""

from typing import Any

import pytest

from virtha.control.power_checks import same_place
from virtha.model.power_settings import PowerDriver, PowerSettings

pytestmark = pytest.mark.req("F5", "F6")
IPMI, REDFISH, AGENT = PowerDriver.IPMI, PowerDriver.REDFISH, PowerDriver.FENCE_AGENT


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ({"address": "10.0.0.1"}, {"address": "10.0.0.1", "port": 623}, True),
        ({"address": "10.0.0.1"}, {"address": "10.0.0.1", "port": 6231}, False),
        ({"address": "10.0.0.1"}, {"address": "012.0.0.1"}, True),
        ({"address": "10.0.0.1"}, {"address": "167772161"}, True),
        ({"address": "10.0.0.1"}, {"address": "10.0.0.2"}, False),
        ({"address": "2001:db8::1"}, {"address": "2001:DB8:0::01"}, True),
        ({"address": "10.0.0.1"}, {"address": "::ffff:10.0.0.1"}, True),
        ({"address": "bmc.example"}, {"address": "BMC.example."}, True),
        ({"address": "bmc"}, {"address": "bmc", "driver": REDFISH}, True),
        (
            {"driver": REDFISH, "address": "b"},
            {"driver": REDFISH, "address": "b", "plug": "1"},
            True,
        ),
        (
            {"driver": REDFISH, "address": "b", "plug": "2"},
            {"driver": REDFISH, "address": "b", "plug": "1"},
            False,
        ),
        ({}, {"address": "10.0.0.1"}, False),
        ({"driver": AGENT, "plug": "i-1"}, {"driver": AGENT, "plug": "i-1", "user": "b"}, True),
        ({"driver": AGENT, "plug": "i-1"}, {"driver": AGENT, "plug": "i-2"}, False),
        ({"driver": AGENT, "plug": ""}, {"driver": AGENT}, True),
    ],
)
def test_one_place_in_another_spelling(first: Any, second: Any, same: bool):
    one, other = (PowerSettings(**{"driver": IPMI, **given}) for given in (first, second))
    assert same_place(one, other) is same_place(other, one) is same
