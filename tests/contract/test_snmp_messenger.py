"""SNMP against net-snmp's own snmptrapd, which decodes with our MIB; and the MIB against its checkers."""

import asyncio
import contextlib
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from own_trap_daemon import (
    AUTHENTICATION_PASSWORD,
    ENGINE_ID,
    MIBS,
    OUR_MIB,
    PRIVACY_PASSWORD,
    OwnTrapDaemon,
)
from told_messages import EVENT, INSTALLATION_ID, message

from virtha.alerts.traps import OBJECTS, ROOT, trap
from virtha.drivers.mib import mib_text
from virtha.drivers.snmp import SnmpMessenger, engine_id_of
from virtha.model.codes import REGISTRY, Severity
from virtha.model.notification import (
    Message,
    SnmpAuthentication,
    SnmpPrivacy,
    SnmpSettings,
    SnmpVersion,
)
from virtha.ports.receivers import Outcome, Receipt

COMMUNITY = {"community": "public"}
KEYS = {
    "authentication_password": AUTHENTICATION_PASSWORD,
    "privacy_password": PRIVACY_PASSWORD,
}
KINDS = {
    "sha256": ("SHA-256", "AES", SnmpAuthentication.SHA256, SnmpPrivacy.AES128),
    "sha512": ("SHA-512", "AES-256", SnmpAuthentication.SHA512, SnmpPrivacy.AES256),
    "sha1": ("SHA", "AES", SnmpAuthentication.SHA1, SnmpPrivacy.AES128),
    "sha1-256": ("SHA", "AES-256", SnmpAuthentication.SHA1, SnmpPrivacy.AES256),
}


@pytest.fixture(scope="module")
def daemon() -> Iterator[OwnTrapDaemon]:
    with OwnTrapDaemon({name: kind[:2] for name, kind in KINDS.items()}) as running:
        yield running


def v2c(daemon: OwnTrapDaemon, *, inform: bool) -> SnmpSettings:
    return SnmpSettings(host="127.0.0.1", port=daemon.port, version=SnmpVersion.V2C, inform=inform)


def v3(daemon: OwnTrapDaemon, user: str = "sha256", *, inform: bool = True) -> SnmpSettings:
    _, _, authentication, privacy = KINDS.get(user, KINDS["sha256"])
    return SnmpSettings(
        host="127.0.0.1",
        port=daemon.port,
        inform=inform,
        user=user,
        authentication=authentication,
        privacy=privacy,
        engine_id=ENGINE_ID,
    )


def messenger(
    settings: SnmpSettings,
    secrets: dict[str, str],
    *,
    deadline_ms: int = 20_000,
    started_s: int | None = None,
) -> SnmpMessenger:
    return SnmpMessenger(
        settings, secrets, deadline_ms=deadline_ms, started_s=started_s or int(time.time())
    )


async def sent(told: SnmpMessenger, *numbers: int) -> list[Receipt]:
    try:
        return [await told.send(message(number)) for number in numbers or (1,)]
    finally:
        await told.close()


@pytest.mark.req("W7")
@pytest.mark.parametrize("inform", [False, True], ids=["trap", "inform"])
@pytest.mark.parametrize("user", ["v2c", *KINDS])
def test_it_arrives_and_the_mib_names_all_of_it(
    daemon: OwnTrapDaemon, user: str, inform: bool
) -> None:
    async def story() -> None:
        before = len(daemon.notices())
        settings, secrets = v2c(daemon, inform=inform), COMMUNITY
        if user != "v2c":
            settings, secrets = v3(daemon, user, inform=inform), KEYS
        receipts = await sent(messenger(settings, secrets), 1, 2)
        code = "notify.accepted" if inform else "notify.sent"
        assert [one.code for one in receipts] == [code, code], receipts
        notices = (await daemon.until(before + 2))[before:]
        assert [one["virthaNoticeId"] for one in notices] == ["d1", "d2"]
        assert notices[0] == {
            "notification": "virthaProblem",
            "virthaNoticeId": "d1",
            "virthaCode": "vm.crashed",
            "virthaCodeNumber": "2202",
            "virthaSeverity": "error",
            "virthaKind": "problem",
            "virthaMessage": "QEMU of wéb-№1 died: signal 9",
            "virthaHelp": REGISTRY["vm.crashed"].help,
            "virthaTime": "2026-1-31,12:0:0.2,+0:0",
            "virthaCluster": "main",
            "virthaHost": "node-1",
            "virthaVm": "wéb-№1",
            "virthaInstallation": "Lab Zürich",
            "virthaInstallationId": INSTALLATION_ID,
        }

    asyncio.run(story())


def test_each_kind_has_its_notification(daemon: OwnTrapDaemon) -> None:
    async def story() -> None:
        before = len(daemon.notices())
        told = messenger(v2c(daemon, inform=True), COMMUNITY)
        solved = msgspec.structs.replace(EVENT, code="vm.restarted", severity=Severity.INFO)
        notice = msgspec.structs.replace(EVENT, code="vm.created", severity=Severity.INFO)
        await told.send(message(1, event=solved))
        await told.send(message(2, event=notice))
        await told.send(message(3, test=True))
        await told.close()
        notices = (await daemon.until(before + 3))[before:]
        assert [one["notification"] for one in notices] == [
            "virthaSolved",
            "virthaNotice",
            "virthaTest",
        ]
        assert [one["virthaKind"] for one in notices] == ["solved", "notice", "test"]

    asyncio.run(story())


WRONG = [
    ({"user": "nobody"}, KEYS, "notify.snmp.unknown_user"),
    ({}, {**KEYS, "authentication_password": "another phrase"}, "notify.snmp.wrong_keys"),
    ({"authentication": SnmpAuthentication.SHA512}, KEYS, "notify.snmp.wrong_keys"),
    # snmptrapd can't make out what such a message is, and says nothing: what is waited for is the deadline.
    ({}, {**KEYS, "privacy_password": "another phrase"}, "notify.no_answer"),
    ({"user": None}, KEYS, "notify.unusable_settings"),
    ({}, {"authentication_password": "short", "privacy_password": "x"}, "notify.unusable_settings"),
    ({"host": "name.invalid"}, KEYS, "notify.unresolved"),
]


@pytest.mark.bad_input("SNMP keys that differ", story=True)
@pytest.mark.parametrize(("changes", "secrets", "code"), WRONG)
def test_wrong_keys_are_told_and_right_ones_work_afterwards(
    daemon: OwnTrapDaemon, changes: dict[str, object], secrets: dict[str, str], code: str
) -> None:
    async def story() -> None:
        before = len(daemon.notices())
        settings = msgspec.structs.replace(v3(daemon), **changes)
        deadline_ms = 600 if code == "notify.no_answer" else 20_000
        (receipt,) = await sent(messenger(settings, secrets, deadline_ms=deadline_ms))
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, code), receipt
        for secret in secrets.values():
            assert len(secret) < 6 or secret not in repr(receipt)
        assert len(daemon.notices()) == before
        (receipt,) = await sent(messenger(v3(daemon), KEYS))
        assert receipt.code == "notify.accepted"

    asyncio.run(story())


@pytest.mark.bad_input("SNMP keys that differ")
def test_what_an_engine_says_instead_of_an_answer() -> None:
    from pysnmp.proto import errind

    from virtha.drivers.snmp_engine import reason_of

    assert reason_of(errind.WrongDigest()) == "notify.snmp.wrong_keys"
    assert reason_of(errind.DecryptionError()) == "notify.snmp.wrong_keys"
    assert reason_of(errind.UnknownUserName()) == "notify.snmp.unknown_user"
    assert reason_of(errind.NotInTimeWindow()) == "notify.snmp.clock"
    assert reason_of(errind.RequestTimedOut()) == "notify.no_answer"
    assert reason_of(errind.ParseError()) == "notify.not_its_protocol"


def test_a_wrong_community_has_no_answer(daemon: OwnTrapDaemon) -> None:
    async def story() -> None:
        told = messenger(v2c(daemon, inform=True), {"community": "wrong"}, deadline_ms=600)
        (receipt,) = await sent(told)
        assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.no_answer")

    asyncio.run(story())


async def is_accepted(told: SnmpMessenger, what: Message) -> None:
    """As the queue goes on: a manager that does not answer in time, on a machine with much to do, is asked again."""
    async with asyncio.timeout(120):
        receipt = await told.send(what)
        while receipt.outcome is Outcome.AWAY:
            receipt = await told.send(what)
    assert receipt.code == "notify.accepted", receipt


@pytest.mark.parametrize("version", [SnmpVersion.V2C, SnmpVersion.V3])
def test_a_manager_that_was_away_is_found_again(version: SnmpVersion) -> None:
    """Also when it comes back as another engine: its state was lost."""

    async def story() -> None:
        with OwnTrapDaemon({"sha256": ("SHA-256", "AES")}) as first:
            settings, secrets = v3(first), KEYS
            if version is SnmpVersion.V2C:
                settings, secrets = v2c(first, inform=True), COMMUNITY
            told = messenger(settings, secrets, deadline_ms=6_000)
            await is_accepted(told, message(1))
        assert (await told.send(message(2))).code == "notify.no_answer"
        with OwnTrapDaemon({"sha256": ("SHA-256", "AES")}, port=first.port) as second:
            await is_accepted(told, message(2))
            assert (await second.until(1))[0]["virthaNoticeId"] == "d2"
        await told.close()

    asyncio.run(story())


def test_a_manager_that_came_back_meanwhile_is_found_again() -> None:
    """Nothing was sent while it was away: the engine in hand knows only the former one."""

    async def story() -> None:
        with OwnTrapDaemon({"sha256": ("SHA-256", "AES")}) as first:
            told = messenger(v3(first), KEYS, deadline_ms=3_000)
            await is_accepted(told, message(1))
        with OwnTrapDaemon({"sha256": ("SHA-256", "AES")}, port=first.port):
            await is_accepted(told, message(2))
        await told.close()

    asyncio.run(story())


def test_v3_traps_of_a_restarted_server_are_no_replays() -> None:
    """snmptrapd refuses an engine whose boots or time went back; it would say so to nobody."""

    async def story() -> None:
        with OwnTrapDaemon({"sha256": ("SHA-256", "AES")}) as running:
            settings = v3(running, inform=False)
            began = int(time.time()) - 100_000
            await sent(messenger(settings, KEYS, started_s=began), 1)
            await running.until(1)
            # Another receiver's messenger of the same process, made much later, and then the next process.
            await sent(messenger(settings, KEYS, started_s=began), 2)
            await running.until(2)
            await sent(messenger(settings, KEYS, started_s=int(time.time())), 3)
            notices = await running.until(3)
            assert [one["virthaNoticeId"] for one in notices] == ["d1", "d2", "d3"]

    asyncio.run(story())


def test_a_manager_with_two_addresses_is_found_at_the_second(daemon: OwnTrapDaemon) -> None:
    async def story() -> None:
        async def resolve(host: str, port: int) -> list[str]:
            return ["127.0.0.99", "127.0.0.1"]

        told = SnmpMessenger(
            v3(daemon), KEYS, deadline_ms=20_000, started_s=int(time.time()), resolve=resolve
        )
        began = len(daemon.notices())
        for number in (1, 2):
            assert (await told.send(message(number))).code == "notify.accepted"
        await told.close()
        assert [one["virthaNoticeId"] for one in daemon.notices()[began:]] == ["d1", "d2"]

    asyncio.run(story())


def test_boots_and_time_are_the_process_s_in_each_engine() -> None:
    """Read out of the bytes: snmptrapd would show a time that went back only after 150 s."""
    from pyasn1.codec.ber import decoder

    from virtha.drivers.snmp_engine import BOOTS_SINCE_S

    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
            listening.bind(("127.0.0.1", 0))
            listening.settimeout(60)
            settings = SnmpSettings(
                host="127.0.0.1", port=listening.getsockname()[1], inform=False, user="virtha"
            )
            began = int(time.time()) - 100_000
            await sent(messenger(settings, KEYS, started_s=began))
            packet = await asyncio.to_thread(listening.recv, 65_535)
        whole, _ = decoder.decode(packet)
        security, _ = decoder.decode(bytes(whole[2]))
        assert bytes(security[0]) == engine_id_of(INSTALLATION_ID)
        assert int(security[1]) == began - BOOTS_SINCE_S
        assert 100_000 <= int(security[2]) < 100_060

    asyncio.run(story())


def test_nothing_is_kept_below_tmp(daemon: OwnTrapDaemon) -> None:
    async def story() -> None:
        await sent(messenger(v3(daemon, inform=False), KEYS))
        assert not (Path(tempfile.gettempdir()) / "__pysnmp" / f"0x{ENGINE_ID}").exists()

    asyncio.run(story())


def test_a_silent_port_ends_at_the_deadline_and_stopping_stops() -> None:
    async def story() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            port = silent.getsockname()[1]
            settings = SnmpSettings(host="127.0.0.1", port=port, version=SnmpVersion.V2C)
            impatient = messenger(settings, COMMUNITY, deadline_ms=600)
            receipt = await impatient.send(message())
            assert (receipt.outcome, receipt.code) == (Outcome.AWAY, "notify.no_answer")
            await impatient.close()
            told = messenger(settings, COMMUNITY, deadline_ms=60_000)
            silent.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while silent.recv(65_536):  # what it was sent so far
                    pass
            sending = asyncio.create_task(told.send(message()))
            async with asyncio.timeout(60):
                await asyncio.get_running_loop().sock_recv(silent, 65_536)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            await told.close()
            await told.close()
            assert "public" not in repr(told)

    asyncio.run(story())


def test_a_long_message_is_cut_between_characters() -> None:
    event = msgspec.structs.replace(EVENT, message="é" * 400)
    cut = trap(message(event=event)).varbinds[5].value
    assert isinstance(cut, bytes)
    assert cut.decode() == "é" * 240


@pytest.mark.req("W7")
def test_the_mib_says_what_is_sent() -> None:
    found = subprocess.run(
        ["snmptranslate", "-M", f"{MIBS}:{OUR_MIB.parent}", "-m", "VIRTHA-MIB", "-Tz"],
        check=True,
        capture_output=True,
        text=True,
        env={"SNMP_PERSISTENT_DIR": tempfile.gettempdir(), "PATH": "/usr/bin:/bin"},
    )
    names = {
        oid.strip('"'): name.strip('"')
        for name, oid in (line.split() for line in found.stdout.splitlines() if "." in line)
    }
    for varbind in trap(message()).varbinds:
        assert varbind.oid[:-2] == OBJECTS
        assert names[".".join(map(str, varbind.oid[:-1]))].startswith("virtha")
    assert names[".".join(map(str, ROOT))] == "virthaMIB"


@pytest.mark.parametrize("broken", [False, True])
def test_smilint_has_nothing_to_say(tmp_path: Path, broken: bool) -> None:
    """And has when there is something: a name that no OBJECTS clause may hold."""
    for path in MIBS.glob("*.txt"):
        (tmp_path / path.stem).write_text(path.read_text())
    text = mib_text()
    if broken:
        text = text.replace("::= { virthaObjects 13 }", "::= { virthaObjects 12 }")
    (tmp_path / "VIRTHA-MIB").write_text(text)
    (tmp_path / "smi.conf").write_text(f"path {tmp_path}\n")
    lint = subprocess.run(
        ["smilint", "-c", str(tmp_path / "smi.conf"), "-l", "6", "-m", "VIRTHA-MIB"],
        capture_output=True,
        text=True,
    )
    assert bool(lint.stdout + lint.stderr) is broken, lint.stdout + lint.stderr
