"""A host that joined 600 days ago: its agent and guardian go on with the next certificate."""

import sqlite3
import time
from contextlib import closing

import pytest

from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.paths import AgentPaths
from virtha.drivers.pki import LocalAuthority, certificate_ends, request_again
from virtha.lab import faults
from virtha.lab.node import Node, wait_until
from virtha.lab.story import Story
from virtha.model.time import UtcMillis
from virtha.ports.authority import RENEW_BEFORE_MS

pytestmark = [pytest.mark.lab, pytest.mark.timeout(500)]
PATIENCE_S = 150.0
DAY_MS = 86_400_000


def now() -> int:
    return time.time_ns() // 1_000_000


def age(story: Story, host: Node, days: int) -> str:
    """Give it the certificate that it would have; returns it."""
    paths = AgentPaths(root=str(host.root))
    own = load_credentials(paths, load_identity(paths))
    state = story.lab.server.root / "var/lib/virtha/server"
    authority = LocalAuthority(
        (state / "authority/authority.crt").read_text(),
        (state / "authority/authority.key").read_text(),
        wall_ms=lambda: UtcMillis(now() - days * DAY_MS),
    )
    made = authority.sign_host(request_again(own.key_pem, host.name), host_id=own.host_id)
    with closing(sqlite3.connect(state / "virtha.db", timeout=60)) as base, base:
        base.execute(
            "INSERT INTO certificate (serial, host_id, not_after, revoked) VALUES (?, ?, ?, 0)",
            (made.serial, own.host_id, made.not_after),
        )
    (paths.identity / "host.crt").write_text(made.certificate_pem)
    return made.certificate_pem


@pytest.mark.req("L6", "J2")
def test_both_processes_go_on_with_the_next_certificate(story: Story) -> None:
    host = story.lab.host("h2")
    paths = AgentPaths(root=str(host.root))
    old = age(story, host, 600)
    began = story.revision()
    faults.kill_agent(story.lab, "h2")
    faults.kill_guardian(story.lab, "h2")
    # The guardian alone first: it has the old one only, and takes up what comes later. A host's /run is its own.
    host.run_checked(["rm", "-f", str(paths.renewed_certificate)])
    log = host.logs / "guardian.log"
    connected = log.read_text().count("event='connected'")
    faults.start_guardian(story.lab, "h2")
    # It read the old one before the agent can have the next written: else there is nothing to take up.
    wait_until(
        lambda: log.read_text().count("event='connected'") > connected,
        "the guardian connects",
        timeout_s=PATIENCE_S,
    )
    faults.start_agent(story.lab, "h2")

    def told() -> list[str]:
        return [event["code"] for event in story.api.events(host="h2", after=began)]

    wait_until(lambda: "host.certificate_renewed" in told(), "it is renewed", timeout_s=PATIENCE_S)
    wait_until(
        lambda: "certificate is renewed" in log.read_text(),
        "the guardian has it",
        timeout_s=PATIENCE_S,
    )
    # The server tells of it before the agent has written it down.
    kept = paths.identity / "host.crt"
    wait_until(lambda: kept.read_text() != old, "it is kept", timeout_s=PATIENCE_S)
    new = kept.read_text()
    assert certificate_ends(new) - RENEW_BEFORE_MS > now()
    assert host.run_checked(["cat", str(paths.renewed_certificate)]) == new
    # Whoever shows the former one now is turned away.
    state = story.lab.server.root / "var/lib/virtha/server"
    with closing(sqlite3.connect(state / "virtha.db", timeout=60)) as base, base:
        base.execute(
            "UPDATE certificate SET revoked = 1 WHERE not_after = ?", (certificate_ends(old),)
        )
    faults.kill_server(story.lab)
    faults.start_server_again(story.lab)
    wait_until(
        lambda: story.api.get("/v1/hosts/h2")["status"]["state"] == "up",
        "agent and guardian are back with the next one",
        timeout_s=PATIENCE_S,
    )
    assert "host.judged_dead" not in told() and "fence.began" not in told()
