"""The key of the receivers' secrets, as an administrator meets it: made, private, backed up, lost, made anew."""

import os
import stat
from pathlib import Path
from typing import Any

import pytest
from server_process import Server, initialise, serving, virtha

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="root on the Unix socket needs root")

STATE = "var/lib/virtha/server"
RECEIVER = {
    "name": "mail1",
    "settings": {"type": "mail", "host": "m.example.org", "sender": "v@example.org", "user": "v"},
    "secrets": {"password": "hush-hush-hush"},
}


def post(server: Server, path: str, body: Any) -> Any:
    with server.local() as client:
        return client.post(path, json=body)


def codes(server: Server) -> list[str]:
    with server.local() as client:
        return [event["code"] for event in client.get("/v1/events").json()["items"]]


@pytest.mark.req("W7")
@pytest.mark.bad_input("lost secrets key", story=True)
def test_a_lost_key_stops_nothing_but_the_secrets(tmp_path: Path) -> None:
    initialise(tmp_path)
    key, backup = tmp_path / STATE / "secrets.key", tmp_path / "backup.tar.gz"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    with serving(tmp_path) as server:
        assert post(server, "/v1/receivers", RECEIVER).status_code == 201
        assert virtha(tmp_path, "backup", str(backup)).returncode == 0
        assert virtha(tmp_path, "new-secrets-key").returncode == 1, "not under a running server"
    kept = key.read_bytes()
    assert b"hush-hush" not in (tmp_path / STATE / "virtha.db").read_bytes()

    key.unlink()
    assert "secrets.key" in virtha(tmp_path, "check").stdout
    with serving(tmp_path) as server:
        assert "notify.secrets_unreadable" in codes(server)
        answer = post(server, "/v1/receivers", {**RECEIVER, "name": "mail2"})
        problem = answer.json()
        assert answer.status_code == 500 and str(key) in problem["detail"]
        assert "new-secrets-key" in problem["fix"] and "hush" not in answer.text
        assert post(server, "/v1/clusters", {"name": "other"}).status_code == 201
        assert not key.exists(), "not made anew while something is sealed with the old one"
    assert "hush-hush" not in (tmp_path / "server.log").read_text()

    done = virtha(tmp_path, "restore", str(backup), "--force")
    assert done.returncode == 0, done.stderr
    assert key.read_bytes() == kept and stat.S_IMODE(key.stat().st_mode) == 0o600
    assert virtha(tmp_path, "new-secrets-key").returncode == 0
    assert (key.with_name("secrets.key.old-1")).read_bytes() == kept
    with serving(tmp_path) as server, server.local() as client:
        assert "notify.secrets_unreadable" in codes(server)
        anew = client.patch("/v1/receivers/mail1", json={"secrets": {"password": "hush-anew"}})
        assert anew.status_code == 200, anew.text
        metrics = client.get("/metrics").text
        assert 'virtha_notifications{state="pending"} 0.0' in metrics
        assert "virtha_notification_oldest_pending_seconds 0.0" in metrics


def test_an_installation_of_before_gets_a_key_at_its_next_start(tmp_path: Path) -> None:
    initialise(tmp_path)
    key = tmp_path / STATE / "secrets.key"
    key.unlink()
    with serving(tmp_path) as server:
        assert stat.S_IMODE(key.stat().st_mode) == 0o600
        assert post(server, "/v1/receivers", RECEIVER).status_code == 201
