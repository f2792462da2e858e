"""Tickets, and the WebSocket that they open: real control, real uvicorn, the command line's own WebSocket end."""

import asyncio
import contextlib
import gc
import os
import socket
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import Request

from virtha.api.app import create_app
from virtha.api.route import Services
from virtha.cli.console_terminal import LEAVE, relay
from virtha.control import consoles as consoles_module
from virtha.control.access_views import AccessTokenCreate, RoleChange, RoleCreate
from virtha.control.console_tickets import PER_USER_MAX, VALID_MS
from virtha.control.requests import ConsoleTicketCreate, SessionCreate, UserChange, UserCreate
from virtha.control.views import Caller
from virtha.model.access import Permission
from virtha.model.console import ChannelSubject, ConsoleKind, OpenScreen, OpenSerial
from virtha.model.errors import Forbidden, Refused, Unauthenticated, Unavailable
from virtha.model.ids import HostId
from virtha.model.user import Role
from virtha.ports.channels import ByteStream
from virtha.server.listeners import bind_unix, unix_listener

ADMIN = Caller(name="admin", role=Role.ADMINISTRATOR)
SERIAL = ConsoleTicketCreate(kind=ConsoleKind.SERIAL)
VNC = ConsoleTicketCreate(kind=ConsoleKind.VNC)


class Echo:
    """A console that greets, and shows what is typed in capitals; ``quit`` ends it."""

    def __init__(self) -> None:
        self._said: asyncio.Queue[bytes] = asyncio.Queue()
        self._said.put_nowait(b"login: ")
        self.closed = False

    async def receive(self) -> bytes:
        return await self._said.get()

    async def send(self, data: bytes) -> None:
        await self._said.put(b"" if data == b"quit" else data.upper())

    def close(self) -> None:
        self.closed = True


class EchoChannels:
    def __init__(self) -> None:
        self.asked: list[ChannelSubject] = []
        self.streams: list[Echo] = []
        self._news = asyncio.Event()

    async def reached(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.asked) < count:
                self._news.clear()
                await self._news.wait()

    async def open(self, host_id: HostId, subject: ChannelSubject) -> ByteStream:
        self.asked.append(subject)
        self.streams.append(Echo())
        self._news.set()
        return self.streams[-1]


async def running_vm(world: Any) -> tuple[Any, Any, EchoChannels]:
    await world.join("h1")
    await world.add_storage()
    await world.add_vm()
    vm_id, host = await world.run_vm()
    channels = EchoChannels()
    world.control.consoles._channels = channels
    return vm_id, host, channels


def at_terminal(path: Path, ticket: str, typed: bytes, until: bytes) -> tuple[bytes, str]:
    """As a user at a terminal: what was shown, and why it ended. ``until``: leaves when it has seen that."""
    keyboard, keys = os.pipe()
    screen, sink = os.pipe()
    os.set_blocking(screen, True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        os.write(keys, typed)

        shown = bytearray()

        def look() -> None:
            while data := os.read(screen, 4096):
                shown.extend(data)
                if until and until in shown:
                    os.write(keys, LEAVE)
                    return

        looking = threading.Thread(target=look)
        looking.start()
        try:
            ended = relay(sock, ticket, keyboard, sink)
        finally:
            os.close(sink)
            looking.join(60)
            for descriptor in (keyboard, keys, screen):
                os.close(descriptor)
    return bytes(shown), ended


def test_a_console_over_a_real_web_socket(tell: Callable[..., None], tmp_path: Path) -> None:
    async def story(world: Any) -> None:
        vm_id, _, channels = await running_vm(world)
        services = Services(control=world.control, authority=world.authority)
        path = tmp_path / "s.sock"
        listener = unix_listener(create_app(services))
        serving = asyncio.create_task(listener.run_until_stopped(bind_unix(path)))
        await listener.accepting.wait()
        consoles = world.control.consoles

        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)
        assert made.path == f"/v1/console?ticket={made.ticket}"
        shown, ended = await asyncio.to_thread(at_terminal, path, made.ticket, b"root", b"ROOT")
        assert shown == b"login: ROOT" and ended == ""
        assert channels.asked == [OpenSerial(vm_id=vm_id)]

        _, ended = await asyncio.to_thread(at_terminal, path, made.ticket, b"", b"")
        assert ended.startswith("problem.token.used")
        _, ended = await asyncio.to_thread(at_terminal, path, "made-up", b"", b"")
        assert ended.startswith("problem.token.unknown")

        made = await consoles.make_ticket(ADMIN, "web1", VNC)
        shown, ended = await asyncio.to_thread(at_terminal, path, made.ticket, b"quit", b"")
        assert shown == b"login: " and ended.startswith("problem.failed")
        assert channels.asked[1:] == [OpenScreen(vm_id=vm_id)]

        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)
        amidst = asyncio.create_task(asyncio.to_thread(at_terminal, path, made.ticket, b"", b""))
        await channels.reached(3)
        services.stopping.set()
        listener.stop()
        assert (await amidst)[1] != ""
        await serving
        assert all(stream.closed for stream in channels.streams)
        assert [event.fields["kind"] for event in await world.events("vm.console.opened")] == [
            "serial",
            "vnc",
            "serial",
        ]
        assert len(await world.events("vm.console.closed")) == 3
        assert {event.user for event in await world.events("vm.console.*")} == {"admin"}

    tell(story)


def test_what_is_refused_before_a_socket_is_there(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        _, host, channels = await running_vm(world)
        consoles = world.control.consoles
        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)
        world.clock.advance(VALID_MS)
        with pytest.raises(Unauthenticated) as late:
            async with consoles.enter(made.ticket):
                raise AssertionError
        assert late.value.code == "problem.token.expired"
        for _ in range(PER_USER_MAX):
            made = await consoles.make_ticket(ADMIN, "web1", SERIAL)
        with pytest.raises(Refused) as many:
            await consoles.make_ticket(ADMIN, "web1", SERIAL)
        assert many.value.code == "problem.console.busy"
        host.vanish()
        world.clock.advance(VALID_MS)
        with pytest.raises(Unavailable):
            await consoles.make_ticket(ADMIN, "web1", SERIAL)
        assert channels.asked == []

    tell(story)


class Closable(Echo):
    """As a real channel: closed here, whoever reads it is told."""

    async def receive(self) -> bytes:
        data = await super().receive()
        if self.closed:
            raise Unavailable("the channel to the host ended")
        return data

    def close(self) -> None:
        super().close()
        self._said.put_nowait(b"")


@pytest.mark.req("L6")
def test_a_user_who_may_no_more_neither_enters_nor_stays(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Being disabled signs out everywhere; a keyboard in a guest is no exception."""
    monkeypatch.setattr(consoles_module, "ALLOWED_EVERY_S", 0.02)

    async def story(world: Any) -> None:
        _, _, channels = await running_vm(world)
        consoles, users = world.control.consoles, world.control.users
        eve = await users.create(
            ADMIN, UserCreate(name="eve", password="correct horse battery", role=Role.OPERATOR)
        )
        caller = Caller(name="eve", role=Role.OPERATOR, user_id=eve.id)
        made, later = [await consoles.make_ticket(caller, "web1", SERIAL) for _ in range(2)]

        async def opened(_host_id: HostId, subject: ChannelSubject) -> ByteStream:
            channels.streams.append(Closable())
            return channels.streams[-1]

        monkeypatch.setattr(channels, "open", opened)
        with pytest.raises(Forbidden):
            async with asyncio.timeout(60), consoles.enter(made.ticket) as stream:
                await stream.receive()
                await users.change(ADMIN, "eve", UserChange(enabled=False))
                while True:
                    await stream.receive()
        assert channels.streams[-1].closed
        with pytest.raises(Forbidden):
            async with consoles.enter(later.ticket):
                raise AssertionError
        assert len(channels.streams) == 1

    tell(story)


@pytest.mark.req("L6")
@pytest.mark.parametrize("how", ["ended", "expired", "signed-out"])
def test_a_console_ends_with_what_its_user_came_with(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A token that leaked and is ended must not stay at a keyboard in a guest."""
    monkeypatch.setattr(consoles_module, "ALLOWED_EVERY_S", 0.02)

    async def story(world: Any) -> None:
        _, _, channels = await running_vm(world)
        consoles, users = world.control.consoles, world.control.users
        wanted = SessionCreate(user="admin", password="correct horse battery")
        signed_in = (await users.sign_in(wanted, address="a")).token
        admin = await users.authenticate(signed_in)
        token = signed_in
        if how != "signed-out":
            asked = AccessTokenCreate(description="screens", expires_ms=60_000)
            token = (await world.control.sessions.create_token(admin, asked, address="a")).token
        caller = await users.authenticate(token)
        made, later = [await consoles.make_ticket(caller, "web1", SERIAL) for _ in range(2)]

        async def opened(_host_id: HostId, subject: ChannelSubject) -> ByteStream:
            channels.streams.append(Closable())
            return channels.streams[-1]

        monkeypatch.setattr(channels, "open", opened)
        with pytest.raises(Forbidden):
            async with asyncio.timeout(60), consoles.enter(made.ticket) as stream:
                await stream.receive()
                if how == "signed-out":
                    await users.sign_out(token)
                elif how == "expired":
                    world.clock.advance(60_000 - 1)
                    await asyncio.sleep(0)
                    assert not channels.streams[-1].closed
                    world.clock.advance(1)
                else:
                    await world.control.sessions.end(admin, caller.token_id)
                while True:
                    await stream.receive()
        assert channels.streams[-1].closed
        if how != "expired":  # its ticket has expired as well
            with pytest.raises(Forbidden):
                async with consoles.enter(later.ticket):
                    raise AssertionError

    tell(story)


@pytest.mark.req("L6")
def test_a_console_gives_no_more_than_the_token_it_was_asked_for_with(
    tell: Callable[..., None],
) -> None:
    """Its user is an administrator; the role that the token is for loses consoles meanwhile."""

    async def story(world: Any) -> None:
        await running_vm(world)
        control = world.control
        screens = RoleCreate(name="screens", permissions=(Permission.CONSOLES,))
        await control.roles.create(ADMIN, screens)
        wanted = SessionCreate(user="admin", password="correct horse battery")
        signed_in = (await control.users.sign_in(wanted, address="a")).token
        admin = await control.users.authenticate(signed_in)
        asked = AccessTokenCreate(description="screens", role="screens")
        token = (await control.sessions.create_token(admin, asked, address="a")).token
        caller = await control.users.authenticate(token)
        made = await control.consoles.make_ticket(caller, "web1", SERIAL)
        await control.roles.change(ADMIN, "screens", RoleChange(permissions=()))
        with pytest.raises(Forbidden):
            async with control.consoles.enter(made.ticket):
                raise AssertionError

    tell(story)


def test_a_console_outlives_a_short_outage_of_the_database_and_no_long_one(
    tell: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who was away for a moment says nothing about anybody's rights; who stays away may miss that they are gone."""
    monkeypatch.setattr(consoles_module, "ALLOWED_EVERY_S", 0.001)
    real, most = consoles_module.find_user, consoles_module.LOOKS_MISSED_MAX

    async def story(world: Any) -> None:
        _, _, channels = await running_vm(world)
        consoles, users = world.control.consoles, world.control.users
        eve = await users.create(
            ADMIN, UserCreate(name="eve", password="correct horse battery", role=Role.OPERATOR)
        )
        caller = Caller(name="eve", role=Role.OPERATOR, user_id=eve.id)
        outage = [False, *[True] * (most - 1), False, *[True] * most]
        looks: list[bool] = []
        unheard: list[dict[str, Any]] = []

        async def find(*asked: Any) -> Any:
            looks.append(outage[len(looks) % len(outage)])
            if looks[-1]:
                raise Unavailable("the database is away")
            return await real(*asked)

        async def opened(_host_id: HostId, subject: ChannelSubject) -> ByteStream:
            channels.streams.append(Closable())
            return channels.streams[-1]

        monkeypatch.setattr(consoles_module, "find_user", find)
        monkeypatch.setattr(channels, "open", opened)
        asyncio.get_running_loop().set_exception_handler(lambda _, what: unheard.append(what))
        for leaves in (False, True):
            looks.clear()
            made = await consoles.make_ticket(caller, "web1", SERIAL)
            with contextlib.ExitStack() as ending:
                if not leaves:
                    told = ending.enter_context(pytest.raises(Unavailable))
                async with asyncio.timeout(60), consoles.enter(made.ticket) as stream:
                    while not channels.streams[-1].closed:
                        await (asyncio.sleep(0.001) if leaves else stream.receive())
            assert looks == outage
        assert "eve may still use consoles" in str(told.value)
        gc.collect()
        assert unheard == [], "its user left at that very moment"

    tell(story)


def test_a_vm_that_ended_since_the_ticket_was_made(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        vm_id, host, channels = await running_vm(world)
        consoles = world.control.consoles
        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)
        await host.stopped(vm_id, 1)
        for attempt in (consoles.make_ticket(ADMIN, "web1", SERIAL), entered(consoles, made)):
            with pytest.raises(Refused) as refused:
                await attempt
            assert refused.value.code == "problem.vm.state"
        assert channels.asked == []

    async def entered(consoles: Any, made: Any) -> None:
        async with consoles.enter(made.ticket):
            raise AssertionError

    tell(story)


async def told(world: Any, code: str, count: int) -> None:
    async with asyncio.timeout(60):
        while len(await world.events(code)) < count:
            await asyncio.sleep(0.005)


def cut_in_the_middle(path: Path, ticket: str) -> None:
    """A user's program that is killed: no close frame, what it was sent is unread, its kernel resets the connection."""
    reset = struct.pack("ii", 1, 0)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(60)
        sock.connect(str(path))
        opening = WSConnection(ConnectionType.CLIENT)
        sock.sendall(opening.send(Request(host="virtha", target=f"/v1/console?ticket={ticket}")))
        assert sock.recv(12) == b"HTTP/1.1 101"
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)


def test_a_user_who_is_killed_leaves_nothing_behind(
    tell: Callable[..., None], tmp_path: Path
) -> None:
    async def story(world: Any) -> None:
        _, _, channels = await running_vm(world)
        services = Services(control=world.control, authority=world.authority)
        path = tmp_path / "s.sock"
        listener = unix_listener(create_app(services))
        serving = asyncio.create_task(listener.run_until_stopped(bind_unix(path)))
        await listener.accepting.wait()
        tasks = 0
        for number in range(1, 4):
            made = await world.control.consoles.make_ticket(ADMIN, "web1", VNC)
            await asyncio.to_thread(cut_in_the_middle, path, made.ticket)
            await channels.reached(number)
            await told(world, "vm.console.closed", number)
            assert channels.streams[-1].closed
            if number == 1:
                tasks = len(asyncio.all_tasks())
        assert len(asyncio.all_tasks()) <= tasks
        listener.stop()
        await serving

    tell(story)


def test_a_ticket_is_for_one_user_of_one_vm_once(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        vm_id, _, channels = await running_vm(world)
        await world.add_vm("web2")
        await world.run_vm("web2")
        consoles = world.control.consoles
        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)

        async def enter() -> str:
            try:
                async with consoles.enter(made.ticket) as stream:
                    await stream.receive()
                    return "in"
            except Unauthenticated as error:
                return error.code

        ends = await asyncio.gather(enter(), enter(), enter())
        assert sorted(ends) == ["in", "problem.token.used", "problem.token.used"]
        assert channels.asked == [OpenSerial(vm_id=vm_id)], (
            "the VM is the ticket's, nobody names one"
        )
        assert [event.vm_id for event in await world.events("vm.console.*")] == [vm_id, vm_id]

    tell(story)


def test_whoever_is_cancelled_at_a_console_is_told_to_have_left(tell: Callable[..., None]) -> None:
    async def story(world: Any) -> None:
        _, _, channels = await running_vm(world)
        consoles = world.control.consoles
        made = await consoles.make_ticket(ADMIN, "web1", SERIAL)

        async def look() -> None:
            async with consoles.enter(made.ticket):
                await asyncio.Event().wait()

        looking = asyncio.create_task(look())
        await channels.reached(1)
        await told(world, "vm.console.opened", 1)
        looking.cancel()
        await asyncio.sleep(0)
        looking.cancel()  # while it tells that
        with pytest.raises(asyncio.CancelledError):
            await looking
        await told(world, "vm.console.closed", 1)
        assert channels.streams[0].closed

    tell(story)
