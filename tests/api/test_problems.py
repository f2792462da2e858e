"""Every kind of error is a problem document that names the field; bad beside good."""

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from virtha.api.problems import ERRORS, headers_of, problem_of
from virtha.api.table import ROUTES
from virtha.drivers.pki import make_key_and_csr
from virtha.model.codes import REGISTRY
from virtha.model.errors import Failed, Unavailable, VirthaError

Play = Callable[..., Any]
VM = {"name": "web1", "memory_bytes": 1 << 28, "cluster": "default"}


def check(answer: Any, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """The answer is a whole problem document of that code."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"].startswith("application/problem+json")
    problem: dict[str, Any] = answer.json()
    assert (problem["status"], problem["code"]) == (status, code), answer.text
    assert problem["type"].endswith(code)
    assert problem["title"] and problem["detail"]
    if field is not None:
        assert problem["field"] == field, problem
    return problem


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_each_error_becomes_a_problem_with_its_status(error: type[VirthaError]) -> None:
    problem = problem_of(error("why", field="f", allowed=("a",), fix="do"))
    assert problem.status == error.http_status
    assert problem.code in REGISTRY
    assert (problem.detail, problem.field, problem.allowed, problem.fix) == (
        "why",
        "f",
        ("a",),
        "do",
    )


def test_a_coded_reason_keeps_its_class_title() -> None:
    problem = problem_of(VirthaError("why", code="some.code.of.a.newer.version"))
    assert problem.title == "It was tried and did not work"


def test_unavailable_says_when_to_come_again() -> None:
    assert headers_of(Unavailable("x")) == {"Retry-After": "1"}


def test_requests_that_never_reach_a_handler(play: Play) -> None:
    async def story(world: Any) -> None:
        check(await world.call("GET", "/nothing"), 404, "problem.not_found")
        check(await world.call("GET", "/v1/vms/a/b/c"), 404, "problem.not_found")
        answer = await world.call("PATCH", "/v1/vms")
        problem = check(answer, 405, "problem.method", "method")
        assert problem["allowed"] == ["GET", "POST"]
        assert answer.headers["allow"] == "GET, POST"
        check(await world.call("DELETE", "/healthz", role=None), 405, "problem.method")

    play(story)


def test_allow_names_the_methods_of_a_path_and_of_no_other(play: Play) -> None:
    """Also where another path of the table would take its last part for an id."""

    async def story(world: Any) -> None:
        of_paths: dict[str, set[str]] = {}
        for route in ROUTES:
            of_paths.setdefault(re.sub(r"\{\w+\}", "nothing", route.path), set()).add(route.method)
        wrong = []
        for path, methods in of_paths.items():
            asked = await world.call("OPTIONS", path, role=None)
            refused = await world.call(
                next(one for one in ("DELETE", "PATCH", "PUT") if one not in methods), path
            )
            check(refused, 405, "problem.method", "method")
            allowed = [
                set(answer.headers["allow"].split(", ")) - {"OPTIONS"}
                for answer in (asked, refused)
            ]
            if asked.status_code != 204 or allowed != [methods, methods]:
                wrong.append((path, methods, allowed))
        assert wrong == []

    play(story)


@pytest.mark.bad_input("unknown field")
def test_bodies_that_are_wrong_as_such(play: Play) -> None:
    async def story(world: Any) -> None:
        async def post(raw: bytes, **headers: str) -> Any:
            return await world.call("POST", "/v1/clusters", raw=raw, headers=headers)

        check(await post(b"{"), 400, "problem.invalid", "body")
        check(await post(b'"x"'), 400, "problem.invalid", "body")
        check(await post(b'{"nmae": "c"}'), 400, "problem.unknown_field", "nmae")
        check(await post(b'{"name": 7}'), 400, "problem.invalid", "name")
        check(await post(b"{}"), 400, "problem.invalid", "name")
        large = b'{"name": "' + b"x" * (1 << 20) + b'"}'
        check(await post(large), 413, "problem.too_large", "body")
        answer = await post(b"name=c", **{"Content-Type": "application/x-www-form-urlencoded"})
        check(answer, 415, "problem.invalid", "Content-Type")
        answer = await world.call("POST", "/v1/vms/x/shutdown", {"force": True})
        check(answer, 400, "problem.invalid", "body")
        answer = await world.call("GET", "/v1/clusters?lmit=1")
        problem = check(answer, 400, "problem.unknown_field", "lmit")
        assert problem["fix"] == "did you mean limit?"
        good = await post(b'{"name": "c2"}')
        assert good.status_code == 201

    play(story)


@pytest.mark.req("L6")
def test_who_are_you(play: Play) -> None:
    async def story(world: Any) -> None:
        answer = await world.call("GET", "/v1/vms", role=None)
        check(answer, 401, "problem.unauthenticated")
        assert answer.headers["www-authenticate"].startswith("Bearer")
        for header in ("Basic YTpi", "Bearer", "Bearer x", "Bearer virtha-access.a.b", "é"):
            headers = {"Authorization": header.encode()}
            answer = await world.client.get("/v1/vms", headers=headers)
            assert answer.status_code == 401, header
        wrong = {"user": "administrator", "password": "wrong"}
        answer = await world.call("POST", "/v1/sessions", wrong, role=None)
        check(answer, 401, "problem.password.wrong")
        answer = await world.call(
            "POST", "/v1/users", {"name": "u", "password": "p"}, role="viewer"
        )
        problem = check(answer, 403, "problem.forbidden")
        assert problem["allowed"] == ["administrator"]

    play(story)


@pytest.mark.req("W1", "W2")
def test_what_control_refuses_comes_through_with_its_field(play: Play) -> None:
    async def story(world: Any) -> None:
        await world.ok("POST", "/v1/clusters", {"name": "c2"})
        answer = await world.call("POST", "/v1/clusters", {"name": "c2"})
        check(answer, 409, "problem.name_taken", "name")
        check(await world.call("GET", "/v1/vms/web9"), 404, "problem.not_found")
        bad = {**VM, "watchdog": {"model": "diag288", "action": "reset"}}
        problem = check(
            await world.call("POST", "/v1/vms", bad),
            400,
            "problem.watchdog.model",
            "watchdog.model",
        )
        assert "i6300esb" in problem["allowed"]
        bad = {**VM, "watchdog": {"model": "i6300esb"}}
        answer = await world.call("POST", "/v1/vms", bad)
        check(answer, 400, "problem.watchdog.action", "watchdog.action")

    play(story)


def test_etags(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await world.call("POST", "/v1/clusters", {"name": "c2"})
        assert made.headers["location"] == f"/v1/clusters/{made.json()['id']}"
        old = made.headers["etag"]
        assert old == f'"{made.json()["revision"]}"'
        changed = await world.call(
            "PATCH", "/v1/clusters/c2", {"description": "x"}, headers={"If-Match": old}
        )
        assert changed.status_code == 200
        assert changed.headers["etag"] != old
        answer = await world.call("DELETE", "/v1/clusters/c2", headers={"If-Match": old})
        check(answer, 412, "problem.stale")
        answer = await world.call("DELETE", "/v1/clusters/c2", headers={"If-Match": "yesterday"})
        check(answer, 400, "problem.invalid", "If-Match")
        answer = await world.call(
            "DELETE", "/v1/clusters/c2", headers={"If-Match": changed.headers["etag"]}
        )
        assert answer.status_code == 204

    play(story)


def test_an_etag_is_of_what_is_shown_and_a_change_looks_at_the_objects_revision(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await world.call("POST", "/v1/clusters", {"name": "c2"})
        shown = await world.call("GET", "/v1/clusters/c2")
        tag = shown.headers["etag"]
        assert tag.startswith(made.headers["etag"][:-1] + "-")
        for known in (tag, f"W/{tag}", f'"x", {tag}', "*"):
            again = await world.call("GET", "/v1/clusters/c2", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b""), known
            assert again.headers["etag"] == tag and "content-type" not in again.headers
        for other in (made.headers["etag"], '"x"', '""'):
            again = await world.call("GET", "/v1/clusters/c2", headers={"If-None-Match": other})
            assert (again.status_code, again.content) == (200, shown.content), other
        # Lists, and what has no revision of its own.
        for path in ("/v1/clusters", "/v1/status", "/v1/openapi.json"):
            tag = (await world.call("GET", path)).headers["etag"]
            again = await world.call("GET", path, headers={"If-None-Match": tag})
            assert again.status_code == 304, path
            await world.ok("PUT", "/v1/hold", {"reason": path})
            again = await world.call("GET", path, headers={"If-None-Match": tag})
            assert again.status_code == (304 if path.endswith("json") else 200), path
        # What is shown has another ETag by now, the object itself none.
        changed = await world.call(
            "PATCH",
            "/v1/clusters/c2",
            {"description": "x"},
            headers={"If-Match": shown.headers["etag"]},
        )
        assert changed.status_code == 200
        answer = await world.call(
            "DELETE", "/v1/clusters/c2", headers={"If-Match": shown.headers["etag"]}
        )
        check(answer, 412, "problem.stale", "If-Match")
        assert answer.json()["fix"]

    play(story)


def test_a_setting_is_changed_as_its_reader_knows_it(play: Play) -> None:
    async def story(world: Any) -> None:
        path = "/v1/settings/grant.duration"
        unset = await world.call("PUT", path, {"value": "5s"}, headers={"If-Match": '"0"'})
        assert unset.status_code == 200, "0: nobody has set it"
        tag = unset.headers["etag"]
        for late in ('"0"', '"1"'):
            answer = await world.call("PUT", path, {"value": "6s"}, headers={"If-Match": late})
            check(answer, 412, "problem.stale", "If-Match")
            answer = await world.call("DELETE", path, headers={"If-Match": late})
            check(answer, 412, "problem.stale", "If-Match")
        changed = await world.call("PUT", path, {"value": "7s"}, headers={"If-Match": tag})
        assert changed.status_code == 200 and changed.headers["etag"] != tag
        listed = (await world.ok("GET", "/v1/settings"))["items"]
        (shown,) = [one for one in listed if one["key"] == "grant.duration"]
        assert f'"{shown["revision"]}"' == changed.headers["etag"]
        answer = await world.call("DELETE", path, headers={"If-Match": changed.headers["etag"]})
        assert answer.status_code == 204

    play(story)


@pytest.mark.bad_input("condition that nobody looks at", story=True)
def test_whatever_is_there_is_no_condition_that_nothing_meets(play: Play) -> None:
    """RFC 9110, 13.1.1: ``*`` is false where there is nothing yet; who says it means to change, not to make."""

    async def story(world: Any) -> None:
        path, any_one = "/v1/settings/grant.duration", {"If-Match": "*"}
        for method, body in (("PUT", {"value": "5s"}), ("DELETE", None)):
            answer = await world.call(method, path, body, headers=any_one)
            check(answer, 412, "problem.stale", "If-Match")
        assert (await world.call("PUT", path, {"value": "5s"})).status_code == 200
        assert (await world.call("PUT", path, {"value": "6s"}, headers=any_one)).status_code == 200
        assert (await world.call("DELETE", path, headers=any_one)).status_code == 204
        bmc = "/v1/clusters/default/power/bmc"
        answer = await world.call("PUT", bmc, {"settings": {}}, headers=any_one)
        check(answer, 404, "problem.not_found", "name")
        assert (await world.ok("GET", "/v1/clusters/default/power"))["items"] == []
        user = (await world.ok("GET", "/v1/users"))["items"][0]["name"]
        for one in ("/v1/clusters/default", f"/v1/users/{user}"):
            answer = await world.call("PATCH", one, {}, headers=any_one)
            assert answer.status_code == 200, answer.text

    play(story)


_BODIES = {"/v1/hold": {"reason": "works"}, "/v1/clusters": {"name": "c2"}}


@pytest.mark.bad_input("condition that nobody looks at", story=True)
def test_a_condition_that_nobody_looks_at_is_refused(play: Play) -> None:
    async def story(world: Any) -> None:
        for method, path, name, value in (
            ("PUT", "/v1/hold", "If-Match", '"1"'),
            ("POST", "/v1/clusters", "If-Match", "*"),
            ("PATCH", "/v1/clusters/default", "If-None-Match", "*"),
            ("PATCH", "/v1/clusters/default", "If-Match", '"-0123456789abcdef01234567"'),
            ("PATCH", "/v1/clusters/default", "If-Match", '"1", "2"'),
            ("PATCH", "/v1/clusters/default", "If-Match", ""),
            ("GET", "/v1/clusters/default", "If-None-Match", "yesterday"),
            ("GET", "/v1/clusters", "If-None-Match", ""),
            ("GET", "/v1/clusters", "If-None-Match", '"1" "2"'),
        ):
            body = None if method == "GET" else _BODIES.get(path, {})
            answer = await world.call(method, path, body, headers={name: value})
            check(answer, 400, "problem.invalid", name)

    play(story)


def test_a_fault_of_ours_is_a_number_to_quote_and_no_traceback(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(world: Any) -> None:
        async def broken(*_: Any) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(type(world.control.status), "get", broken)
        answer = await world.call("GET", "/v1/status")
        problem = check(answer, 500, "problem.failed")
        assert "incident" in problem["detail"]
        assert "secret detail" not in answer.text

    play(story)


@pytest.mark.bad_input("locked database", story=True)
def test_a_locked_database_is_a_clear_503_and_reading_goes_on(play: Play) -> None:
    async def story(world: Any) -> None:
        import aiosqlite

        async with aiosqlite.connect(world.store.database, isolation_level=None) as other:
            await other.execute("BEGIN IMMEDIATE")
            answer = await world.call("POST", "/v1/clusters", {"name": "c2"})
            problem = check(answer, 503, "problem.database.locked")
            assert answer.headers["retry-after"]
            assert "nothing was changed" in problem["detail"]
            assert (await world.call("GET", "/v1/clusters")).status_code == 200
            assert (await world.call("GET", "/healthz", role=None)).status_code == 200
            await other.execute("ROLLBACK")
        assert (await world.call("POST", "/v1/clusters", {"name": "c2"})).status_code == 201

    play(story)


def test_health_and_metrics(play: Play) -> None:
    async def story(world: Any) -> None:
        health = await world.ok("GET", "/healthz", role=None)
        assert health["status"] == "ok"
        await world.call("GET", "/no-such-path-with-a-secret")
        text = (await world.call("GET", "/metrics", role=None)).text
        assert 'virtha_request_duration_seconds_count{method="GET",route="/healthz"' in text
        assert 'route="none",status="404"' in text
        assert "no-such-path" not in text

    play(story)


def test_health_is_that_of_the_store(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(world: Any) -> None:
        async def hangs(_self: Any) -> None:
            await asyncio.Event().wait()

        async def damaged(_self: Any) -> None:
            raise Failed("the database is damaged")

        monkeypatch.setattr("virtha.api.records.HEALTH_DEADLINE_S", 0.02)
        for broken in (hangs, damaged):
            monkeypatch.setattr(type(world.control.events), "current_revision", broken)
            answer = await world.call("GET", "/healthz", role=None)
            assert answer.status_code == 503, answer.text
            assert (await world.call("GET", "/metrics", role=None)).status_code == 200

    play(story)


@pytest.mark.bad_input("full disk", story=True)
def test_a_full_disk_is_a_clear_503_and_reading_goes_on(play: Play) -> None:
    """SQLite's own page limit gives what a full disk gives: SQLITE_FULL in the middle of a commit."""

    async def story(world: Any) -> None:
        async with world.store.write() as tx:
            pages = await tx.connection.exec_driver_sql("PRAGMA page_count")
            limit = int(pages.scalar_one())
            await tx.connection.exec_driver_sql(f"PRAGMA max_page_count = {limit}")
        made = []
        for number in range(200):
            body = {"name": f"c{number}", "description": "x" * 900}
            answer = await world.call("POST", "/v1/clusters", body)
            if answer.status_code != 201:
                break
            made.append(body["name"])
        check(answer, 503, "problem.disk.full")
        listed = await world.ok("GET", "/v1/clusters?limit=1000")
        assert {cluster["name"] for cluster in listed["items"]} == {"default", *made}
        assert (await world.call("GET", "/healthz", role=None)).status_code == 200
        async with world.store.write() as tx:
            await tx.connection.exec_driver_sql("PRAGMA max_page_count = 1073741823")
        assert (await world.call("POST", "/v1/clusters", body)).status_code == 201

    play(story)


@pytest.mark.req("L6")
def test_an_expired_token_and_an_expired_join_token(play: Play) -> None:
    async def story(world: Any) -> None:
        made = await world.ok("POST", "/v1/tokens", {"expires_ms": 60_000})
        _, csr = make_key_and_csr("h1")
        join = {"token": made["secret"], "csr_pem": csr, "name": "h1"}
        assert (await world.call("GET", "/v1/vms")).status_code == 200
        world.clock.ahead_ms = 10 * 365 * 86_400_000
        check(await world.call("GET", "/v1/vms"), 401, "problem.token.expired")
        fault = await world.call(
            "GET", "/ovirt-engine/api/vms", headers={"Accept": "application/xml"}
        )
        assert fault.status_code == 401 and fault.headers["content-type"] == "application/xml"
        assert "<fault><reason>Unauthorized</reason><detail>" in fault.text
        assert "problem.token.expired" in fault.text
        answer = await world.call("POST", "/v1/join", join, role=None)
        check(answer, 401, "problem.token.expired", "token")

    play(story)
