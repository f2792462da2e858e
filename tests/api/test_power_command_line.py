"""`virtha host power` and `virtha cluster power` against a real server process: from nothing to off and on again."""

import json
from pathlib import Path

import pytest
from story import Story, refused

pytestmark = pytest.mark.req("F5", "F6")
PASSWORD = 'p\'a$HOME;`x`|& "q"'


@pytest.fixture
def switch(tmp_path: Path) -> Path:
    path = tmp_path / "switch"
    path.write_text(
        f"""#!/bin/sh
cd {tmp_path}; echo "$@" >> calls
[ "$IPMI_PASSWORD" = "$(cat password)" ] || {{ echo "wrong" >&2; exit 1; }}
case "$1" in status) cat state ;; off) echo off > state ;; on) echo on > state ;; esac
"""
    )
    path.chmod(0o755)
    (tmp_path / "password").write_text(PASSWORD)
    (tmp_path / "state").write_text("on\n")
    return path


def test_from_nothing_to_off_and_on(story: Story, switch: Path) -> None:
    story.ok(
        *("cluster", "power", "set", "default", "driver=command", f"executable={switch}"),
        *("syntax=$IPMI_EXEC $IPMI_ACTION $IPMI_HOST", "stop=off", "start=on", "status=status"),
        "user=root",
        "--password-stdin",
        stdin=PASSWORD + "\n",
    )
    assert "command" in story.ok("cluster", "power", "list", "default")
    said = story.ok("host", "power", "set", "h1", "address=bmc-h1", "user=other")
    assert "virtha host power test h1" in said
    assert "unset" not in story.ok("host", "power", "set", "h1", "--unset", "user")
    shown = story.ok("host", "power", "show", "h1")
    assert "user (cluster)" in shown and "untested" in shown and "HOME" not in shown
    assert "passed" in story.ok("host", "power", "test", "h1")
    assert "tested" in story.ok("host", "power", "list", "h1")
    assert "h1: on" in story.ok("host", "power", "status", "h1")
    refused(story.run("host", "power", "off", "h1"), 2, "problem.invalid", "--yes")
    assert "now off" in story.ok("host", "power", "off", "h1", "--yes", "--force")
    assert (switch.parent / "state").read_text() == "off\n"
    refused(story.run("host", "power", "reboot", "h1"), 2, "problem.invalid", "--yes")
    assert "now on" in story.ok("host", "power", "on", "h1")
    blink = story.run("host", "power", "blink", "h1")
    refused(blink, 1, "power.unsupported")
    found = json.loads(story.ok("host", "power", "show", "h1", "-o", "json"))
    assert found["whole"]["address"] == "bmc-h1" and PASSWORD not in json.dumps(found)
    (switch.parent / "password").write_text("another")
    refused(story.run("host", "power", "test", "h1"), 1, "power.failed")
    assert "fence_ipmilan" in story.ok("host", "power", "agent", "list")
    assert "lanplus (boolean)" in story.ok("host", "power", "agent", "show", "fence_ipmilan")
    story.ok("host", "power", "remove", "h1", "--yes")
    story.ok("cluster", "power", "remove", "default", "--yes")
    assert "bmc" not in story.ok("host", "power", "list", "h1")


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("set h1 nonsense", 2, "FIELD"),
        ("set h1 colour=red", 2, "colour"),
        ("set h1 password=x", 2, "--password-stdin"),
        ("set h1 port=x", 2, "no number"),
        ("set h1 driver=ipm", 2, "driver"),
        ("set h1 driver=ipmi", 2, "address"),
        ("set h1 driver=redfish address=h authority_pem=@/nope", 2, "/nope"),
        ("set nope driver=ipmi address=h", 3, "nope"),
        ("test h1 --device pdu", 3, "pdu"),
        ("status h1", 3, "no power device"),
        ("agent show fence_nosuch", 3, "fence_nosuch"),
        ("remove h1", 2, "--yes"),
        ("on h1", 3, "no power device"),
        ("on h1 --timeout soon", 2, "--timeout"),
    ],
)
def test_wrong_words(story: Story, words: str, code: int, told: str) -> None:
    done = story.run("host", "power", *words.split())
    assert done.returncode == code, done.stderr
    assert told in done.stderr and "Traceback" not in done.stderr


@pytest.mark.bad_input("power address of the host that asks", story=True)
@pytest.mark.parametrize("address", ["localhost", "127.0.0.1", "169.254.95.118", "::1"])
def test_agents_are_sent_to_no_address_of_their_own(
    story: Story, switch: Path, address: str
) -> None:
    settings = ("driver=command", f"executable={switch}", "asked_from=agents", "status=status")
    syntax = ("syntax=$IPMI_EXEC $IPMI_ACTION $IPMI_HOST", "stop=off")
    story.ok("host", "power", "set", "h1", *settings, *syntax, "address=bmc-h1")
    wrong = story.run("host", "power", "set", "h1", f"address={address}")
    refused(wrong, 2, "problem.invalid", "address:", "asked_from=server")
    kept = json.loads(story.ok("host", "power", "show", "h1", "-o", "json"))
    assert kept["whole"]["address"] == "bmc-h1"
