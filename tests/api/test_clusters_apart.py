"""Who may see one cluster of two: what is in the other is in no answer, no list, no count, no search, no stream."""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import delete
from test_problems import check
from two_clusters import MACS, SIDES, add_user, fill, id_of, path_of, tell

from virtha.api.admission import FIELD_KINDS, PATH_KINDS
from virtha.api.records import reader_is_the_same
from virtha.api.route import OPEN, Route
from virtha.api.table import ROUTES
from virtha.control.access_check import KINDS, UNSEEN
from virtha.control.power_views import PowerPut
from virtha.control.requests import EventQuery
from virtha.model.access import Permission, Scope
from virtha.model.errors import Conflict, Unauthenticated
from virtha.model.policy import Policy
from virtha.model.policy.rule import BrokenRule
from virtha.store.schema import vm

Play = Callable[..., Any]
LOOKS = [one for one in ROUTES if one.method == "GET" and one.role != OPEN]


def test_no_look_of_any_route_tells_of_the_other_cluster(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        told = set()
        for route in LOOKS:
            if route.media_type == "text/event-stream":
                continue
            for side in SIDES:
                path = path_of(route.path, side)
                answer = await world.call("GET", path, role="eve")
                if "sueden" in answer.text or id_of("vm", "sueden") in answer.text:
                    # Only what was asked for is said back, in "there is no …".
                    assert answer.status_code == 404, (route.name, answer.text)
                    assert "host-sueden" not in answer.text and "vm-sueden" not in answer.text
                names_thing = path != route.path and "nothing" not in path
                if side == "sueden" and names_thing and route.scope is Scope.CLUSTER:
                    assert answer.status_code == 404, (route.name, answer.status_code)
                if side == "norden" and answer.status_code == 200 and "norden" in answer.text:
                    told.add(route.path)
        # And it is not that nothing is told at all.
        assert {
            "/v1/status",
            "/v1/clusters",
            "/v1/hosts",
            "/v1/vms",
            "/v1/storage-domains",
            "/v1/templates",
            "/v1/operations",
            "/v1/incidents",
            "/v1/events",
            "/v1/readiness",
            "/v1/tokens",
            "/v1/hosts/{ref}/power",
            "/v1/vms/{ref}",
        } <= told

    play(story)


def test_who_has_no_role_and_no_grant_is_told_of_nothing(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "new")
        for route in LOOKS:
            if route.media_type == "text/event-stream":
                continue
            for side in SIDES:
                answer = await world.call("GET", path_of(route.path, side), role="new")
                if route.scope is Scope.INSTALLATION:
                    assert answer.status_code == 403, route.name
                if answer.status_code == 200:
                    assert side not in answer.text, (route.name, answer.text)
                    if route.scope is Scope.CLUSTER:
                        assert not answer.json().get("items"), route.name
        for route in ROUTES:
            if route.role == OPEN or route.method == "GET" or route.scope is Scope.OWN:
                continue
            path = path_of(route.path, SIDES[0])
            assert (await world.call(route.method, path, role="new")).status_code == 403, route.name

    play(story)


def test_names_and_ids_of_the_other_cluster_are_as_unknown_as_any(play: Play) -> None:
    """Also where a request changes something, and in queries and searches."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        for name in ("vm-sueden", id_of("vm", "sueden")):
            there = await world.call("POST", f"/v1/vms/{name}/power-off", role="eve")
            gone = await world.call("POST", "/v1/vms/vm-suedan/power-off", role="eve")
            assert there.status_code == gone.status_code == 404
            assert there.json()["detail"].replace(name, "X") == gone.json()["detail"].replace(
                "vm-suedan", "X"
            )
        for query in (
            "/v1/events?vm=vm-sueden",
            "/v1/events?host=host-sueden",
            "/v1/incidents?cluster=sueden",
            "/v1/vms?cluster=sueden",
        ):
            assert (await world.call("GET", query, role="eve")).status_code == 404, query
        for query in (
            "/v1/vms?search=cluster%20%3D%20sueden",
            "/v1/vms?search=name%20%3D%20vm-sueden",
            "/v1/events?search=vm.name%20%3D%20vm-sueden",
            f"/v1/events?vm={id_of('vm', 'sueden')}",
            f"/v1/operations?subject={id_of('vm', 'sueden')}",
        ):
            answer = await world.ok("GET", query, role="eve")
            assert answer["items"] == [], query
        status = await world.ok("GET", "/v1/status", role="eve")
        assert status["totals"]["vms"] == status["totals"]["hosts"] == 1

    play(story)


@pytest.mark.bad_input("id of a cluster that the user may not see")
def test_what_a_body_names_is_looked_up_as_its_caller_sees_it(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        vm = {"name": "new", "memory_bytes": 1 << 30}
        for wrong, field in (
            ({"cluster": "sueden"}, "cluster"),
            ({"cluster": id_of("cluster", "sueden")}, "cluster"),
            ({"cluster": "norden", "storage_domain": "storage-sueden"}, "storage_domain"),
            (
                {
                    "cluster": "norden",
                    "disks": [{"storage_domain": "storage-sueden", "size_bytes": 1}],
                },
                "storage_domain",
            ),
        ):
            answer = await world.call("POST", "/v1/vms", vm | wrong, role="eve")
            assert (answer.status_code, answer.json()["field"]) == (404, field), wrong
        moved = await world.call(
            "POST", "/v1/vms/vm-norden/migrate", {"host": "host-sueden"}, role="eve"
        )
        assert moved.status_code == 404
        # The only one that she sees is the only one there is.
        token = await world.ok("POST", "/v1/tokens", {"description": "mine"}, role="eve")
        assert token["token"]["cluster_id"] == id_of("cluster", "norden")
        more = await world.call("POST", "/v1/clusters", {"name": "third"}, role="eve")
        assert more.status_code == 403
        # Of two, one must be named, and only those that she sees are told.
        await world.ok("POST", "/v1/users/eve/grants", {"role": "viewer", "cluster": "default"})
        several = await world.call("POST", "/v1/tokens", {}, role="eve")
        assert several.status_code == 400 and several.json()["allowed"] == ["default", "norden"]
        refused = await world.call("POST", "/v1/tokens", {"cluster": "default"}, role="eve")
        assert refused.status_code == 403

    play(story)


def test_a_refusal_names_nothing_of_the_other_cluster(play: Play) -> None:
    """What use cases check on all records: addresses that are the installation's."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        vm = {"name": "new", "memory_bytes": 1 << 30, "cluster": "norden"}
        nics = [{"bridge": "br0", "mac": MACS["sueden"]}]
        disks = [{"path": "vms/new", "storage_domain": "storage-norden"}]
        power = {"settings": {"driver": "ipmi", "address": "sueden.example", "user": "x"}}
        for method, path, body, name in (
            ("POST", "/v1/vms", vm | {"nics": nics, "disks": disks}, "vm-sueden"),
            ("PUT", "/v1/hosts/host-norden/power/default", power, "host-sueden"),
        ):
            mine = await world.call(method, path, body, role="eve")
            assert mine.status_code == 409 and name not in mine.text, mine.text
            assert "(in another cluster)" in mine.json()["detail"]
            all_of_it = await world.call(method, path, body)
            assert name in all_of_it.json()["detail"]
        # Also one that carries more than others do.
        caller = await world.control.users.authenticate(world.tokens["eve"])
        broken = BrokenRule("as vm-sueden", fields=("a", "b"), fix="as host-sueden")
        told = await world.control.access.without_unseen(caller, broken, "")
        assert isinstance(told, BrokenRule) and told.fields == ("a", "b")
        assert (told.message, told.fix) == (f"as {UNSEEN}", f"as {UNSEEN}")
        # What she named herself is told back.
        taken = await world.call("POST", "/v1/vms", vm | {"name": "vm-sueden"}, role="eve")
        assert taken.status_code == 409 and "vm-sueden" in taken.json()["detail"]

    play(story)


def test_the_stream_tells_of_ones_own_cluster_and_ends_when_that_changes(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        users, events = world.control.users, world.control.events
        caller = await users.authenticate(world.tokens["eve"])
        place = await events.place(None)
        with world.control.access.seen_by(caller, Permission.VIEW):
            following = events.follow(EventQuery(limit=1), place)
        # Read outside of the request that began it, as a response's body is.
        coming = asyncio.ensure_future(anext(following))
        for side in ("sueden", "norden"):
            async with world.store.write() as tx:
                await tell(tx, side)
        async with asyncio.timeout(60):
            assert (await coming).message == "in norden"
        await following.aclose()

    play(story)


def test_a_change_of_what_may_be_seen_ends_the_stream(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        caller = await world.control.users.authenticate(world.tokens["eve"])
        await reader_is_the_same(world.control, caller, world.tokens["eve"])
        await world.ok("POST", "/v1/users/eve/grants", {"role": "viewer", "cluster": "sueden"})
        with pytest.raises(Exception, match="has changed"):
            await reader_is_the_same(world.control, caller, world.tokens["eve"])

    play(story)


def test_what_happens_after_a_grant_is_gone_is_never_told(play: Play) -> None:
    """Not even in the seconds until the next keep-alive."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        users, events = world.control.users, world.control.events
        token = world.tokens["eve"]
        caller = await users.authenticate(token)

        async def still_allowed() -> None:
            await reader_is_the_same(world.control, caller, token)

        place = await events.place(None)
        with world.control.access.seen_by(caller, Permission.VIEW):
            following = events.follow(EventQuery(limit=1), place, still_allowed)
        async with world.store.write() as tx:
            await tell(tx, "norden")
        assert (await anext(following)).message == "in norden"
        grants = await world.ok("GET", "/v1/users/eve/grants")
        path = f"/v1/users/eve/grants/{grants['items'][0]['grant']['id']}"
        assert (await world.call("DELETE", path)).status_code == 204
        async with world.store.write() as tx:
            await tell(tx, "norden")
        with pytest.raises(Unauthenticated, match="has changed"):
            await anext(following)

    play(story)


def test_what_was_read_for_one_is_not_kept_for_others(play: Play) -> None:
    """At one revision: what lists keep between two questions is of who asked."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        await add_user(world, "ute", ("viewer", "sueden"))
        for name, seen in (
            ("eve", ["norden"]),
            ("ute", ["sueden"]),
            ("administrator", ["norden", "sueden"]),
            ("eve", ["norden"]),
        ):
            for path in ("/v1/vms", "/v1/hosts", "/v1/clusters", "/v1/readiness", "/v1/status"):
                answer = await world.call("GET", path, role=name)
                assert answer.status_code == 200, (name, path, answer.text)
                for side in SIDES:
                    assert (side in answer.text) is (side in seen) or path == "/v1/status"
                    if side not in seen:
                        assert side not in answer.text, (name, path)

    play(story)


@pytest.mark.parametrize("is_told", [False, True], ids=["nobody-is-told", "somebody-is-told"])
def test_what_a_cluster_lacks_does_not_depend_on_who_asks(play: Play, is_told: bool) -> None:
    """Receivers and subscriptions are hidden from who sees some clusters only; whether there are any is a finding of each cluster."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        if is_told:
            wanted = {"receiver": "mail-norden", "name": "all", "severity": "info"}
            await world.ok("POST", "/v1/subscriptions", wanted)
        for path in (
            "/v1/clusters/norden/readiness",
            "/v1/hosts/host-norden/readiness",
            "/v1/vms/vm-norden/readiness",
        ):
            seen = [await world.ok("GET", path, role=role) for role in ("administrator", "eve")]
            assert seen[0] == seen[1], path
        whole = await world.ok("GET", "/v1/readiness", role="eve")
        assert ("ready.nobody_told" in str(whole)) is not is_told

    play(story)


def test_who_may_not_see_a_cluster_is_nobody_who_would_be_told_of_it(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "ute", ("viewer", "sueden"))
        await world.ok("PATCH", "/v1/users/ute", {"email": "ute@example.org"})
        settings = {"type": "mail", "host": "mail.example.org", "sender": "virtha@example.org"}
        await world.ok("POST", "/v1/receivers", {"name": "mail", "settings": settings})
        wanted = {"receiver": "mail", "user": "ute", "severity": "info"}
        await world.ok("POST", "/v1/subscriptions", wanted)
        for side, is_told in (("norden", False), ("sueden", True)):
            found = await world.ok("GET", f"/v1/clusters/{side}/readiness")
            assert ("ready.nobody_told" in str(found)) is not is_told, side

    play(story)


def test_what_routes_are_and_whom_they_tell_is_told_to_who_sees_all_clusters(play: Play) -> None:
    """Also of a route of one cluster: its people see no route."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        wanted = {"receiver": "mail-norden", "name": "of-norden", "cluster": "norden"}
        await world.ok("POST", "/v1/subscriptions", wanted)
        await world.ok("PATCH", "/v1/subscriptions/of-norden", {"severity": "alert"})
        for role, is_seen in (("administrator", True), ("eve", False)):
            found = await world.ok("GET", "/v1/events?code=notify.*&limit=100", role=role)
            assert ("of-norden" in str(found)) is is_seen, role

    play(story)


def test_why_there_is_a_hold_is_for_who_sees_all_clusters(play: Play) -> None:
    """That there is one concerns everybody."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        await world.ok("PUT", "/v1/hold", {"reason": "vm-sueden is broken into"})
        for path in ("/v1/status", "/v1/readiness", "/v1/vms/vm-norden"):
            answers = {one: await world.call("GET", path, role=one) for one in ("viewer", "eve")}
            assert answers["viewer"].status_code == answers["eve"].status_code == 200
            assert "vm-sueden is broken into" in answers["viewer"].text, path
            assert "protection.hold" in answers["eve"].text, path
            assert "sueden" not in answers["eve"].text, path
        assert (await world.call("GET", "/v1/hold", role="eve")).status_code == 403

    play(story)


def test_ones_own_sessions_name_no_cluster_that_one_does_not_see(play: Play) -> None:
    """A token may be for a cluster whose grant is gone since."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"), ("operator", "sueden"))
        for side in SIDES:
            wanted = {"description": f"of-{side[0]}", "cluster": side}
            made = await world.ok("POST", "/v1/sessions/tokens", wanted, role="eve")
            world.tokens[side] = made["token"]
        # A token that is for less shows itself: what else its user has is none of its business.
        for side in SIDES:
            (own,) = (await world.ok("GET", "/v1/sessions", role=side))["items"]
            assert (own["description"], own["cluster_name"]) == (f"of-{side[0]}", side)
        grants = await world.ok("GET", "/v1/users/eve/grants")
        (there,) = (one for one in grants["items"] if one["cluster_name"] == "sueden")
        answer = await world.call("DELETE", f"/v1/users/eve/grants/{there['grant']['id']}")
        assert answer.status_code == 204
        listed = await world.ok("GET", "/v1/sessions", role="eve")
        assert [one["description"] for one in listed["items"]] == ["of-s", "of-n", ""]
        assert [one["cluster_name"] for one in listed["items"]][1:] == ["norden", None]
        assert "sueden" not in str(listed)
        others = await world.ok("GET", "/v1/sessions?user=eve")
        assert others["items"][0]["cluster_name"] == "sueden"

    play(story)


@pytest.mark.bad_input("token for what its user has no more")
def test_a_token_that_is_good_for_nothing_says_so(play: Play) -> None:
    """And not that there is nothing: a backup of nothing would look like a backup."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("operator", "norden"))
        wanted = {"description": "backup", "cluster": "norden"}
        made = await world.ok("POST", "/v1/sessions/tokens", wanted, role="eve")
        world.tokens["program"] = made["token"]
        assert len((await world.ok("GET", "/v1/vms", role="program"))["items"]) == 1
        (grant,) = (await world.ok("GET", "/v1/users/eve/grants"))["items"]
        await world.call("DELETE", f"/v1/users/eve/grants/{grant['grant']['id']}")
        for method, path in (("GET", "/v1/vms"), ("GET", "/v1/users"), ("POST", "/v1/vms")):
            answer = await world.call(method, path, role="program")
            check(answer, 403, "problem.token.powerless", None)
        facade = await world.call("GET", "/ovirt-engine/api/vms", role="program")
        assert facade.status_code == 403
        # Its user has no roles either, and is told by empty lists as before; what is their own they may see and end.
        assert (await world.ok("GET", "/v1/vms", role="eve"))["items"] == []
        assert (await world.ok("GET", "/v1/sessions/current", role="program"))["user"] == "eve"

    play(story)


KEY = {"Idempotency-Key": "0123456789abcdef"}


def test_a_kept_refusal_names_nothing_of_the_other_cluster(play: Play) -> None:
    """A refusal that comes after the first write is its request's answer, as it was told."""

    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))

        async def refused(caller: Any, *_more: Any) -> Any:
            async with world.store.write() as tx:
                await tell(tx, "norden")
            raise Conflict(f"vm-sueden ({id_of('vm', 'sueden')}) has it")

        world.control.vms.start = refused
        path = "/v1/vms/vm-norden/start"
        for replayed in (None, "true"):
            answer = await world.call("POST", path, {}, role="eve", headers=KEY)
            assert answer.status_code == 409
            assert answer.json()["detail"] == f"{UNSEEN} ({UNSEEN}) has it", answer.text
            assert answer.headers.get("Idempotent-Replayed") == replayed

    play(story)


def test_a_kept_answer_is_for_who_may_still_do_that(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("administrator", "norden"))
        body = {"name": "new", "path": "/srv/new"}
        made = await world.call("POST", "/v1/storage-domains", body, role="eve", headers=KEY)
        assert made.status_code == 201 and made.json()["domain"]["cluster_id"] == id_of(
            "cluster", "norden"
        )
        again = await world.call("POST", "/v1/storage-domains", body, role="eve", headers=KEY)
        assert again.content == made.content and again.headers["Idempotent-Replayed"] == "true"
        grants = await world.ok("GET", "/v1/users/eve/grants")
        path = f"/v1/users/eve/grants/{grants['items'][0]['grant']['id']}"
        assert (await world.call("DELETE", path)).status_code == 204
        gone = await world.call("POST", "/v1/storage-domains", body, role="eve", headers=KEY)
        assert gone.status_code == 403, gone.text
        # The only cluster that she sees is another one now, and so it is another request.
        wanted = {"role": "administrator", "cluster": "sueden"}
        await world.ok("POST", "/v1/users/eve/grants", wanted)
        other = await world.call("POST", "/v1/storage-domains", body, role="eve", headers=KEY)
        assert other.json()["code"] == "problem.key.reused", other.text

    play(story)


@pytest.mark.bad_input("id of a cluster that the user may not see")
def test_a_token_for_an_unseen_cluster_is_one_for_an_unknown_one(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        said = set()
        for name in ("sueden", "suedem", id_of("cluster", "sueden"), id_of("cluster", "x")):
            body = {"description": "ci", "cluster": name}
            answer = await world.call("POST", "/v1/sessions/tokens", body, role="eve")
            assert answer.status_code == 404, name
            shown = answer.json() | {"detail": answer.json()["detail"].replace(name, "X")}
            said.add(str(sorted(shown.items())))
        assert len(said) == 1, said

    play(story)


def test_an_operation_is_of_its_cluster_also_when_its_subject_is_gone(play: Play) -> None:
    async def story(world: Any) -> None:
        await fill(world)
        await add_user(world, "eve", ("viewer", "norden"))
        async with world.store.write() as tx:
            await tx.connection.execute(delete(vm))
        found = await world.ok("GET", "/v1/operations", role="eve")
        assert [one["id"] for one in found["items"]] == [id_of("operation", "norden")]

    play(story)


def _text_fields(kind: Any, seen: set[Any]) -> set[str]:
    """Names of all fields of a request that hold text, wherever they stand in it."""
    if kind in seen:
        return set()
    seen.add(kind)
    found = set()
    for field in msgspec.structs.fields(kind):
        for one in _parts(msgspec.inspect.type_info(field.type)):
            if isinstance(one, msgspec.inspect.StrType):
                found.add(field.name)
            elif isinstance(one, msgspec.inspect.StructType):
                found |= _text_fields(one.cls, seen)
    return found


def _parts(info: Any) -> list[Any]:
    if isinstance(info, msgspec.inspect.UnionType):
        return [part for one in info.types for part in _parts(one)]
    if isinstance(info, msgspec.inspect.VarTupleType):
        return _parts(info.item_type)
    return [info]


NO_REFERENCE = {
    *(
        "name",
        "device",
        "description",
        "path",
        "format",
        "image",
        "bus",
        "bridge",
        "mac",
        "model",
        "action",
    ),
    *("architecture", "kind", "pool", "user", "keyring", "monitors", "names", "ticket", "address"),
    *("force_reason", "contains", "after", "search", "code", "subject"),
}
"""Text that names nothing of another cluster: names of what is made, parts of what is named beside it, plain text."""


WHOLE_DOCUMENTS = (Policy, PowerPut)


def test_each_text_of_a_request_is_known_as_a_reference_or_as_none() -> None:
    """Of routes whose caller may be let in by a cluster: a field that names something must be looked up."""
    for route in ROUTES:
        if route.role == OPEN or route.scope is not Scope.CLUSTER:
            continue
        texts: set[str] = set()
        for kind in (route.query, route.body):
            if route.permission is not Permission.VIEW:
                texts |= _text_fields(kind, set())
        if route.body in WHOLE_DOCUMENTS:
            assert not texts & set(FIELD_KINDS), f"{route.name}: nothing in it names a thing"
            continue
        unknown = texts - set(FIELD_KINDS) - NO_REFERENCE
        assert not unknown, f"{route.name}: {sorted(unknown)}"


def test_each_path_of_a_cluster_names_something_that_is_looked_up() -> None:
    assert set(PATH_KINDS.values()) <= KINDS and set(FIELD_KINDS.values()) <= KINDS

    def names(route: Route) -> bool:
        word = route.path.split("/")[2]
        return any((word, name) in PATH_KINDS for name in route.parameters)

    for route in ROUTES:
        if route.role != OPEN and route.scope is Scope.CLUSTER and route.parameters:
            assert names(route) or route.permission is Permission.VIEW, route.name
