"""The real program: `virtha server` on loopback ports, set up, used, stopped, killed, restored."""

import contextlib
import json
import os
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from server_process import (
    PASSWORD,
    START_DEADLINE_S,
    environment,
    initialise,
    run_until_it_fails,
    serving,
    sign_in,
    virtha,
)
from story import wait_until

STOP_MAX_S = 60.0
"""An open stream would hold it up for ever."""


def healthy(client: httpx.Client) -> bool:
    """On a slow machine it may be 503 for a moment: its store is asked, with a deadline."""
    answer = client.get("/healthz")
    return answer.status_code == 200 and answer.json()["status"] == "ok"


@pytest.fixture(scope="module")
def initialised(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    result = initialise(root)
    assert result["password"] is None, "a given password is not echoed"
    assert len(result["authority_fingerprint"]) == 64
    assert PASSWORD not in (root / "etc/virtha/server.toml").read_text()
    return root


@pytest.mark.req("L6")
def test_sign_in_over_tls_root_over_the_socket_and_a_prompt_stop(initialised: Path) -> None:
    with serving(initialised) as server:
        with server.rest() as client:
            wait_until(lambda: healthy(client))
            assert sign_in(client, "wrong").status_code == 401
            session = sign_in(client)
            assert session.status_code == 201, session.text
            client.headers["Authorization"] = f"Bearer {session.json()['token']}"
            assert client.get("/v1/users").status_code == 200
            assert client.delete("/v1/sessions/current").status_code == 204
            assert client.get("/v1/users").status_code == 401
        with server.local() as client:
            if os.getuid() == 0:
                assert client.get("/v1/users").status_code == 200
            metrics = client.get("/metrics").text
            assert f"virtha_term {float(server.ready['term'])}" in metrics
            assert "virtha_loop_lag_seconds" in metrics
        with server.rest() as client:
            token = sign_in(client).json()["token"]
        # With a token, so that it also works where the tests don't run as root.
        signed_in = {"Authorization": f"Bearer {token}"}
        with (
            server.local() as client,
            client.stream("GET", "/v1/events/stream", headers=signed_in) as stream,
        ):
            lines = stream.iter_lines()
            assert next(lines) == "retry: 1000"
            code, seconds = server.stop()
            assert code == 0
            assert seconds < STOP_MAX_S, "an open stream must not hold the server up"
        assert not (initialised / "run/virtha/server.json").exists()


@pytest.mark.req("J4", "X5")
def test_a_reference_address_that_nobody_answers_at_is_told(initialised: Path) -> None:
    """The name is of those that no name service knows."""
    with serving(initialised, VIRTHA_REFERENCE_ADDRESSES="nothing.invalid:443") as server:
        with server.rest() as client:
            client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"

            def told() -> list[dict[str, str]]:
                findings = client.get("/v1/readiness").json()["findings"]
                return [one for one in findings if one["code"] == "ready.reference"]

            wait_until(lambda: bool(told()))
            (found,) = told()
        assert (found["about"], found["severity"]) == ("installation", "warning")
        assert "nothing.invalid:443: its name" in found["text"] and "server.toml" in found["fix"]
        assert server.stop()[0] == 0


def test_only_proxies_that_are_named_say_where_a_sign_in_came_from(initialised: Path) -> None:
    for proxies, address in (("", "127.0.0.1"), ("127.0.0.1", "203.0.113.7")):
        with serving(initialised, VIRTHA_PROXIES=proxies) as server, server.rest() as client:
            wait_until(lambda client=client: healthy(client))
            client.headers["X-Forwarded-For"] = "10.0.0.1, 203.0.113.7"
            assert sign_in(client, "wrong").status_code == 401
            client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
            found = client.get("/v1/events?code=user.sign_in_failed").json()["items"]
            assert address in [event["fields"]["address"] for event in found]
            assert ("203.0.113.7" in str(found)) == bool(proxies)


def open_to_others(root: Path) -> None:
    """pytest's own directories are closed to others, wherever they are; so is each worker's below them."""
    for path in (root, *root.parents):
        if not path.stat().st_mode & stat.S_IXOTH:
            path.chmod(path.stat().st_mode | 0o055)


@pytest.mark.bad_input("program as another user", story=True)
@pytest.mark.parametrize("verb", ["init", "run"])
def test_a_server_that_somebody_else_than_root_starts_says_as_whom(
    initialised: Path, verb: str
) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    open_to_others(initialised)
    program = (
        "import os, sys\n"
        "from virtha.cli.main import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "server", verb, "--root", str(initialised)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment(),
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Permission denied" in done.stderr
    assert "fix: run it as root" in done.stderr
    assert "Traceback" not in done.stderr
    with serving(initialised) as server, server.rest() as client:
        wait_until(lambda: healthy(client))


def test_a_peer_that_is_not_root_needs_a_token(initialised: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can become somebody else")
    with serving(initialised) as server:
        open_to_others(initialised)
        asked = subprocess.run(
            [
                sys.executable,
                "-c",
                "import os, socket, sys\n"
                "s = socket.socket(socket.AF_UNIX)\n"
                "os.setgid(65534); os.setuid(65534)\n"
                "s.connect(sys.argv[1])\n"
                "s.sendall(b'GET /v1/users HTTP/1.1\\r\\nHost: v\\r\\nConnection: close\\r\\n\\r\\n')\n"
                "print(s.makefile('rb').readline().decode())\n",
                server.ready["socket"],
            ],
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert "401" in asked.stdout, asked.stderr


def test_each_start_is_a_new_instance_of_a_higher_term(initialised: Path) -> None:
    seen = []
    for number in (signal.SIGINT, signal.SIGTERM):
        with serving(initialised) as server:
            seen.append((server.ready["term"], server.ready["instance"]))
            assert server.stop(number)[0] == 0
    (term, instance), (term_after, instance_after) = seen
    assert term_after == term + 1
    assert instance_after != instance


def test_a_second_init_refuses_and_changes_nothing(initialised: Path) -> None:
    def picture() -> dict[str, tuple[bytes, int]]:
        return {
            str(path.relative_to(initialised)): (path.read_bytes(), path.stat().st_mtime_ns)
            for folder in ("etc", "var/lib/virtha/server/authority")
            for path in sorted((initialised / folder).rglob("*"))
            if path.is_file()
        }

    before = picture()
    assert len(before) == 5
    done = virtha(initialised, "init", "--admin", "other", "--listen", "127.0.0.1:1")
    assert done.returncode == 1
    assert "there is an installation" in done.stderr
    assert "virtha server run" in done.stderr
    assert picture() == before


def test_init_shows_a_generated_password_once_and_keeps_secrets_private(tmp_path: Path) -> None:
    done = virtha(tmp_path, "init", "--names", "virtha.example.org,192.0.2.7", "--admin", "ops")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "password" in line]
    password = line.split()[1]
    assert len(password) == 20
    state = tmp_path / "var/lib/virtha/server"
    for path in (state / "authority/authority.key", state / "authority/server.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path
    checked = virtha(tmp_path, "check", "--json")
    states = {one["name"]: one["state"] for one in json.loads(checked.stdout)}
    assert {states[name] for name in ("config", "authority", "certificate", "database")} == {"ok"}


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--names", "not a name"), "neither a DNS name nor an IP address"),
        (("--listen", "8443"), "no address to listen on"),
        (("--admin", " "), "needs a name"),
        (("--names", ","), "names no name"),
    ],
)
def test_a_refused_init_can_be_repeated(tmp_path: Path, words: tuple[str, ...], part: str) -> None:
    done = virtha(tmp_path, "init", *words)
    assert done.returncode == 2, done.stdout + done.stderr
    assert part in done.stderr
    initialise(tmp_path)


def test_run_before_init_says_what_to_do(tmp_path: Path) -> None:
    done = run_until_it_fails(tmp_path)
    assert done.returncode == 3
    assert "virtha server init" in done.stderr


def test_a_port_in_use_is_a_clear_error_and_no_new_term(initialised: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for name in ("VIRTHA_LISTEN", "VIRTHA_GATEWAY_LISTEN"):
            done = run_until_it_fails(initialised, **{name: f"127.0.0.1:{port}"})
            assert done.returncode == 1, done.stderr
            assert f"127.0.0.1:{port}" in done.stderr
            assert "in use" in done.stderr
            assert "Traceback" not in done.stderr


@pytest.mark.bad_input("second agent or server", story=True)
def test_a_second_server_on_the_same_state_refuses(initialised: Path) -> None:
    with serving(initialised) as server:
        done = run_until_it_fails(initialised)
        assert done.returncode == 1
        assert f"(process {server.process.pid})" in done.stderr
        with server.rest() as client:
            wait_until(lambda: healthy(client))


@pytest.mark.bad_input("locked database", story=True)
def test_a_database_locked_at_start_is_a_clear_error_and_no_new_term(tmp_path: Path) -> None:
    initialise(tmp_path)
    database = tmp_path / "var/lib/virtha/server/virtha.db"
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        done = run_until_it_fails(tmp_path)
        other.execute("ROLLBACK")
    assert done.returncode == 5, done.stderr
    assert "code: problem.database.locked" in done.stderr
    assert "fix: end the program that holds it" in done.stderr
    assert "Traceback" not in done.stderr
    with serving(tmp_path) as server:
        assert server.ready["term"] == 1


def test_sd_notify_and_a_wrong_setting(initialised: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notified:
        notified.bind(str(tmp_path / "n.sock"))
        notified.settimeout(START_DEADLINE_S)
        with serving(initialised, NOTIFY_SOCKET=str(tmp_path / "n.sock")) as server:
            assert notified.recv(4_096).startswith(b"READY=1\n")
            server.stop()
            assert notified.recv(4_096) == b"STOPPING=1"
    done = run_until_it_fails(initialised, VIRTHA_LOG_LEVEL="loud")
    assert done.returncode == 2
    assert "log_level" in done.stderr and "warning" in done.stderr


@pytest.mark.req("L6")
def test_killed_in_mid_write_it_comes_back_with_all_that_was_answered(tmp_path: Path) -> None:
    """kill -9 while clusters are made as fast as it goes: what was answered 201 is there, whole."""
    initialise(tmp_path)
    answered: list[str] = []
    with serving(tmp_path) as server, server.rest() as client:
        token = sign_in(client).json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"
        killer = threading.Timer(0.3, server.process.kill)
        with contextlib.suppress(httpx.HTTPError):
            for number in range(10_000):
                made = client.post("/v1/clusters", json={"name": f"c{number}"})
                assert made.status_code == 201, made.text
                answered.append(f"c{number}")
                if number == 0:
                    killer.start()  # not before: a machine that is busy may take that long for the first
        killer.join()
    assert len(answered) < 10_000, "nobody was killed in mid-write"
    with serving(tmp_path) as server, server.rest() as client:
        client.headers["Authorization"] = f"Bearer {token}"
        listed = client.get("/v1/clusters", params={"limit": 1000}).json()["items"]
        names = {cluster["name"] for cluster in listed}
        assert set(answered) <= names
        events = client.get("/v1/events", params={"code": "cluster.created", "limit": 1000}).json()
        told = {event["fields"]["name"] for event in events["items"]}
        assert names - {"default"} <= told, "a cluster without its event: half a transaction"


def test_backup_of_a_running_server_and_restore(tmp_path: Path) -> None:
    old, new, file = tmp_path / "old", tmp_path / "new", tmp_path / "backup.tar.gz"
    old.mkdir()
    new.mkdir()
    initialise(old)
    with serving(old) as server, server.rest() as client:
        token = sign_in(client).json()["token"]
        client.headers["Authorization"] = f"Bearer {token}"
        assert client.post("/v1/clusters", json={"name": "kept"}).status_code == 201
        done = virtha(old, "backup", str(file))
        assert done.returncode == 0, done.stderr
        assert client.post("/v1/clusters", json={"name": "later"}).status_code == 201
        refused = virtha(old, "restore", str(file), "--force")
        assert refused.returncode == 1 and "a server runs" in refused.stderr
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert virtha(old, "backup", str(file)).returncode == 1, "an older backup is not overwritten"
    assert virtha(old, "restore", str(file)).returncode == 1, "not without --force"
    for root in (new, old):
        done = virtha(root, "restore", str(file), *(("--force",) if root is old else ()))
        assert done.returncode == 0, done.stderr
        assert "All sign-ins and access tokens have ended" in done.stdout
        with serving(root) as server, server.rest() as client:
            client.headers["Authorization"] = f"Bearer {token}"
            assert client.get("/v1/clusters").status_code == 401, "a token of before the backup"
            client.headers["Authorization"] = f"Bearer {sign_in(client).json()['token']}"
            listed = client.get("/v1/clusters").json()["items"]
            names = {cluster["name"] for cluster in listed}
            assert "kept" in names and "later" not in names
            events = client.get("/v1/events", params={"code": "server.restored"}).json()["items"]
            assert len(events) == 1
    aside = list((old / "var/lib/virtha").glob("server.before-restore-*"))
    assert len(aside) == 1 and (aside[0] / "virtha.db").is_file()


def test_a_damaged_backup_is_refused_and_nothing_changes(initialised: Path, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar.gz"
    assert virtha(initialised, "backup", str(file)).returncode == 0
    whole = file.read_bytes()
    for name, damaged in (("cut", whole[: len(whole) // 2]), ("empty", b""), ("text", b"hello")):
        bad = tmp_path / name
        bad.write_bytes(damaged)
        done = virtha(initialised, "restore", str(bad), "--force")
        assert done.returncode == 2, (name, done.stderr)
        assert "no complete backup" in done.stderr
    assert virtha(initialised, "restore", str(tmp_path / "none"), "--force").returncode == 3
    assert virtha(initialised, "check").returncode == 0
    left = [path.name for path in (initialised / "var/lib/virtha").iterdir()]
    assert left == ["server"]


def test_check_finds_a_database_of_a_newer_version_and_an_open_key(tmp_path: Path) -> None:
    initialise(tmp_path)
    state = tmp_path / "var/lib/virtha/server"
    (state / "authority/authority.key").chmod(0o644)
    with contextlib.closing(sqlite3.connect(state / "virtha.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    done = virtha(tmp_path, "check", "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["authority"]["state"] == "warning"
    assert "chmod 600" in found["authority"]["fix"]
    assert found["database"]["state"] == "failed"
    assert "9999" in found["database"]["detail"]
    done = run_until_it_fails(tmp_path)
    assert done.returncode == 4, done.stderr
    assert "9999" in done.stderr


@pytest.mark.bad_input("server with its clock back", story=True)
def test_a_server_whose_clock_was_set_back_begins_and_says_so(tmp_path: Path) -> None:
    """What is on record was a day later: the service works by elapsed time, and tells what goes by the clock."""
    initialise(tmp_path)
    database = tmp_path / "var/lib/virtha/server/virtha.db"
    assert found_by_check(tmp_path)["clock"]["state"] == "ok"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("UPDATE event SET at = at + 86400000")
        connection.commit()
    clock = found_by_check(tmp_path)["clock"]
    assert clock["state"] == "warning"
    assert "the last event on record was at" in clock["detail"]
    assert "timedatectl" in clock["fix"]
    with serving(tmp_path) as server, server.rest() as client:
        wait_until(lambda: healthy(client))
    assert "clock is behind the last event on record" in (tmp_path / "server.log").read_text()


def found_by_check(root: Path) -> dict[str, dict[str, str]]:
    return {one["name"]: one for one in json.loads(virtha(root, "check", "--json").stdout)}


def test_check_finds_what_the_service_could_not_use(initialised: Path, tmp_path: Path) -> None:
    shutil.copytree(initialised, tmp_path / "copy", ignore=shutil.ignore_patterns("*.sock"))
    state = tmp_path / "copy/var/lib/virtha/server"
    (state / "authority/server.key").write_text((state / "authority/authority.key").read_text())
    shutil.rmtree(state / "journals", ignore_errors=True)
    (state / "journals").touch()
    if os.geteuid() == 0:
        os.chown(state / "secrets.key", 12_345, 12_345)
    done = virtha(tmp_path / "copy", "check", "--json")
    assert done.returncode == 1
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["certificate"]["state"] == "failed"
    assert "server.key is not the key of" in found["certificate"]["detail"]
    assert "virtha server renew-certificate" in found["certificate"]["fix"]
    assert found["journals"]["state"] == "warning" and "move" in found["journals"]["fix"]
    if os.geteuid() == 0:
        assert found["secrets"]["state"] == "warning"
        assert f"chown 0:0 {state}/secrets.key" in found["secrets"]["fix"]


def test_a_renewed_certificate_is_of_the_same_authority(tmp_path: Path) -> None:
    initialise(tmp_path)
    certificate = tmp_path / "var/lib/virtha/server/authority/server.crt"
    before = certificate.read_text()
    assert virtha(tmp_path, "renew-certificate").returncode == 0
    assert certificate.read_text() != before
    with serving(tmp_path) as server, server.rest() as client:
        wait_until(lambda: healthy(client))
