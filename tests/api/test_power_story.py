"""Power devices as a user meets them: set up over the API, tried out against real programs and sockets, and told what is
wrong in a word that can be acted upon."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from own_bmc import IpmiSim
from test_routes import connect_host, join_host
from wrong_port import answering_port

pytestmark = pytest.mark.req("F5", "F6")
Play = Callable[[Any], None]
World = Any
PASSWORD = 'p\'a$HOME;`x`|& "q"'


async def host_up(world: World) -> None:
    joined = await join_host(world)
    await connect_host(world, joined["host_id"])


def script(directory: Path, text: str) -> str:
    path = directory / "switch"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def command(executable: str, **more: Any) -> dict[str, Any]:
    return {
        "driver": "command",
        "executable": executable,
        "syntax": "$IPMI_EXEC $IPMI_ACTION $IPMI_HOST",
        "address": "bmc-h1",
        "stop": "stop",
        "status": "status",
        **more,
    }


async def try_out(world: World, settings: dict[str, Any], password: str = PASSWORD) -> Any:
    body = {"settings": settings, "secrets": {"password": password}}
    await world.ok("PUT", "/v1/hosts/h1/power/bmc", body)
    answer = await world.ok("POST", "/v1/hosts/h1/power/bmc/test", role="operator")
    assert password not in repr(answer)
    return answer["test"]


@pytest.mark.bad_input("metacharacters in a power password", story=True)
def test_a_password_arrives_word_by_word_and_never_comes_back(play: Play, tmp_path: Path):
    async def story(world: World) -> None:
        await host_up(world)
        (tmp_path / "password").write_text(PASSWORD)
        text = f'[ "$IPMI_PASSWORD" = "$(cat {tmp_path}/password)" ] && echo on'
        test = await try_out(world, command(script(tmp_path, text)))
        assert test["passed"], test
        for path in ("/v1/hosts/h1/power", "/v1/hosts/h1/power/bmc", "/v1/events"):
            shown = await world.call("GET", path, role="viewer")
            assert "HOME" not in shown.text
        (view,) = (await world.ok("GET", "/v1/hosts/h1/power"))["items"]
        assert view["secrets"] == ["password"] and view["tested"]

    play(story)


@pytest.mark.bad_input("power syntax with an unknown variable", story=True)
def test_an_unknown_variable_is_named_with_those_there_are(play: Play, tmp_path: Path):
    async def story(world: World) -> None:
        await host_up(world)
        settings = command(script(tmp_path, "echo on"), syntax="$IPMI_EXEC $IPMI_ACTION $IPMI_USER")
        answer = await world.call("PUT", "/v1/hosts/h1/power/bmc", {"settings": settings})
        assert answer.status_code == 400
        problem = answer.json()
        assert problem["field"] == "settings.syntax" and "$IPMI_USER" in problem["detail"]
        assert "$IPMI_USERNAME" in problem["allowed"]
        unknown = await world.call("PUT", "/v1/hosts/h1/power/bmc", {"settings": {"drivr": "ipmi"}})
        assert unknown.status_code == 400 and "drivr" in unknown.text
        nowhere = {"settings": {**settings, "asked_from": "nowhere"}}
        wrong = await world.call("PUT", "/v1/hosts/h1/power/bmc", nowhere)
        assert wrong.status_code == 400 and "asked_from" in wrong.json()["field"]
        agents = command(script(tmp_path, "echo on"), asked_from="agents")
        view = await world.ok("PUT", "/v1/hosts/h1/power/bmc", {"settings": agents})
        assert view["whole"]["asked_from"] == "agents" and view["usable"]

    play(story)


@pytest.mark.bad_input(
    "power script that prints megabytes",
    "power script that forks",
    "power script that fails with 0",
    "wrong power password",
    story=True,
)
def test_scripts_that_misbehave_fail_their_test_in_words(play: Play, tmp_path: Path):
    async def story(world: World) -> None:
        await host_up(world)
        for text, code in (
            ("yes on | head -c 9000000", "power.output_too_long"),
            ("sleep 1000 & setsid sleep 1000 & echo what", "power.status_unreadable"),
            ("echo 'could not do it'", "power.status_unreadable"),
            ('echo "bad password $IPMI_PASSWORD"; exit 1', "power.failed"),
            ("echo off", "power.reads_off"),
        ):
            test = await try_out(world, command(script(tmp_path, text)))
            assert (test["passed"], test["code"]) == (False, code), text
        events = await world.ok("GET", "/v1/events?code=power.test.failed")
        assert len(events["items"]) == 5

    play(story)


@pytest.mark.bad_input("power script that hangs", story=True)
def test_a_script_that_hangs_is_ended(play: Play, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("virtha.control.power_orders.LOOK_DEADLINE_MS", 800)

    async def story(world: World) -> None:
        await host_up(world)
        test = await try_out(world, command(script(tmp_path, "sleep 1000")))
        assert (test["passed"], test["code"]) == (False, "power.no_answer")
        answer = await world.ok("POST", "/v1/hosts/h1/power/bmc/status")
        assert answer["state"] == "unknown" and answer["reason"] == "the device did not answer"

    play(story)


@pytest.mark.bad_input(
    "power address of something else", "power device with TLS errors", story=True
)
def test_a_mail_server_is_no_bmc(play: Play):
    async def story(world: World) -> None:
        await host_up(world)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            greeter = threading.Thread(target=_greet, args=(server,))
            greeter.start()
            settings = {"driver": "redfish", "address": "127.0.0.1", "port": port, "user": "root"}
            test = await try_out(world, settings)
            greeter.join()
            assert (test["passed"], test["code"]) == (False, "power.tls_failed")
        test = await try_out(world, settings)
        assert test["code"] == "power.unreachable"

    play(story)


@pytest.mark.bad_input("IPMI cipher mismatch", "port without IPMI", story=True)
def test_a_bmc_with_another_cipher_and_a_port_without_one(play: Play, tmp_path: Path):
    async def story(world: World) -> None:
        await host_up(world)
        bmc = IpmiSim(tmp_path)
        bmc.start("secret")
        try:
            settings = {
                "driver": "ipmi",
                "address": "127.0.0.1",
                "port": bmc.port,
                "user": "admin",
            }
            test = await try_out(world, {**settings, "cipher": 17}, "secret")
            assert (test["passed"], test["code"]) == (False, "power.cipher_refused")
            test = await try_out(world, {**settings, "cipher": 3}, "secret")
            assert (test["passed"], test["code"]) == (True, "power.no_identity")
        finally:
            bmc.stop()
        with answering_port() as port:
            test = await try_out(world, {**settings, "port": port, "cipher": 3}, "secret")
            assert (test["passed"], test["code"]) == (False, "power.no_answer"), test
            asked = await world.ok("POST", "/v1/hosts/h1/power/bmc/status")
            assert (asked["state"], asked["reason"]) == ("unknown", "the device did not answer")
        # Where nobody listens at all.
        test = await try_out(world, {**settings, "cipher": 3}, "secret")
        assert (test["passed"], test["code"]) == (False, "power.no_answer")

    play(story)


def test_a_host_goes_over_its_cluster_and_is_switched(play: Play, tmp_path: Path):
    async def story(world: World) -> None:
        await host_up(world)
        text = (
            f'cd {tmp_path}; case "$1" in status) cat state;; stop) echo off > state;; '
            "start) echo on > state;; esac"
        )
        (tmp_path / "state").write_text("on")
        shared = command(script(tmp_path, text), start="start", user="root")
        del shared["address"]
        cluster = (await world.ok("GET", "/v1/clusters"))["items"][0]["name"]
        await world.ok("PUT", f"/v1/clusters/{cluster}/power/bmc", {"settings": shared})
        view = await world.ok(
            "PUT", "/v1/hosts/h1/power/bmc", {"settings": {"address": "a", "user": "me"}}
        )
        assert view["whole"]["user"] == "me" and "stop" in view["inherited"]
        for action in ("off", "on"):
            asked = await world.ok(
                "POST", "/v1/hosts/h1/power", {"action": action}, role="operator"
            )
            path = f"/v1/operations/{asked['id']}?wait_ms=60000"
            ended = await world.ok("GET", path, role="operator")
            assert (ended["state"], ended["fields"]["state"]) == ("done", action)
        wrong = await world.call("POST", "/v1/hosts/h1/power", {"action": "cycle"})
        assert wrong.status_code == 400 and wrong.json()["field"] == "action"
        agents = await world.ok("GET", "/v1/power/agents", role="viewer")
        assert "fence_ipmilan" in agents
        form = await world.ok("GET", "/v1/power/agents/fence_ipmilan", role="viewer")
        assert "lanplus" in {one["name"] for one in form["parameters"]}
        await world.call("DELETE", "/v1/hosts/h1/power/bmc")
        await world.call("DELETE", f"/v1/clusters/{cluster}/power/bmc")
        assert (await world.ok("GET", "/v1/hosts/h1/power"))["items"] == []

    play(story)


def _greet(server: socket.socket) -> None:
    """As a mail server does: whoever connects is told who is there."""
    connection, _ = server.accept()
    with connection:
        connection.sendall(b"220 mail.example.org ESMTP\r\n")
        connection.recv(1_000)
