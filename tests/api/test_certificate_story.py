"""A host's next certificate, from a real server process: in time, too early, too late, for another, revoked."""

import base64
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from played_host import JoinedHost, PlayedHost
from story import Story, join_new

from virtha.agent.certificate import renewed
from virtha.agent.identity import load_identity
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.drivers.pki import (
    LocalAuthority,
    certificate_ends,
    make_key_and_csr,
    migration_name,
    request_again,
    signed_by,
)
from virtha.model.errors import Conflict, InvalidInput, Unauthenticated
from virtha.model.time import UtcMillis
from virtha.ports.authority import RENEW_BEFORE_MS

pytestmark = pytest.mark.req("L6")
DAY_MS = 86_400_000
STATE = "var/lib/virtha/server"


def now() -> int:
    return time.time_ns() // 1_000_000


def aged(story: Story, host: JoinedHost, days: int) -> HostCredentials:
    """As if it had joined so many days ago."""
    authority_files = Path(story.server.root, STATE, "authority")
    authority = LocalAuthority(
        (authority_files / "authority.crt").read_text(),
        (authority_files / "authority.key").read_text(),
        wall_ms=lambda: UtcMillis(now() - days * DAY_MS),
    )
    own = host.credentials
    made = authority.sign_host(request_again(own.key_pem, "h"), host_id=own.host_id)
    with closing(sqlite3.connect(Path(story.server.root, STATE, "virtha.db"))) as base, base:
        base.execute(
            "INSERT INTO certificate (serial, host_id, not_after, revoked) VALUES (?, ?, ?, 0)",
            (made.serial, own.host_id, made.not_after),
        )
    return msgspec.structs.replace(own, certificate_pem=made.certificate_pem)


def ask(host: JoinedHost, credentials: HostCredentials) -> HostCredentials:
    return renewed(load_identity(AgentPaths(root=str(host.root))), credentials)


def test_a_host_goes_on_with_its_next_certificate(story: Story) -> None:
    host = join_new(story, "renews")
    old = aged(story, host, 600)
    new = ask(host, old)
    assert certificate_ends(new.certificate_pem) - RENEW_BEFORE_MS > now()
    (told,) = story.events("host.certificate_renewed")
    assert told["fields"]["name"] == "renews"
    for credentials in (old, new):  # the former one stays good until it ends
        played = PlayedHost(JoinedHost(credentials, host.root), story.server.ready["gateway"])
        try:
            played.wait_until_usable()
        finally:
            played.close()
    story.ok("host", "remove", "renews", "--powered-off", "--yes-it-is-off")
    for credentials in (old, new):
        with pytest.raises(Unauthenticated) as refused:
            ask(host, credentials)
        assert refused.value.code == "wire.refused.revoked"


def test_none_is_given_too_early_or_too_late(story: Story) -> None:
    host = join_new(story, "early")
    with pytest.raises(Conflict, match="is good until") as early:
        ask(host, host.credentials)
    assert "clock" in early.value.fix
    with pytest.raises(Unauthenticated) as late:
        ask(host, aged(story, host, 900))
    assert late.value.code == "wire.refused.certificate" and "join the host again" in late.value.fix
    assert [one for one in story.events("host.certificate_renewed") if "early" in str(one)] == []


@pytest.mark.bad_input("certificate of another authority", story=True)
def test_only_the_host_itself_gets_one_and_only_for_its_key(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    host, other = join_new(story, "mine"), join_new(story, "theirs")
    old = aged(story, host, 600)
    stranger = msgspec.structs.replace(old, key_pem=other.credentials.key_pem)
    with pytest.raises(Unauthenticated, match="not signed by a host"):
        ask(host, stranger)
    monkeypatch.setattr(
        "virtha.agent.certificate.request_again", lambda *_: make_key_and_csr("mine")[1]
    )
    with pytest.raises(InvalidInput, match="another key") as refused:
        ask(host, old)
    assert refused.value.field == "csr_pem"


def test_the_key_of_joining_gets_a_host_its_certificate_for_moves(story: Story) -> None:
    own = join_new(story, "moves").credentials
    _, csr = make_key_and_csr(migration_name(own.host_id))
    signature = base64.b64encode(signed_by(own.key_pem, csr.encode())).decode()
    body = {"certificate_pem": own.certificate_pem, "csr_pem": csr, "signature": signature}
    with story.server.rest() as client:
        answer = client.post("/v1/join/migration", json=body)
    assert answer.status_code == 201, answer.text
    assert certificate_ends(answer.json()["certificate_pem"]) > now()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("certificate_pem", "x" * 20_000),
        ("certificate_pem", "no certificate"),
        ("csr_pem", ""),
        ("signature", "no base64!"),
        ("signature", "AAAA"),
        ("token", "what for?"),
    ],
)
def test_nonsense_is_told(story: Story, field: str, value: Any) -> None:
    body = {"certificate_pem": "c", "csr_pem": "r", "signature": "AAAA"} | {field: value}
    with story.server.rest() as client:
        answer = client.post("/v1/join/renew", json=body)
    assert answer.status_code in (400, 401), answer.text
    assert answer.json()["field"] and answer.json()["code"]
