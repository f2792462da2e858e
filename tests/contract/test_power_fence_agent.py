"""Fence agents of Debian's package, as they are: metadata of all, and one that keeps its state in a file."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from virtha.control.power_checks import check_given, check_whole
from virtha.control.ready_checks import SHOW_PASSWORDS
from virtha.drivers import bounded_program, power_fence_agent
from virtha.drivers.power_agent_form import agent_form
from virtha.drivers.power_devices import RealPowerDevices
from virtha.model.errors import Failed, InvalidInput, NotFound
from virtha.model.evidence import PowerState
from virtha.model.facts import Result
from virtha.model.power import PowerAction
from virtha.model.power_settings import PowerDriver, PowerSettings
from virtha.ports.power import AgentForm, AgentParameter

pytestmark = pytest.mark.req("F9")


def test_it_reads_a_form_from_the_metadata():
    form = asyncio.run(RealPowerDevices().agent("fence_ipmilan"))
    assert (form.address_name, form.user_name) == ("ip", "username")
    assert (form.password_name, form.plug_name) == ("password", "plug")
    known = {one.name: one for one in form.parameters}
    assert known["privlvl"].options == ("callback", "user", "operator", "administrator")
    assert known["ipport"].kind == "integer" and known["password"].secret
    assert "login" not in known, "what is deprecated is not offered"
    assert {"on", "off", "status"} <= set(form.actions) and not form.unfit


def test_those_that_are_installed_are_listed():
    found = asyncio.run(RealPowerDevices().agents())
    assert {"fence_ipmilan", "fence_apc", "fence_dummy"} <= set(found)
    assert found == tuple(sorted(found))


def test_one_with_its_state_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Debian's fence_dummy, under a name that is not refused."""
    path = bounded_program.SEARCH_PATH
    (tmp_path / "fence_filed").symlink_to(str(bounded_program.find_program("fence_dummy")))
    monkeypatch.setattr(bounded_program, "SEARCH_PATH", f"{tmp_path}:{path}")
    settings = PowerSettings(
        driver=PowerDriver.FENCE_AGENT,
        agent="fence_filed",
        parameters={"status_file": str(tmp_path / "state"), "type": "file"},
    )

    async def story() -> None:
        device = RealPowerDevices().device(settings, {})
        for action, state in ((PowerAction.ON, PowerState.ON), (PowerAction.OFF, PowerState.OFF)):
            outcome = await device.order(action, deadline_ms=20_000, may_go=lambda: True)
            assert outcome.result is Result.OK, outcome
            assert (await device.status(deadline_ms=20_000)).state is state

    asyncio.run(story())


def test_one_that_can_not_be_used_says_so():
    settings = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_apc")
    reading = asyncio.run(RealPowerDevices().device(settings, {}).status(deadline_ms=20_000))
    assert reading.state is PowerState.UNKNOWN
    assert reading.code in ("power.unusable_settings", "power.failed") and reading.detail


def test_names_that_are_none():
    devices = RealPowerDevices()
    for name in ("../bin/sh", "fence_x;id", "sh", ""):
        with pytest.raises(InvalidInput):
            asyncio.run(devices.agent(name))
    with pytest.raises(NotFound):
        asyncio.run(devices.agent("fence_nosuch"))
    settings = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_nosuch")
    outcome = asyncio.run(
        devices.device(settings, {}).order(PowerAction.OFF, deadline_ms=2_000, may_go=lambda: True)
    )
    assert (outcome.result, outcome.code) == (Result.REFUSED, "power.program_missing")


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "hello",
        "<resource-agent>",
        "<other/>",
        '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><resource-agent>&b;</resource-agent>',
        '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]><resource-agent>&f;</resource-agent>',
    ],
)
def test_metadata_that_is_none(xml: str):
    with pytest.raises(Failed):
        agent_form("fence_x", xml)


AGENT = """#!/bin/sh
read -r action
echo "$action" >> "$(dirname "$0")/asked"
case "$action" in
action=metadata) {metadata}; cat <<END
<resource-agent><parameters>
<parameter name="ip"/><parameter name="plug"/><parameter name="method"/><parameter name="missing_as_off"/><parameter name="wait"/>
</parameters><actions><action name="off"/><action name="status"/></actions></resource-agent>
END
;;
*) echo "Status: OFF"; exit 2 ;;
esac
"""


def own_agent(
    directory: Path, monkeypatch: pytest.MonkeyPatch, metadata: str = ":"
) -> PowerSettings:
    path = directory / "fence_own"
    path.write_text(AGENT.replace("{metadata}", metadata))
    path.chmod(0o755)
    monkeypatch.setattr(
        bounded_program, "SEARCH_PATH", f"{directory}:{bounded_program.SEARCH_PATH}"
    )
    # The action comes first: that is all it reads.
    monkeypatch.setattr(
        power_fence_agent, "stdin_of", lambda one: f"action={one['action']}\n".encode()
    )
    return PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_own")


SPY = """#!/bin/sh
cd "$(dirname "$0")" || exit 9
{ tr '\\0' ' ' < /proc/$$/cmdline; tr '\\0' '\\n' < /proc/$$/environ; } >> words
if [ $# != 0 ]; then exit 9; fi
cat > given
if grep -q action=metadata given; then cat <<'END'
<resource-agent><parameters>
<parameter name="ip"/><parameter name="username"/><parameter name="password"><content type="string"/></parameter>
<parameter name="snmp_priv_passwd"/>
</parameters><actions><action name="off"/><action name="on"/><action name="status"/></actions></resource-agent>
END
exit 0
fi
cat given >> told
echo "Status: OFF"; exit 2
"""


@pytest.mark.req("F5")
def test_we_put_no_secret_on_a_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor into its environment: all that it is told comes on its standard input."""
    agent = tmp_path / "fence_spy"
    agent.write_text(SPY)
    agent.chmod(0o755)
    path = f"{tmp_path}:{bounded_program.SEARCH_PATH}"
    monkeypatch.setattr(bounded_program, "SEARCH_PATH", path)
    settings = PowerSettings(
        driver=PowerDriver.FENCE_AGENT, agent="fence_spy", address="192.0.2.1", user="admin"
    )
    secrets = {"password": "only$on'stdin", "snmp_priv_passwd": "that one, too"}

    async def story() -> None:
        devices = RealPowerDevices()
        device = devices.device(settings, secrets)
        assert (await device.status(deadline_ms=20_000)).state is PowerState.OFF
        for action in (PowerAction.OFF, PowerAction.ON):
            await device.order(action, deadline_ms=20_000, may_go=lambda: True)

    asyncio.run(story())
    told = (tmp_path / "told").read_text().splitlines()
    assert [one for one in told if one.startswith("action=")] == [
        *("action=status", "action=off", "action=on")
    ]
    for name, secret in secrets.items():
        assert told.count(f"{name}={secret}") == 3, told
    words = (tmp_path / "words").read_text()
    assert words.count("fence_spy") >= 4
    assert not [secret for secret in secrets.values() if secret in words]


def test_agents_that_show_the_password_in_the_process_list_are_known():
    """All of Debian's that run ipmitool do, and no option of theirs avoids it. Where that changes, so does what readiness says."""
    devices = RealPowerDevices()

    async def calling(tool: str) -> set[str]:
        found = set()
        for name in await devices.agents():
            program = bounded_program.find_program(name)
            assert program is not None
            if tool in Path(program).read_text(errors="replace"):
                found.add(name)
        return found

    assert asyncio.run(calling("--ipmitool-path")) == SHOW_PASSWORDS
    for name in SHOW_PASSWORDS:
        text = Path(str(bounded_program.find_program(name))).read_text()
        assert 'Cmd.append(" -P "' in text and "IPMI_PASSWORD" not in text and " -E" not in text


def test_its_metadata_takes_no_time_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """J7: nothing goes on beyond an attempt's deadline."""
    # Longer than a test may take: whoever waits for it fails.
    settings = own_agent(tmp_path, monkeypatch, metadata="sleep 1000")
    reading = asyncio.run(RealPowerDevices().device(settings, {}).status(deadline_ms=200))
    assert (reading.state, reading.code) == (PowerState.UNKNOWN, "power.no_answer"), reading


def test_its_metadata_is_read_once_for_all_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each reading would take twice its time, and with a short deadline none would ever come about."""
    settings = own_agent(tmp_path, monkeypatch)
    devices = RealPowerDevices()

    async def story() -> None:
        for _ in range(2):
            reading = await devices.device(settings, {}).status(deadline_ms=20_000)
            assert reading.state is PowerState.OFF, reading

    asyncio.run(story())
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["action=metadata", "action=status", "action=status"]


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("fence_scsi", '<actions><action name="on" automatic="1"/>{off}</actions>'),
        ("fence_sbd", '<actions><action name="on" automatic="0"/>{off}</actions>'),
        ("fence_ping", '<actions><action name="off"/></actions>'),
        (
            "fence_vm",
            '<parameters><parameter name="missing_as_off"><content type="boolean" default="1"/>'
            "</parameter></parameters><actions>{off}</actions>",
        ),
    ],
)
def test_what_is_off_without_the_machine_being_off_is_unfit(name: str, inside: str):
    """P1: access to storage or a network that is cut, a message that was sent, a machine that was not found."""
    off = '<action name="off"/><action name="status"/>'
    form = agent_form(name, f"<resource-agent>{inside.replace('{off}', off)}</resource-agent>")
    assert form.unfit
    given = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent=name)
    with pytest.raises(InvalidInput, match="can't be a host's power device"):
        check_whole(given, given, {}, form)


@pytest.mark.parametrize("name", ["missing_as_off", "network_fencing", "port_as_ip"])
def test_no_parameter_makes_an_off_of_something_else(name: str):
    one = AgentParameter(name=name, kind="boolean")
    form = AgentForm(name="fence_vm", parameters=(one,))
    given = PowerSettings(driver=PowerDriver.FENCE_AGENT, agent="fence_vm", parameters={name: "1"})
    with pytest.raises(InvalidInput, match="virtha sets it"):
        check_whole(given, given, {}, form)


@pytest.mark.parametrize("name", ["method", "missing_as_off", "plug", "ip", "ipaddr", "option"])
def test_what_a_cluster_came_to_say_later_does_not_reach_the_agent(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A host's settings are checked as a whole when they are set; the cluster's change for all."""
    settings = own_agent(tmp_path, monkeypatch)
    devices = RealPowerDevices()
    for parameters, secrets in (
        ({"wait": "1", name: "x"}, {}),
        ({}, {"password": "12345678", name: "12345678"}),
    ):
        device = devices.device(replace(settings, parameters=parameters), secrets)
        order = device.order(PowerAction.OFF, deadline_ms=20_000, may_go=lambda: True)
        outcome = asyncio.run(order)
        assert (outcome.result, outcome.code) == (Result.REFUSED, "power.unusable_settings")
        assert name in outcome.detail
    assert (tmp_path / "asked").read_text().split() == ["action=metadata"]


def test_a_cluster_is_not_let_say_it():
    given = PowerSettings(driver=PowerDriver.FENCE_AGENT, parameters={"method": "cycle"})
    with pytest.raises(InvalidInput, match="virtha sets it"):
        check_given(given, of_cluster=True)
