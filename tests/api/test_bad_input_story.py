"""Bad input as a user meets it: the real command line and agent protocol against a real server process.

Each refusal names the field, what is allowed or what to do, has its code and exit code; and the
installation is afterwards what it was before.
"""

import json
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import pytest
from played_host import join_host
from server_process import PASSWORD, Done, command, environment
from story import Story, refused, seconds, wait_until

from virtha.agent.paths import AgentPaths


def disk_path_of(story: Story, vm: str) -> str:
    path: str = json.loads(story.ok("vm", "show", vm, "-o", "json"))["vm"]["disks"][0]["path"]
    return path


CREATE = ("vm", "create", "web9", "--memory", "128MiB")
COMMANDS: list[tuple[tuple[str, ...], int, str, tuple[str, ...]]] = [
    (
        (*CREATE, "--machine", "pc", "--watchdog", "itco:reset"),
        2,
        "problem.watchdog.model",
        ("watchdog.model: 'itco' does not fit x86_64 machine type pc", "allowed: i6300esb, ib700"),
    ),
    (
        (*CREATE, "--watchdog", "i6300esb"),
        2,
        "problem.watchdog.action",
        ("watchdog.action: the action is missing", "allowed: reset, poweroff", "fix: write MODEL"),
    ),
    (
        ("vm", "create", "web1"),
        1,
        "problem.name_taken",
        ("name: there is a VM 'web1' already", "fix: choose another name"),
    ),
    (
        ("cluster", "create", "default"),
        1,
        "problem.name_taken",
        ("name: there is a cluster 'default' already", "fix: choose another name"),
    ),
    (
        (*CREATE, "--disk", "path=../../etc/shadow,format=raw"),
        2,
        "problem.disk.outside",
        (
            "--disk: disks[0].path: '../../etc/shadow' is not inside",
            "below /srv/ds1",
            "fix: write for",
        ),
    ),
    (
        (*CREATE, "--image", "tiny", "--disk", "size=1MiB", "--disk", "path=/etc/shadow"),
        2,
        "problem.disk.outside",
        # The second --disk of this command, whatever disks the server adds to them.
        ("--disk: disks[1].path: '/etc/shadow' is not inside", "below /srv/ds1", "fix: write for"),
    ),
    (
        (*CREATE, "--disk", "path=WEB1S"),
        1,
        "problem.disk.in_use",
        ("--disk: disks[0].path: ", "belongs to VM web1", "fix: choose another path"),
    ),
    (
        (*CREATE, "--memory", "9GiB"),
        2,
        "problem.memory.beyond",
        ("--memory: 9GiB is more than any host", "allowed: up to 8GiB", "fix: ask for less"),
    ),
    (
        ("vm", "edit", "web1", "--memory", "1000GiB"),
        2,
        "problem.memory.beyond",
        ("--memory: ", "allowed: up to 8GiB", "fix: ask for less"),
    ),
    (
        ("incident", "show", "h1"),
        2,
        "problem.invalid",
        ("id: 'h1' is no id of an incident", "allowed: a UUID", "fix: 'virtha incident list'"),
    ),
]


@pytest.mark.req("W1", "W2")
@pytest.mark.bad_input(
    "model that does not fit the machine",
    "missing action",
    "name taken",
    "disk path outside the domain",
    "disk of another VM",
    "memory beyond any host",
    "incident that is none",
    story=True,
)
@pytest.mark.parametrize(("words", "code", "problem", "told"), COMMANDS)
def test_a_command_is_refused_and_nothing_is_changed(
    story: Story, words: tuple[str, ...], code: int, problem: str, told: tuple[str, ...]
) -> None:
    before, orders = story.state(), len(story.host.orders)
    taken = disk_path_of(story, "web1")
    refused(story.run(*(word.replace("WEB1S", taken) for word in words)), code, problem, *told)
    assert story.state() == before
    assert len(story.host.orders) == orders, "no host was told to do anything"


REQUESTS: list[tuple[str, str, Any, int, str, str, str]] = [
    (
        "POST",
        "/v1/vms/web1/watchdog",
        {"model": "ib700", "action": "reset"},
        409,
        "problem.watchdog.second",
        "watchdog",
        "replace it by PUT, or remove it first",
    ),
    (
        "POST",
        "/v1/vms",
        {"name": "web9", "memory_bytes": 1 << 28, "watchdog": {"model": "i6300esb"}},
        400,
        "problem.watchdog.action",
        "watchdog.action",
        "reset",
    ),
    (
        "POST",
        "/v1/vms",
        {"name": "web9", "memory_bytes": 1 << 28, "watchdgo": {}},
        400,
        "problem.unknown_field",
        "watchdgo",
        "did you mean watchdog?",
    ),
    (
        "POST",
        "/v1/vms",
        {"name": "web9", "memory_bytes": 1 << 28, "disks": [{"size_bytes": 1, "pth": "x"}]},
        400,
        "problem.unknown_field",
        "disks[0].pth",
        "did you mean path?",
    ),
    (
        "PATCH",
        "/v1/vms/web1",
        {"description": "changed", "memroy_bytes": 1},
        400,
        "problem.unknown_field",
        "memroy_bytes",
        "did you mean memory_bytes?",
    ),
    (
        "PUT",
        "/v1/clusters/default/policy",
        None,
        400,
        "problem.invalid",
        "body",
        "send the whole object",
    ),
]


@pytest.mark.req("W1")
@pytest.mark.bad_input("second watchdog", "missing action", "unknown field", story=True)
@pytest.mark.parametrize(("method", "path", "body", "status", "problem", "field", "told"), REQUESTS)
def test_a_request_is_refused_and_nothing_is_changed(
    story: Story,
    method: str,
    path: str,
    body: Any,
    status: int,
    problem: str,
    field: str,
    told: str,
) -> None:
    before = story.state()
    with story.rest() as client:
        answer = client.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    found = answer.json()
    assert (found["code"], found["field"]) == (problem, field)
    assert told in json.dumps([found["fix"], found["allowed"]])
    assert story.state() == before


@pytest.mark.bad_input("unknown field", story=True)
def test_a_misspelled_policy_and_setting_change_nothing(story: Story) -> None:
    before = story.state()
    policy = json.loads(story.ok("policy", "show", "-o", "json"))
    policy["restart"]["restarts_maks"] = policy["restart"].pop("restarts_max") + 1
    with story.rest() as client:
        answer = client.put("/v1/clusters/default/policy", json=policy)
    assert answer.status_code == 400
    assert answer.json()["field"] == "restart.restarts_maks"
    assert answer.json()["fix"] == "did you mean restarts_max?"
    done = story.run("setting", "set", "grant.duraton", "20s")
    refused(done, 3, "problem.not_found", "did you mean grant.duration")
    assert story.state() == before


@pytest.mark.req("X1")
@pytest.mark.bad_input("start with no host that fits", story=True)
def test_a_start_that_no_host_can_take_says_why_for_each(story: Story) -> None:
    for name in ("big1", "big2"):
        story.ok("vm", "create", name, "--image", "tiny", "--memory", "6GiB")
    story.ok("vm", "start", "big1")
    before, orders = story.state(), len(story.host.orders)
    told = "no host can take big2 (h1: 6GiB needed, 2GiB free; h2: its agent is not connected)"
    refused(story.run("vm", "start", "big2"), 4, "problem.no_host_fits", told, "fix: ")
    refused(story.run("vm", "start", "big2", "--host", "h2"), 4, "problem.no_host_fits", "h2: ")
    assert story.state() == before
    assert len(story.host.orders) == orders
    # Several at once: the one that can't be is told, the others are started all the same.
    story.ok("vm", "create", "small", "--image", "tiny", "--memory", "128MiB")
    refused(story.run("vm", "start", "big2", "small"), 4, "problem.no_host_fits", "big2")
    assert json.loads(story.ok("vm", "show", "small", "-o", "json"))["status"]["state"] == "running"


@pytest.mark.req("W1", "W2")
@pytest.mark.bad_input(
    "second watchdog",
    "model that does not fit the machine",
    "missing action",
    "watchdog of a template that takes none",
    story=True,
)
def test_a_templates_watchdog_is_checked_as_a_vms(story: Story) -> None:
    story.ok(
        "vm", "create", "old1", "--image", "tiny", "--machine", "pc", "--watchdog", "ib700:pause"
    )
    story.ok("template", "create", "gold", "--from", "old1")
    before, orders = story.state(), len(story.host.orders)
    change = ("template", "watchdog", "set", "gold")
    told = ("allowed: i6300esb, ib700", "fix: ")
    refused(story.run(*change, "tardis:reset"), 2, "problem.watchdog.model", "'tardis'")
    wrong = "'itco' does not fit x86_64 machine type pc"
    refused(story.run(*change, "itco:reset"), 2, "problem.watchdog.model", wrong, *told)
    refused(story.run(*change, "ib700"), 2, "problem.watchdog.action", "the action is missing")
    done = story.run("template", "watchdog", "set", "glod", "ib700:reset")
    refused(done, 3, "problem.not_found", "gold")
    with story.rest() as client:
        card = {"model": "i6300esb", "action": "reset"}
        answer = client.post("/v1/templates/gold/watchdog", json=card)
    assert (answer.status_code, answer.json()["code"]) == (409, "problem.watchdog.second")
    assert story.state() == before
    assert len(story.host.orders) == orders, "no host was told to do anything"

    assert (
        story.ok(*change, "i6300esb:reset").strip() == "template gold has watchdog i6300esb:reset"
    )
    assert "reset" in story.ok("template", "watchdog", "show", "gold")
    story.ok("vm", "create", "new1", "--template", "gold")
    assert "i6300esb" in story.ok("vm", "watchdog", "show", "new1")
    story.ok("template", "watchdog", "remove", "gold")
    done = story.run("template", "watchdog", "show", "gold")
    refused(done, 3, "problem.not_found", "gold has no watchdog")


@pytest.mark.bad_input("wrong password", story=True)
def test_a_wrong_password_leaves_the_present_sign_in_as_it_is(story: Story) -> None:
    before = story.state()
    for password in ("wrong", PASSWORD + " ", PASSWORD.upper()):
        done = story.sign_in("admin", password)
        refused(done, 6, "problem.password.wrong", "user name or password is wrong")
    # Whether there is such a user is not told.
    nobody = story.run(
        *("login", story.url, "--user", "nobody", "--password-stdin"),
        *("--fingerprint", story.fingerprint),
        user="nobody",
        stdin="wrong\n",
    )
    assert nobody.stderr == done.stderr
    assert not (story.directory / "nobody").exists()
    assert "admin" in story.ok("whoami")
    assert story.state() == before
    assert story.sign_in("admin", PASSWORD).returncode == 0


@pytest.mark.bad_input("role that may not", story=True)
@pytest.mark.parametrize(
    ("words", "needed"),
    [
        (("vm", "create", "web9"), "operator"),
        (("vm", "start", "web1"), "operator"),
        (("vm", "delete", "web1", "--yes"), "operator"),
        (("hold", "because"), "operator"),
        (("token", "create"), "administrator"),
        (("token", "list"), "administrator"),
        (("host", "remove", "h2", "--yes"), "administrator"),
        (("setting", "set", "grant.duration", "20s"), "administrator"),
    ],
)
def test_a_role_that_may_not_is_told_which_may(
    story: Story, words: tuple[str, ...], needed: str
) -> None:
    before, orders = story.state(), len(story.host.orders)
    done = story.run(*words, user="eve")
    refused(done, 6, "problem.forbidden", f"eve has the role viewer; this needs {needed}", "fix: ")
    assert story.state() == before
    assert len(story.host.orders) == orders
    assert "h1" in story.ok("host", "list", user="eve")


def try_join(story: Story, url: str, token: str, name: str) -> Done:
    """`virtha agent join` on a new host that must stay as it was."""
    root = story.directory / f"refused-{name}"
    words = ("agent", "join", url, "--token", token, "--name", name, "--root", str(root))
    done = command(*words, VIRTHA_LIBVIRT_HOOKS=str(root / "hooks"))
    paths = AgentPaths(root=str(root))
    assert not paths.properties.exists()
    assert not paths.identity.exists()
    assert not (root / "hooks").exists()
    return done


@pytest.mark.req("L6")
@pytest.mark.bad_input("expired token", "used token", "wrong authority", "name taken", story=True)
def test_a_host_that_may_not_join_stays_as_it_was_and_a_good_token_good(story: Story) -> None:
    good, used, short = story.token(), story.token(), story.token("--expires", "1s")
    join_host(story.directory / "h3", story.url, used, "h3")
    with story.rest() as client:
        ends = min(seconds(one["expires"]) for one in client.get("/v1/tokens").json()["items"])
    wait_until(lambda: time.time() > ends)
    before, told = story.state(), len(story.events("join.refused"))
    fix = "fix: make a new one: 'virtha token create'"
    refused(try_join(story, story.url, used, "h4"), 6, "problem.token.used", "token: ", fix)
    refused(try_join(story, story.url, short, "h4"), 6, "problem.token.expired", "token: ", fix)
    refused(
        try_join(story, story.url, good, "h1"),
        1,
        "problem.name_taken",
        "name: there is a host 'h1' already",
        "fix: choose another name",
    )
    assert story.state() == before
    assert len(story.events("join.refused")) == told + 3
    other = good[:-64] + "0" * 64
    done = try_join(story, story.url, other, "h4")
    refused(done, 4, "problem.authority.wrong", "is not the one in the token", "fix: ")
    assert story.state() == before
    assert len(story.events("join.refused")) == told + 3, "its secret was not even sent"
    join_host(story.directory / "h4", story.url, good, "h4")


@pytest.mark.bad_input("wrong authority", story=True)
def test_a_sign_in_to_another_authority_sends_no_password(story: Story) -> None:
    done = story.run(
        *("login", story.url, "--user", "admin", "--password-stdin", "--fingerprint", "0" * 64),
        user="stranger",
        stdin=PASSWORD + "\n",
    )
    refused(done, 4, "problem.authority.wrong", story.fingerprint, "nothing was sent to it")
    assert not (story.directory / "stranger").exists()


@pytest.mark.req("A1")
@pytest.mark.bad_input("properties with a duplicate key", story=True)
@pytest.mark.parametrize("program", ["agent", "guardian"])
def test_no_program_of_a_host_starts_on_a_key_that_stands_twice(story: Story, program: str) -> None:
    root = story.directory / f"twice-{program}"
    join_host(root, story.url, story.token(), f"twice-{program}")
    properties = AgentPaths(root=str(root)).properties
    properties.write_bytes(properties.read_bytes() + b"workers=4\r\nworkers=5")
    before = properties.read_bytes()
    # A process of its own: it sets up logs for its whole life.
    done = subprocess.run(
        [sys.executable, "-m", "virtha.cli.main", program, "--root", str(root)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(VIRTHA_LIBVIRT_HOOKS=str(root / "hooks")),
    )
    refused(
        Done(done.returncode, done.stdout, done.stderr),
        2,
        "problem.invalid",
        "workers: stands twice, in lines",
        "fix: remove one of the two lines",
    )
    assert properties.read_bytes() == before


@pytest.mark.bad_input("record of a newer version", story=True)
def test_a_template_of_a_later_version_is_named_and_all_else_goes_on(story: Story) -> None:
    """Its on_io_error is a word that this version does not know: as after going back to an older one."""
    cluster = json.loads(story.ok("cluster", "show", "default", "-o", "json"))
    body = {
        "id": "t1", "name": "base", "cluster_id": cluster["id"], "source_vm": "web1",
        "state": "ready", "memory_bytes": 1 << 27, "vcpus": 1, "architecture": "x86_64",
        "machine": "q35", "on_io_error": "restart_elsewhere", "created": 1,
    }  # fmt: skip
    path = story.server.root / "var/lib/virtha/server/virtha.db"
    with closing(sqlite3.connect(path)) as base, base:
        base.execute(
            "INSERT INTO template (id, name, cluster_id, body, revision) VALUES (?, ?, ?, ?, 1)",
            ("t1", "base", cluster["id"], json.dumps(body)),
        )
    try:
        for words in (
            ("template", "list"),
            ("template", "show", "base"),
            ("vm", "create", "web9", "--template", "base"),
        ):
            done = story.run(*words)
            told = ("template base", "restart_elsewhere", "on_io_error", "fix: run the version")
            refused(done, 1, "problem.record.unknown", *told)
        assert "web1" in story.ok("vm", "list")
    finally:
        with closing(sqlite3.connect(path)) as base, base:
            base.execute("DELETE FROM template WHERE id = 't1'")
    assert "base" not in story.ok("template", "list")
