"""The routes over real use cases: joining, users, settings, policy, hold, VMs, operations."""

from collections.abc import Callable
from typing import Any

import pytest

from virtha.drivers.pki import fingerprint_of, host_identity, make_key_and_csr
from virtha.model.facts import Fact, HostReport, Outcome, Result
from virtha.model.host import HostCapabilities, HostState
from virtha.model.ids import BootId, HostId
from virtha.model.machine import MachineType
from virtha.model.time import Millis
from virtha.model.watchdog import WatchdogModel
from virtha.ports.hosts import LastBeat

Play = Callable[..., Any]
BOOT = BootId("boot-1")
CAPABILITIES = HostCapabilities(
    cpus=8,
    memory_bytes=8 << 30,
    libvirt_version=9_000_000,
    machine_types=(MachineType.Q35, MachineType.PC),
    watchdog_models=(WatchdogModel.I6300ESB, WatchdogModel.IB700),
    bridges=("br0",),
    gate_in_force=True,
    libvirt_connected=True,
)


async def join_host(world: Any, name: str = "h1", **token: Any) -> dict[str, Any]:
    made = await world.ok("POST", "/v1/tokens", {"description": name, **token})
    _, csr = make_key_and_csr(name)
    body = {"token": made["secret"], "csr_pem": csr, "name": name}
    answer: dict[str, Any] = await world.ok("POST", "/v1/join", body, role=None)
    return answer


async def connect_host(world: Any, host_id: HostId) -> None:
    """What the gateway does when an agent comes: hello, a beat, its report."""
    hosts = world.control.hosts
    view = await hosts.get(host_id)
    await hosts.hello(
        host_id,
        boot=BOOT,
        certificate_serial=view.host.certificate_serial,
        term_elsewhere=0,
        fact_sequence_last=0,
    )
    world.links.connected.add(host_id)
    world.links.beats[host_id] = LastBeat(
        boot=BOOT,
        sequence=1,
        monotonic_ms=1_000,
        received_at=Millis(world.store.clock.monotonic_ms()),
        agent_alive=True,
    )
    await record(world, host_id, 1, HostReport(capabilities=CAPABILITIES))


async def answer_orders(world: Any, host_id: HostId, sequence: int) -> int:
    """Every order that is out is said to be done; returns the next sequence."""
    while world.links.orders:
        _, order = world.links.orders.pop(0)
        outcome = Outcome(operation_id=order.operation_id, step=order.step, result=Result.OK)
        await record(world, host_id, sequence, outcome)
        sequence += 1
    return sequence


async def record(world: Any, host_id: HostId, sequence: int, body: Any) -> None:
    fact = Fact(sequence=sequence, boot=BOOT, monotonic_ms=sequence, wall_ms=0, body=body)
    assert await world.control.facts.record_facts(host_id, [fact]) == sequence


@pytest.mark.req("L6")
def test_a_host_joins_once_with_its_token(play: Play) -> None:
    async def story(world: Any) -> None:
        authority = await world.ok("GET", "/v1/authority", role=None)
        assert authority["fingerprint"] == fingerprint_of(authority["certificate_pem"])
        made = await world.call("POST", "/v1/tokens", {"description": "rack 3"})
        assert made.status_code == 201
        secret = made.json()["secret"]
        prefix, token_id, _, pinned = secret.split(".")
        assert (prefix, token_id) == ("virtha-join", made.json()["token"]["id"])
        assert pinned == authority["fingerprint"]
        listed = await world.call("GET", "/v1/tokens")
        assert secret.split(".")[2] not in listed.text, "the secret is shown once"

        _, csr = make_key_and_csr("h1")
        wanted = {"token": secret, "csr_pem": csr, "name": "h1"}
        refused = await world.call("POST", "/v1/join", {**wanted, "csr_pem": "x"}, role=None)
        assert (refused.status_code, refused.json()["field"]) == (400, "csr")
        joined = await world.call("POST", "/v1/join", wanted, role=None)
        assert joined.status_code == 201, joined.text
        answer = joined.json()
        assert host_identity(answer["certificate_pem"]).host_id == answer["host_id"]
        assert answer["servers"] == ["127.0.0.1:8250"]
        assert answer["authority_pem"] == authority["certificate_pem"]

        again = await world.call("POST", "/v1/join", {**wanted, "name": "h2"}, role=None)
        assert again.status_code in (401, 409), again.text
        assert again.json()["code"] == "problem.token.used"
        view = await world.ok("GET", "/v1/hosts/h1", role="viewer")
        assert view["status"]["state"] == HostState.NEVER_SEEN
        await world.control.installation.restored(path="/tmp/b.tar", by="root")
        await world.sign_in("administrator")  # a restore ends all sessions
        unheard = await world.call("DELETE", "/v1/hosts/h1")
        assert (unheard.status_code, unheard.json()["code"]) == (422, "start.blocked.inventory")
        assert "powered_off=true" in unheard.json()["fix"]
        await world.control.hosts.presence_changed(
            (await world.control.hosts.get("h1")).host.id, HostState.UNREACHABLE
        )
        removed = await world.call("DELETE", "/v1/hosts/h1?powered_off=true")
        assert removed.status_code == 204
        assert (await world.call("GET", "/v1/hosts/h1")).status_code == 404

    play(story)


@pytest.mark.parametrize("secret", ["", "virtha-join.x.y.z", "virtha-join.a.b." + "0" * 64, "junk"])
def test_a_token_nobody_gave_out(play: Play, secret: str) -> None:
    async def story(world: Any) -> None:
        _, csr = make_key_and_csr("h1")
        body = {"token": secret, "csr_pem": csr, "name": "h1"}
        answer = await world.call("POST", "/v1/join", body, role=None)
        assert answer.status_code in (400, 401), answer.text
        assert (await world.ok("GET", "/v1/hosts"))["items"] == []

    play(story)


def test_users_and_sessions(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await world.call("POST", "/v1/users", {"name": "eve", "password": "long enough 1"})
        assert made.status_code == 201
        assert made.json()["role"] == "viewer"
        assert "password" not in made.text
        signed = {"user": "eve", "password": "long enough 1"}
        session = await world.call("POST", "/v1/sessions", signed, role=None)
        assert session.status_code == 201 and "etag" not in session.headers
        world.tokens["eve"] = session.json()["token"]
        assert (await world.call("GET", "/v1/vms", role="eve")).status_code == 200
        assert (await world.call("DELETE", "/v1/sessions/current", role="eve")).status_code == 204
        assert (await world.call("GET", "/v1/vms", role="eve")).status_code == 401

        world.tokens["eve"] = (await world.ok("POST", "/v1/sessions", signed, role=None))["token"]
        changed = await world.ok("PATCH", "/v1/users/eve", {"role": "operator"})
        assert changed["role"] == "operator"
        disabled = await world.ok("PATCH", "/v1/users/eve", {"enabled": False})
        assert disabled["enabled"] is False
        assert (await world.call("GET", "/v1/vms", role="eve")).status_code == 401
        assert (await world.call("DELETE", "/v1/users/eve")).status_code == 204
        names = {user["name"] for user in (await world.ok("GET", "/v1/users"))["items"]}
        assert names == {"administrator", "operator", "viewer"}

    play(story)


def test_policy_hold_settings_codes_capabilities(play: Play) -> None:
    async def story(world: Any) -> None:
        cluster = (await world.ok("GET", "/v1/clusters"))["items"][0]["name"]
        shown = await world.call("GET", f"/v1/clusters/{cluster}/policy", role="viewer")
        policy = shown.json()
        policy["restart"]["restarts_max"] = 2
        put = await world.call(
            "PUT",
            f"/v1/clusters/{cluster}/policy",
            policy,
            headers={"If-Match": shown.headers["etag"]},
        )
        assert put.status_code == 200 and put.json()["restart"]["restarts_max"] == 2
        policy["restart"]["restarts_maks"] = 2
        answer = await world.call("PUT", f"/v1/clusters/{cluster}/policy", policy)
        assert (answer.status_code, answer.json()["field"]) == (400, "restart.restarts_maks")

        assert (await world.ok("GET", "/v1/hold", role="viewer"))["reason"] is None
        await world.ok("PUT", "/v1/hold", {"reason": "moving racks"}, role="operator")
        assert (await world.ok("GET", "/v1/status", role="viewer"))["hold"] == "moving racks"
        assert (await world.ok("DELETE", "/v1/hold", role="operator"))["reason"] is None

        settings = (await world.ok("GET", "/v1/settings", role="viewer"))["items"]
        assert settings, "there are settings"
        answer = await world.call("PUT", "/v1/settings/no.such.key", {"value": "1"})
        assert answer.status_code in (400, 404), answer.text

        codes = (await world.ok("GET", "/v1/codes", role="viewer"))["items"]
        assert {"vm.watchdog.fired", "problem.not_found"} <= {code["name"] for code in codes}
        offered = await world.ok("GET", "/v1/capabilities", role="viewer")
        assert "reset" in offered["actions"]
        q35 = [o for o in offered["watchdogs"] if o["machine"] == "q35"]
        assert q35 and "i6300esb" in q35[0]["models"]

    play(story)


@pytest.mark.req("W1")
def test_a_vm_from_creation_to_deletion(play: Play) -> None:
    async def story(world: Any) -> None:
        host_id = HostId((await join_host(world))["host_id"])
        await connect_host(world, host_id)
        wanted = {
            "name": "web1",
            "memory_bytes": 1 << 28,
            "watchdog": {"model": "i6300esb", "action": "reset"},
            "ha": True,
        }
        made = await world.call("POST", "/v1/vms", wanted, role="operator")
        assert made.status_code == 202, made.text
        operation = made.json()
        assert made.headers["location"] == f"/v1/operations/{operation['id']}"
        sequence = await answer_orders(world, host_id, 2)
        followed = await world.ok("GET", made.headers["location"] + "?wait_ms=5000", role="viewer")
        assert followed["state"] == "done", followed
        view = await world.call("GET", "/v1/vms/web1", role="viewer")
        assert view.json()["vm"]["id"] == operation["subject"]

        second = {"model": "ib700", "action": "poweroff"}
        answer = await world.call("POST", "/v1/vms/web1/watchdog", second, role="operator")
        assert (answer.status_code, answer.json()["code"]) == (409, "problem.watchdog.second")
        put = await world.call(
            "PUT",
            "/v1/vms/web1/watchdog",
            {"model": "i6300esb", "action": "poweroff"},
            role="operator",
            headers={"If-Match": view.headers["etag"]},
        )
        assert put.json() == {"model": "i6300esb", "action": "poweroff"}
        gone = await world.call("DELETE", "/v1/vms/web1/watchdog", role="operator")
        assert gone.status_code == 204
        missing = await world.call("GET", "/v1/vms/web1/watchdog", role="viewer")
        assert missing.status_code == 404
        added = await world.call("POST", "/v1/vms/web1/watchdog", second, role="operator")
        assert added.status_code == 201 and added.json() == second

        started = await world.call("POST", "/v1/vms/web1/start", role="operator")
        assert started.status_code == 202, started.text
        order = world.links.orders[-1][1]
        assert world.links.orders[-1][0] == host_id
        assert order.body.grant.beat_monotonic_ms == 1_000
        outcome = Outcome(
            operation_id=order.operation_id, step=order.step, result=Result.FAILED, message="no"
        )
        await record(world, host_id, sequence, outcome)
        ended = await world.ok("GET", f"/v1/operations/{started.json()['id']}?wait_ms=5000")
        assert ended["state"] == "failed"
        listed = await world.ok("GET", "/v1/vms?ha=true&limit=1", role="viewer")
        assert [item["vm"]["name"] for item in listed["items"]] == ["web1"]

    play(story)


def test_waiting_is_bounded_and_checked(play: Play) -> None:
    async def story(world: Any) -> None:
        answer = await world.call("GET", "/v1/operations/x?wait_ms=60001")
        assert (answer.status_code, answer.json()["field"]) == (400, "wait_ms")
        answer = await world.call("GET", "/v1/operations/x?wait_ms=10")
        assert answer.status_code == 404

    play(story)


@pytest.mark.req("X4")
@pytest.mark.bad_input("incident that is none")
def test_incidents_are_listed_and_an_id_is_checked(play: Play) -> None:
    async def story(world: Any) -> None:
        default = (await world.ok("GET", "/v1/clusters"))["items"][0]["id"]
        listed = await world.ok("GET", f"/v1/incidents?cluster={default}&open=true", role="viewer")
        assert listed["items"] == [] and listed["next"] is None
        for ref, status, field in (
            (default, 404, None),
            ("no-uuid", 400, "id"),
            ("%00", 400, "id"),
        ):
            answer = await world.call("GET", f"/v1/incidents/{ref}")
            assert (answer.status_code, answer.json().get("field")) == (status, field)
            assert "virtha incident list" in answer.json()["fix"]
        for query, field in (("after=x", "after"), ("host=h9", "host"), ("opne=1", "opne")):
            answer = await world.call("GET", f"/v1/incidents?{query}")
            assert answer.json()["field"] == field, answer.json()

    play(story)


@pytest.mark.req("X1")
def test_no_host_that_fits_says_why_for_each(play: Play) -> None:
    async def story(world: Any) -> None:
        await join_host(world, "h1")
        await join_host(world, "h2")
        answer = await world.call("POST", "/v1/vms", {"name": "web1", "memory_bytes": 1 << 28})
        problem = answer.json()
        assert answer.status_code == 422, answer.text
        assert problem["code"] == "problem.no_host_fits"
        assert "h1" in answer.text and "h2" in answer.text

    play(story)
