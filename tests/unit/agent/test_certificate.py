"""A host's certificate is renewed before it ends, against a real TLS server of a real authority."""

import asyncio
import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_join import HOST, INSTALLATION, Server

from virtha.agent.certificate import CertificateKeeper, is_due
from virtha.agent.certificate_follower import CertificateFollower
from virtha.agent.identity import load_credentials, load_identity
from virtha.agent.join import join
from virtha.agent.paths import AgentPaths
from virtha.drivers.link import HostCredentials
from virtha.drivers.pki import (
    LocalAuthority,
    certificate_ends,
    create_authority,
    host_identity,
    make_key_and_csr,
    request_again,
)
from virtha.model.ids import HostId
from virtha.model.time import UtcMillis
from virtha.ports.authority import RENEW_BEFORE_MS

pytestmark = pytest.mark.req("L6")
DAY_MS = 86_400_000


def now() -> UtcMillis:
    return UtcMillis(time.time_ns() // 1_000_000)


class RenewingServer(Server):
    """Signs as the server does; ``key`` of the authority is kept to make what others might send."""

    def sign(self, body: dict[str, str]) -> dict[str, object]:
        if "token" in body:
            return super().sign(body)
        signed = self.authority.asking_host(
            body["certificate_pem"], body["csr_pem"].encode(), base64.b64decode(body["signature"])
        )
        assert self.authority.key_of_request(body["csr_pem"]) == signed.public_key
        made = self.authority.sign_host(body["csr_pem"], host_id=signed.host_id)
        return {"certificate_pem": made.certificate_pem, "not_after": "2030-01-01T00:00:00Z"}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RenewingServer]:
    (tmp_path / "server").mkdir()
    made = RenewingServer(tmp_path / "server")
    yield made
    made.stop()


@pytest.fixture
def paths(tmp_path: Path, server: RenewingServer, monkeypatch: pytest.MonkeyPatch) -> AgentPaths:
    monkeypatch.setenv("VIRTHA_LIBVIRT_HOOKS", str(tmp_path / "hooks"))
    made = AgentPaths(root=str(tmp_path / "root"))
    join(made, server.url, server.token, name="h1")
    server.asked.clear()
    return made


def present(paths: AgentPaths) -> HostCredentials:
    return load_credentials(paths, load_identity(paths))


def keeper(
    paths: AgentPaths, used: list[HostCredentials], *, in_days: float = 0
) -> CertificateKeeper:
    """``in_days``: as if so many had passed on the host."""
    return CertificateKeeper(
        paths,
        load_identity(paths),
        present(paths),
        used.append,
        now=lambda: UtcMillis(now() + int(in_days * DAY_MS)),
    )


def test_one_that_is_good_for_long_is_left_alone(paths: AgentPaths, server: Server) -> None:
    used: list[HostCredentials] = []
    asyncio.run(keeper(paths, used, in_days=549).look())
    assert (used, server.asked) == ([], [])
    assert not is_due(present(paths), UtcMillis(now() + 549 * DAY_MS))
    assert is_due(present(paths), UtcMillis(now() + 551 * DAY_MS))


def test_the_next_one_is_for_the_same_key_and_both_processes_take_it_over(
    paths: AgentPaths, server: Server
) -> None:
    before = present(paths)
    of_agent: list[HostCredentials] = []
    of_guardian: list[HostCredentials] = []
    follower = CertificateFollower(paths, before, of_guardian.append)
    follower.look()
    asyncio.run(keeper(paths, of_agent, in_days=600).look())
    follower.look()
    follower.look()
    (found,) = of_agent
    assert of_guardian == [found] and present(paths) == found
    assert found.key_pem == before.key_pem and found.certificate_pem != before.certificate_pem
    assert host_identity(found.certificate_pem).host_id == HOST
    assert certificate_ends(found.certificate_pem) - RENEW_BEFORE_MS > now()
    assert len(server.asked) == 1


def test_a_server_that_can_not_be_asked_is_asked_again(paths: AgentPaths, server: Server) -> None:
    used: list[HostCredentials] = []
    before = present(paths)
    keeps = keeper(paths, used, in_days=600)
    for problem in (
        (503, {"detail": "the database is locked", "code": "problem.database.locked"}),
        (401, {"detail": "this host was removed", "code": "wire.refused.revoked"}),
        (409, {"detail": "good until 2028", "code": "problem.conflict"}),
        (200, {}),
        (201, {"certificate_pem": 7}),
        (201, {"certificate_pem": "no certificate"}),
    ):
        server.problem = problem  # type: ignore[assignment]  # None until a test sets it
        asyncio.run(keeps.look())
        assert (used, present(paths)) == ([], before), problem
    server.problem = None
    asyncio.run(keeps.look())
    assert used == [present(paths)]


def _of_another_host(server: Server, credentials: HostCredentials) -> str:
    csr = request_again(credentials.key_pem, "h2")
    return server.authority.sign_host(csr, host_id=HostId("h2")).certificate_pem


def _of_another_key(server: Server, credentials: HostCredentials) -> str:
    return server.authority.sign_host(make_key_and_csr("h1")[1], host_id=HOST).certificate_pem


def _of_another_authority(server: Server, credentials: HostCredentials) -> str:
    stranger = LocalAuthority(*create_authority(INSTALLATION, now=now()), wall_ms=now)
    csr = request_again(credentials.key_pem, "h1")
    return stranger.sign_host(csr, host_id=HOST).certificate_pem


def _of_the_server(server: Server, credentials: HostCredentials) -> str:
    return server.authority.issue_server_certificate(("localhost",))[0]


@pytest.mark.parametrize(
    "made", [_of_another_host, _of_another_key, _of_another_authority, _of_the_server]
)
@pytest.mark.bad_input("certificate of another authority")
def test_what_is_not_this_hosts_is_taken_by_nobody(
    paths: AgentPaths, server: Server, made: Callable[[Server, HostCredentials], str]
) -> None:
    before = present(paths)
    used: list[HostCredentials] = []
    pem = made(server, before)
    server.change = lambda answer: answer.update(certificate_pem=pem)
    asyncio.run(keeper(paths, used, in_days=600).look())
    paths.renewed_certificate.parent.mkdir(parents=True, exist_ok=True)
    paths.renewed_certificate.write_text(pem)
    CertificateFollower(paths, before, used.append).look()
    assert (used, present(paths)) == ([], before)


def test_the_guardian_takes_no_nonsense_and_none_that_ends_sooner(
    paths: AgentPaths, server: Server
) -> None:
    newest = present(paths)
    server.authority._wall_ms = lambda: UtcMillis(now() - 100 * DAY_MS)
    csr = request_again(newest.key_pem, "h1")
    former = server.authority.sign_host(csr, host_id=HOST).certificate_pem
    used: list[HostCredentials] = []
    follower = CertificateFollower(paths, newest, used.append)
    file = paths.renewed_certificate
    file.parent.mkdir(parents=True, exist_ok=True)
    for content in (b"", b"\xff\xfe", b"-----BEGIN CERTIFICATE-----\n", b"x" * (2 << 20)):
        file.write_bytes(content)
        follower.look()
    file.write_text(former)
    follower.look()
    assert used == []


def test_an_agent_that_died_before_the_guardian_had_it_lays_it_down_when_it_begins(
    paths: AgentPaths,
) -> None:
    before = present(paths)
    of_agent: list[HostCredentials] = []
    asyncio.run(keeper(paths, of_agent, in_days=600).look())
    paths.renewed_certificate.unlink()

    async def begins() -> None:
        running = asyncio.create_task(keeper(paths, of_agent).run())
        end = time.monotonic() + 60
        while not paths.renewed_certificate.exists():
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
        running.cancel()

    asyncio.run(begins())
    of_guardian: list[HostCredentials] = []
    CertificateFollower(paths, before, of_guardian.append).look()
    assert of_guardian == of_agent
