"""Which settings of two hosts reach one machine, and which lead to another machine from each host (P1)."""

from typing import Any

import pytest

from virtha.control.power_checks import check_led_elsewhere, same_place
from virtha.model.errors import InvalidInput
from virtha.model.power_settings import AskedFrom, PowerDriver, PowerSettings

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


@pytest.mark.bad_input("power address of the host that asks")
@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1",
        "0x7f000001",
        "2130706433",
        "::1",
        "::ffff:127.0.0.1",
        "0:0:0:0:0:ffff:7f00:1",
        "169.254.1.1",
        "fe80::1",
        "fe80::1%eth0",
        "::ffff:169.254.0.3",
        "0.0.0.0",
        "::",
        "0.1.2.3",
        "localhost",
        "LocalHost.",
        "bmc.localhost",
        "localhost.localdomain",
        "ip6-loopback",
    ],
)
def test_no_neighbour_is_sent_to_itself(address: str):
    settings = PowerSettings(driver=IPMI, address=address, asked_from=AskedFrom.AGENTS)
    with pytest.raises(InvalidInput) as told:
        check_led_elsewhere(settings)
    assert told.value.field == "settings.address" and "asked_from=server" in told.value.fix
    check_led_elsewhere(PowerSettings(driver=IPMI, address=address))


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.1", "fd00::1", "bmc-h1", "localhost-bmc.example", None, ""]
)
def test_where_hosts_reach_a_device_they_are_asked(address: str | None):
    check_led_elsewhere(PowerSettings(driver=IPMI, address=address, asked_from=AskedFrom.AGENTS))
