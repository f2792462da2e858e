"""Every change leaves an event with who made it, what was before and what is after: each route of the table that is no look, once."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest
from filled_installation import POWER, SIGN_INS, VM, ObedientHosts, fill
from test_routes import record

from virtha.api.table import ROUTES
from virtha.model.codes import REGISTRY
from virtha.model.event import Event
from virtha.model.facts import RunsWith
from virtha.model.vm import Hardware
from virtha.store.events import EventFilter, events_after

CHANGING = {route.name for route in ROUTES if route.method != "GET"}
WHO = "administrator"
NOT_THERE, THERE = "", "told"
NO_CHANGE = {
    **dict.fromkeys(
        (
            "POST /v1/vms/{ref}/start",
            "POST /v1/vms/{ref}/shutdown",
            "POST /v1/vms/{ref}/power-off",
            "POST /v1/vms/{ref}/reboot",
            "POST /v1/vms/{ref}/reset",
            "POST /v1/vms/{ref}/pause",
            "POST /v1/vms/{ref}/resume",
            "POST /v1/vms/{ref}/migrate",
            "POST /v1/vms/{ref}/cancel-migration",
            "POST /v1/vms/{ref}/snapshots/{id}/revert",
            "POST /v1/operations/{id}/cancel",
            "POST /v1/hosts/{ref}/power",
        ),
        "an order about what runs: nothing that anybody set is another afterwards; whose it is, test_orders_told.py looks at",
    ),
    **dict.fromkeys(
        (
            "POST /v1/hosts/{ref}/scan",
            "POST /v1/hosts/{ref}/power/{key}/status",
            "POST /v1/hosts/{ref}/power/{key}/test",
            "POST /v1/hosts/{ref}/death-tickets",
            "POST /v1/vms/{ref}/console-tickets",
            "POST /v1/receivers/{ref}/test",
            "POST /v1/deliveries/{id}/retry",
            "POST /v1/sign-ins",
        ),
        "it looks, tries or begins: nothing that anybody set is another afterwards",
    ),
    **dict.fromkeys(
        ("POST /v1/join", "POST /v1/join/migration", "POST /v1/join/renew"),
        "a host asks, which is no user: host.joined and the certificates' events name it",
    ),
    **dict.fromkeys(
        ("POST /v1/sessions", "POST /v1/sign-ins/finish", "DELETE /v1/sessions/current"),
        "somebody's own coming and going: user.signed_in says whose, and from where",
    ),
    "POST /v1/users/{ref}/unlock": "ends a brake that nobody set (user.unlocked says whose)",
    "POST /v1/hosts/{ref}/maintenance": "it is on or off: which, the code says; an engine must lead for it",
    "POST /v1/hosts/{ref}/confirm-dead": "a word to the engine, which takes it for a proof: host.death_confirmed names whose it was",
    "POST /v1/vms/{ref}/free": "a word to the engine, which keeps none down here: vm.freed names whose it was",
    "DELETE /v1/clusters/{ref}/brake": "a word to the engine, which brakes nothing here: fence.brake.lifted names whose it was",
    "POST /v1/vms/{ref}/release": "takes an adopted VM from the records, and there is none here: vm.released holds what it was",
    "POST /v1/hosts/{ref}/adopt": "played hosts have no foreign domains; vm.adopted holds the VM and what was changed of it",
}
"""Routes whose events need no before and after, or can't be had here, and why."""
KEY, NEXT_KEY = "0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"
NEW_WORD, CLIENT_SECRET = "a new word to sign in", "known to the provider"
HOOK = {"type": "webhook", "url": "https://hooks.example.org/T0/whoever-knows-this-may-write"}
SNMP = {"type": "snmp", "host": "traps.example.org", "version": "2c"}
REDFISH = {"driver": "redfish", "user": "switcher", "certificate": "full"}
MATCHER = {"codes": ["host.*"]}
SECRETS = (KEY, NEXT_KEY, NEW_WORD, CLIENT_SECRET, "whoever-knows-this-may-write", "let me in")


class Audit:
    """Sends changes, and looks at what is told of each."""

    def __init__(self, world: Any, hosts: ObedientHosts) -> None:
        self.world, self.hosts = world, hosts
        self.tried: set[str] = set()
        self.wrong: list[tuple[str, str, dict[str, Any]]] = []

    async def events(self, after: int = 0, code: str = "*") -> list[Event]:
        async with self.world.store.read() as tx:
            return list(await events_after(tx, EventFilter(code=code), after, 10_000))

    async def send(self, route: str, body: Any = None, **names: str) -> tuple[list[Event], Any]:
        """The events of its own caller that it left, and its answer."""
        assert route in CHANGING, route
        self.tried.add(route)
        async with self.world.store.read() as tx:
            began = await tx.revision_now()
        method, _, path = route.partition(" ")
        answer = await self.world.ok(method, path.format(**names), body)
        await self.hosts.obey()
        if answer and "steps" in answer:
            path = f"/v1/operations/{answer['id']}?wait_ms=10000"
            assert (await self.world.ok("GET", path))["state"] == "done", answer
        return [one for one in await self.events(began) if one.user == WHO], answer

    async def change(
        self,
        route: str,
        code: str,
        body: Any = None,
        *,
        before: Any = THERE,
        after: Any = THERE,
        fields: dict[str, Any] | None = None,
        **names: str,
    ) -> Any:
        """``before``, ``after``: what must be in them; nothing at all where it is NOT_THERE."""
        events, answer = await self.send(route, body, **names)
        found = [one for one in events if one.code == code]
        if len(found) != 1:
            self.wrong.append((route, f"{len(found)} events", {"codes": [e.code for e in events]}))
            return answer
        told = found[0].fields
        for key, wanted in (("before", before), ("after", after)):
            if (key in told) != (wanted is not NOT_THERE):
                self.wrong.append((route, f"{key} is there or isn't", told))
            elif isinstance(wanted, dict) and json.loads(str(told[key])) != wanted:
                self.wrong.append((route, f"{key} is another", told))
        if THERE is before is after and told.get("before") == told.get("after"):
            self.wrong.append((route, "nothing differs", told))
        if not (fields or {}).items() <= told.items():
            self.wrong.append((route, "fields", told))
        if "?" in found[0].message:
            self.wrong.append((route, found[0].message, told))
        return answer

    async def made(self, route: str, code: str, body: Any, **more: Any) -> Any:
        return await self.change(route, code, body, before=NOT_THERE, **more)

    async def gone(self, route: str, code: str, **more: Any) -> Any:
        return await self.change(route, code, after=NOT_THERE, **more)

    async def removed(
        self, route: str, code: str, kind: str, ref: str, fields: dict[str, Any]
    ) -> None:
        """All that was shown of it is told, but for what is another in its last moments, or written otherwise."""
        was = (await self.world.ok("GET", route.partition(" ")[2].format(ref=ref)))[kind]
        await self.gone(route, code, fields=fields, ref=ref)
        told = next(one.fields for one in reversed(await self.events(code=code)))
        before = json.loads(str(told.get("before", "{}")))
        for one in ("id", "revision", "state", "created"):
            was.pop(one, None)
            before.pop(one, None)
        if before != {name: one for name, one in was.items() if one is not None}:
            self.wrong.append((route, "before is another than it was shown", told))

    async def named(
        self, route: str, code: str, fields: dict[str, Any], body: Any = None, **names: str
    ) -> Any:
        """Of what its fields say all there is to say."""
        gone = {"before": NOT_THERE, "after": NOT_THERE}
        return await self.change(route, code, body, fields=fields, **gone, **names)


async def access(audit: Audit) -> None:
    word = {"password": "let me in for once", "role": "viewer"}
    await audit.made("POST /v1/users", "user.created", {"name": "dan", **word})
    await audit.change(
        "PATCH /v1/users/{ref}",
        "user.changed",
        {"password": NEW_WORD, "role": "operator"},
        ref="dan",
        before={"role": "viewer"},
        after={"role": "operator"},
        fields={"password": "changed"},
    )
    role = {"name": "starter", "permissions": ["vms.operate"]}
    await audit.made("POST /v1/roles", "role.created", role)
    await audit.change(
        "PATCH /v1/roles/{ref}", "role.changed", {"description": "starts VMs"}, ref="starter"
    )
    fields = {"user": "dan", "role": "starter", "where": "default"}
    granted = {"role": "starter", "cluster": "default"}
    route = "POST /v1/users/{ref}/grants"
    given = await audit.named(route, "user.granted", fields, granted, ref="dan")
    route = "DELETE /v1/users/{ref}/grants/{id}"
    await audit.named(route, "user.revoked", fields, ref="dan", id=given["grant"]["id"])
    await audit.gone("DELETE /v1/roles/{ref}", "role.deleted", ref="starter")
    await audit.gone("DELETE /v1/users/{ref}", "user.deleted", ref="dan", fields={"user": "dan"})
    token = {"description": "backup", "expires_ms": 86_400_000}
    made = await audit.made("POST /v1/sessions/tokens", "session.token_created", token)
    fields = {"user": WHO, "description": "backup"}
    one = made["session"]["id"]
    await audit.named("DELETE /v1/sessions/{id}", "session.ended", fields, id=one)
    made = await audit.made("POST /v1/tokens", "token.created", {"cluster": "default"})
    one = made["token"]["id"]
    await audit.gone("DELETE /v1/tokens/{id}", "token.deleted", fields={"token": one}, id=one)


async def sign_in_provider(audit: Audit) -> None:
    route, code = "PUT /v1/sign-in-provider", "sign_in_provider.changed"
    await audit.gone("DELETE /v1/sign-in-provider", "sign_in_provider.removed")
    secret = {"client_secret": CLIENT_SECRET}
    told = {"secrets_changed": "client_secret"}
    await audit.made(route, code, SIGN_INS | secret, fields=told)
    kept = {name: one for name, one in SIGN_INS.items() if name != "client_secret"}
    await audit.change(
        route,
        code,
        {**kept, "roles": {"vm-admins": "administrator", "staff": "operator"}},
        before={"roles": {}},
        after={"roles": {"staff": "operator"}},
    )
    await audit.change(route, code, SIGN_INS | secret, fields=told)


async def clusters(audit: Audit) -> None:
    await audit.made("POST /v1/clusters", "cluster.created", {"name": "third"})
    await audit.change(
        "PATCH /v1/clusters/{ref}",
        "cluster.changed",
        {"description": "in the cellar"},
        ref="third",
        before={"description": ""},
        after={"description": "in the cellar"},
    )
    await audit.change(
        "PUT /v1/clusters/{ref}/policy",
        "policy.changed",
        {"restart": {"restarts_max": 7}},
        ref="third",
        before={"restart": {"restarts_max": 5}},
        after={"restart": {"restarts_max": 7}},
    )
    domain = {"name": "ds9", "path": "/srv/ds9", "cluster": "third"}
    await audit.made("POST /v1/storage-domains", "storage.added", domain)
    await audit.gone("DELETE /v1/storage-domains/{ref}", "storage.removed", ref="ds9")
    await audit.gone("DELETE /v1/clusters/{ref}", "cluster.deleted", ref="third")
    route, code = "PUT /v1/settings/{key}", "setting.changed"
    await audit.change(route, code, {"value": "1h"}, key="session.lifetime")
    await audit.change("DELETE /v1/settings/{key}", code, key="session.lifetime")
    await audit.change("PUT /v1/hold", "hold.set", {"reason": "works in the cellar"})
    await audit.change(
        "DELETE /v1/hold",
        "hold.lifted",
        before={"hold": "works in the cellar"},
        after={"hold": None},
    )


async def power(audit: Audit) -> None:
    route, code = "PUT /v1/clusters/{ref}/power/{key}", "power.settings.changed"
    names = {"ref": "default", "key": "bmcs"}
    await audit.made(route, code, {"settings": REDFISH}, **names)
    await audit.change(
        route,
        code,
        {"settings": REDFISH | {"certificate": "none"}, "secrets": {"password": KEY}},
        **names,
        before={"settings": {"certificate": "full"}, "secrets": []},
        after={"settings": {"certificate": "none"}, "secrets": ["password"]},
        fields={"secrets_changed": "password"},
    )
    await audit.gone("DELETE /v1/clusters/{ref}/power/{key}", "power.settings.removed", **names)
    route = "PUT /v1/hosts/{ref}/power/{key}"
    names = {"ref": "h1", "key": "bmc"}
    elsewhere = POWER | {"address": "another-bmc"}
    await audit.change(
        route,
        code,
        {"settings": elsewhere, "secrets": {"password": KEY}},
        **names,
        before={"settings": {"address": "bmc-h1"}, "secrets": []},
        after={"settings": {"address": "another-bmc"}, "secrets": ["password"]},
    )
    again = {"settings": elsewhere, "secrets": {"password": NEXT_KEY}}
    told = {"secrets_changed": "password"}
    await audit.change(route, code, again, **names, before={}, after={}, fields=told)
    await audit.gone("DELETE /v1/hosts/{ref}/power/{key}", "power.settings.removed", **names)


async def notifications(audit: Audit) -> None:
    wanted = {"name": "hook", "settings": HOOK, "secrets": {"secret": KEY}}
    await audit.made("POST /v1/receivers", "notify.receiver.created", wanted)
    route, code = "PATCH /v1/receivers/{ref}", "notify.receiver.changed"
    moved = {"settings": HOOK | {"url": HOOK["url"].replace("hooks", "elsewhere")}}
    await audit.change(route, code, moved, ref="hook")
    moved = {"settings": HOOK | {"url": moved["settings"]["url"] + "-or-that"}}
    await audit.change(route, code, moved, ref="hook")
    traps = {"name": "traps", "settings": SNMP, "secrets": {"community": KEY}}
    await audit.made("POST /v1/receivers", "notify.receiver.created", traps)
    await audit.change(
        route,
        code,
        {
            "settings": SNMP | {"host": "other.example.org"},
            "secrets": {"community": NEXT_KEY},
        },
        ref="traps",
        before={"settings": {"host": "traps.example.org"}},
        after={"settings": {"host": "other.example.org"}},
        fields={"secrets_changed": "community"},
    )
    route = {"receiver": "hook", "name": "narrow", "severity": "info", "cluster": "default"}
    await audit.made("POST /v1/subscriptions", "notify.subscription.created", route)
    await audit.change(
        "PATCH /v1/subscriptions/{ref}",
        "notify.subscription.changed",
        {"severity": "alert"},
        ref="narrow",
        before={"severity": "info"},
        after={"severity": "alert"},
    )
    code = "notify.subscription.removed"
    await audit.gone("DELETE /v1/subscriptions/{ref}", code, ref="narrow")
    await audit.gone("DELETE /v1/receivers/{ref}", "notify.receiver.removed", ref="hook")
    silence = {"reason": "works", "matcher": MATCHER, "duration_ms": 3_600_000}
    made = await audit.made("POST /v1/silences", "notify.silence.set", silence)
    one = made["silence"]["id"]
    await audit.change("POST /v1/silences/{id}/end", "notify.silence.ended", id=one)
    wanted = {"name": "calm", "source": MATCHER, "target": {"codes": ["vm.*"]}}
    await audit.made("POST /v1/inhibitions", "notify.inhibition.created", wanted)
    fields = {"inhibition": "calm"}
    route = "DELETE /v1/inhibitions/{ref}"
    await audit.gone(route, "notify.inhibition.removed", fields=fields, ref="calm")


async def runs_with_what_it_has(audit: Audit, name: str) -> None:
    """Its host says so: what is changed of it afterwards waits for its next start."""
    view = await audit.world.control.vms.get(name)
    (host_id,), vm = view.status.holders, view.vm
    having = {one: getattr(vm, one) for one in Hardware.__struct_fields__ if hasattr(vm, one)}
    fact = RunsWith(vm_id=vm.id, incarnation=view.status.incarnation, hardware=Hardware(**having))
    audit.hosts.sequences[host_id] += 1
    await record(audit.world, host_id, audit.hosts.sequences[host_id], fact)


async def vms(audit: Audit) -> None:
    code = "vm.changed"
    await audit.made("POST /v1/vms", "vm.created", {"name": "web9", **VM})
    await audit.change(
        "PATCH /v1/vms/{ref}",
        code,
        {"ha": False, "description": "a shop"},
        ref="web9",
        before={"ha": True, "description": ""},
        after={"ha": False, "description": "a shop"},
    )
    route = "PUT /v1/vms/{ref}/watchdog"
    await audit.change(
        route,
        code,
        {"model": "i6300esb", "action": "poweroff"},
        ref="web9",
        before={"watchdog": {"action": "reset"}},
        after={"watchdog": {"action": "poweroff"}},
    )
    await audit.change("DELETE /v1/vms/{ref}/watchdog", code, ref="web9")
    card = {"model": "i6300esb", "action": "reset"}
    await audit.change("POST /v1/vms/{ref}/watchdog", code, card, ref="web9")
    disk = {"name": "more", "storage_domain": "ds1", "size_bytes": 1 << 30}
    await audit.change("POST /v1/vms/{ref}/disks", code, disk, ref="web9")
    larger = {"size_bytes": 1 << 31}
    names = {"ref": "web9", "disk": "more"}
    await audit.change(
        "POST /v1/vms/{ref}/disks/{disk}/resize",
        "disk.resized",
        larger,
        **names,
        before={"size_bytes": 1 << 30},
        after=larger,
    )
    await audit.change("DELETE /v1/vms/{ref}/disks/{disk}", code, **names)
    await audit.change("POST /v1/vms/{ref}/nics", code, {"bridge": "br0"}, ref="web9")
    cards = (await audit.world.ok("GET", "/v1/vms/web9"))["vm"]["nics"]
    route = "DELETE /v1/vms/{ref}/nics/{nic}"
    await audit.change(route, code, ref="web9", nic=cards[-1]["id"])
    await runs_with_what_it_has(audit, "web2")
    larger = {"memory_bytes": 1 << 28}
    await audit.change("PATCH /v1/vms/{ref}", code, larger, ref="web2")
    route = "POST /v1/vms/{ref}/drop-pending"
    had = {"memory_bytes": VM["memory_bytes"]}
    await audit.change(route, "vm.pending_dropped", ref="web2", before=larger, after=had)
    route = "POST /v1/vms/{ref}/snapshots"
    await audit.made(route, "snapshot.created", {"name": "now"}, ref="web9")
    (taken,) = (await audit.world.ok("GET", "/v1/vms/web9/snapshots"))["items"]
    route = "DELETE /v1/vms/{ref}/snapshots/{id}"
    await audit.gone(route, "snapshot.deleted", ref="web9", id=taken["id"])
    wanted = {"name": "shop", "vm": "web9"}
    await audit.made("POST /v1/templates", "template.created", wanted)
    code, route = "template.changed", "PUT /v1/templates/{ref}/watchdog"
    await audit.change(
        route,
        code,
        {"model": "i6300esb", "action": "poweroff"},
        ref="shop",
        before={"watchdog": {"action": "reset"}},
        after={"watchdog": {"action": "poweroff"}},
    )
    none = {"watchdog": None}
    had = {"watchdog": {"model": "i6300esb", "action": "poweroff"}}
    route = "DELETE /v1/templates/{ref}/watchdog"
    await audit.change(route, code, ref="shop", before=had, after=none)
    route = "POST /v1/templates/{ref}/watchdog"
    await audit.change(route, code, card, ref="shop", before=none, after={"watchdog": card})
    route = "POST /v1/templates/{ref}/vms"
    await audit.made(route, "vm.created", {"name": "web10"}, ref="shop")
    fields = {"vm": "web10"}
    await audit.removed("DELETE /v1/vms/{ref}", "vm.deleted", "vm", "web10", fields)
    fields = {"name": "shop"}
    await audit.removed(
        "DELETE /v1/templates/{ref}", "template.deleted", "template", "shop", fields
    )


async def host_removed(audit: Audit) -> None:
    """Its power device goes with it."""
    await audit.hosts.join("h9")
    elsewhere = {"settings": POWER | {"address": "bmc-h9"}, "secrets": {"password": KEY}}
    await audit.world.ok("PUT", "/v1/hosts/h9/power/bmc", elsewhere)
    async with audit.world.store.read() as tx:
        began = await tx.revision_now()
    fields = {"name": "h9"}
    await audit.removed("DELETE /v1/hosts/{ref}", "host.removed", "host", "h9", fields)
    (gone,) = await audit.events(began, "power.settings.removed")
    assert gone.user == WHO and "bmc-h9" in str(gone.fields["before"])


async def beat_on(hosts: ObedientHosts) -> None:
    while True:
        hosts.beat()
        await asyncio.sleep(0.02)


@pytest.mark.req("L6")
def test_every_change_is_told_with_who_and_what_was_before_and_is_after(
    play: Callable[..., Any],
) -> None:
    async def story(world: Any) -> None:
        hosts = ObedientHosts(world)
        # However busy the machine is, they beat. What they are told to do they do in turn with the requests: those hold up this loop,
        # and a transaction that is open in it would lock each of them out of the database.
        living = asyncio.create_task(beat_on(hosts))
        try:
            await look(Audit(world, hosts))
        finally:
            living.cancel()
            await asyncio.gather(living, return_exceptions=True)

    async def look(audit: Audit) -> None:
        world, hosts = audit.world, audit.hosts
        await fill(world, hosts)
        for part in (access, sign_in_provider, clusters, power, notifications, vms, host_removed):
            await part(audit)
        assert audit.wrong == []
        assert audit.tried.isdisjoint(NO_CHANGE)
        assert audit.tried | NO_CHANGE.keys() == CHANGING, "one is tried, or has its reason"
        for event in await audit.events():
            told = json.dumps([event.fields, event.message])
            known = set(REGISTRY[event.code].fields)
            kept = {"before", "after", "secrets_changed"} & event.fields.keys()
            assert kept <= known, "routes may look for them"
            assert not any(one in told for one in SECRETS), event.code

    play(story)
