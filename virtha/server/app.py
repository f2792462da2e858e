"""The server put together: store, authority, use cases, gateway, REST, loops; its start and its end."""

import asyncio
import contextlib
import os
import signal
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import structlog

from virtha import __version__
from virtha.api.app import create_app
from virtha.api.metrics import Metrics
from virtha.api.route import Services
from virtha.control import Control, make_control
from virtha.control.requests import LIST_LIMIT_MAX, OperationQuery
from virtha.drivers.machine_clock import MachineClock
from virtha.drivers.messengers import NetworkMessengers
from virtha.drivers.oidc import OidcProvider
from virtha.drivers.pki import LocalAuthority, server_certificate_fits, server_context
from virtha.drivers.power_devices import RealPowerDevices
from virtha.drivers.service_notify import notify
from virtha.model.errors import Failed, InvalidInput, NotFound, VirthaError
from virtha.model.ids import Term
from virtha.model.operation import OperationState
from virtha.model.time import UtcMillis, format_utc
from virtha.model.value import Value
from virtha.ports.clock import Clock
from virtha.server.clock import this_machine
from virtha.server.config import ServerConfig, ServerPaths, split_address
from virtha.server.engines import Engines
from virtha.server.files import only_server, write_whole
from virtha.server.gateway import Gateway
from virtha.server.listeners import (
    Listener,
    address_of,
    bind_tcp,
    bind_unix,
    tls_listener,
    unix_listener,
)
from virtha.server.notifier import Notifier
from virtha.server.power_tester import PowerTester
from virtha.server.reference_watch import ReferenceWatch
from virtha.server.secret_key import open_box, store_has_sealed
from virtha.server.watch import PresenceWatch
from virtha.store import Store, open_store

log = structlog.get_logger("virtha.server")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
PRUNE_INTERVAL_S = 3_600.0
EXPIRE_INTERVAL_S = 10.0
STOP_DEADLINE_S = 1.5
CLOCK_SLACK_MS = 60_000
"""What clocks are set back by in good order."""


class Ready(Value, frozen=True, kw_only=True):
    """Written to ``run/virtha/server.json`` when the server is ready, and printed as one line."""

    ready: bool = True
    url: str
    gateway: str
    socket: str
    process: int
    instance: str
    term: int


@dataclass(frozen=True, kw_only=True)
class Running:
    """All that lives while the server runs."""

    store: Store
    control: Control
    gateway: Gateway
    services: Services
    listeners: tuple[Listener, ...]
    sockets: tuple[socket.socket, ...]
    watch: PresenceWatch
    engines: Engines
    power_tester: PowerTester
    notifier: Notifier
    references: ReferenceWatch
    ready: Ready


async def serve(
    paths: ServerPaths,
    config: ServerConfig,
    *,
    on_ready: Callable[[Ready], None],
    clock: Clock | None = None,
) -> None:
    """Run until SIGTERM or SIGINT. Raises VirthaError when it can't start, or a part of it fails."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    try:
        if not paths.state.is_dir():
            raise NotFound(
                f"there is no installation in {paths.state}",
                fix="set the server up first: virtha server init",
            )
        with only_server(paths):
            async with running(paths, config, clock or MachineClock(), stopping) as server:
                await _until_stopped(paths, server, stopping, on_ready)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextlib.asynccontextmanager
async def running(
    paths: ServerPaths,
    config: ServerConfig,
    clock: Clock,
    stopping: asyncio.Event,
) -> AsyncIterator[Running]:
    """Everything built and bound, nothing served yet."""
    async with contextlib.AsyncExitStack() as stack:
        # Sockets first: a port that is taken must be found before anything is written.
        rest = stack.enter_context(contextlib.closing(bind_tcp(config.listen, field="listen")))
        gateway_host, gateway_port = _gateway_address(config)
        local = stack.enter_context(contextlib.closing(bind_unix(paths.socket)))
        store = await open_store(paths.database_url(config), clock=clock)
        stack.push_async_callback(store.close)
        authority = load_authority(paths, clock)
        certificate, key = server_certificate(paths, config, authority, clock)
        gateway = Gateway(
            clock=clock,
            installation_id=authority.installation_id,
            instance=str(uuid.uuid4()),
        )
        messengers = NetworkMessengers()
        engines = Engines(
            gateway=gateway,
            clock=clock,
            journals=paths.journals,
            installation_id=authority.installation_id,
        )
        references = ReferenceWatch(config.reference_addresses, engines, clock)
        control = make_control(
            store=store,
            links=gateway,
            authority=authority,
            clock=clock,
            servers=server_addresses(config.names, gateway_port),
            box=open_box(paths, sealed=await store_has_sealed(store)),
            messengers=messengers,
            leaders=engines,
            channels=gateway.channels,
            power_devices=RealPowerDevices(),
            neighbour_power=gateway.power,
            identity_provider=OidcProvider(clock),
            own=this_machine(),
            references=references,
        )
        await _check_same_installation(control, authority)
        await _tell_a_clock_behind(control, clock)
        term = await control.installation.started(version=__version__)
        await control.receivers.check_secrets_readable()
        await control.power.check_secrets_readable()
        metrics = Metrics()
        metrics.term.set(term)
        services = Services(
            control=control,
            authority=authority,
            metrics=metrics,
            stopping=stopping,
            refresh_metrics=lambda: _refresh(metrics, control, gateway, clock.wall_ms()),
            origins=frozenset(config.origins),
        )
        await engines.begin(control, term)
        app = create_app(services)
        pem = authority.certificate_pem()
        plain = server_context(pem, certificate, key, client_certificates=False)
        await _start_gateway(
            gateway,
            control,
            term,
            server_context(pem, certificate, key),
            gateway_host,
            gateway_port,
        )
        stack.push_async_callback(gateway.close)
        stack.push_async_callback(control.host_power.close)
        yield Running(
            store=store,
            control=control,
            gateway=gateway,
            services=services,
            listeners=(tls_listener(app, plain, proxies=config.proxies), unix_listener(app)),
            sockets=(rest, local),
            watch=PresenceWatch(control, gateway, clock, metrics),
            engines=engines,
            power_tester=PowerTester(control.power_schedule, engines, clock),
            notifier=Notifier(control.deliveries, messengers, clock, metrics),
            references=references,
            ready=Ready(
                url=f"https://{address_of(rest)}",
                gateway=f"{gateway_host}:{gateway_port}",
                socket=str(paths.socket),
                process=os.getpid(),
                instance=gateway.instance,
                term=term,
            ),
        )


async def _check_same_installation(control: Control, authority: LocalAuthority) -> None:
    """Half a restore: hosts would be let in by one installation and looked up in another."""
    installation = await control.installation.get()
    if installation.id != authority.installation_id:
        raise Failed(
            f"the database is of installation {installation.id}, the authority of "
            f"{authority.installation_id}",
            fix="restore both from the same backup: virtha server restore FILE --force",
        )


async def _tell_a_clock_behind(control: Control, clock: Clock) -> None:
    """Nothing stops: what is decided counts elapsed time (M4). But tokens, certificates and history go by this clock."""
    last, now = await control.installation.last_event_at(), clock.wall_ms()
    if last is not None and now < last - CLOCK_SLACK_MS:
        log.warning(
            "this machine's clock is behind the last event on record: set it (timedatectl)",
            clock=format_utc(now),
            last_event=format_utc(last),
        )


def _gateway_address(config: ServerConfig) -> tuple[str, int]:
    """With port 0 a free one is looked for now: joining hosts are told it before it is bound."""
    with contextlib.closing(bind_tcp(config.gateway_listen, field="gateway_listen")) as sock:
        host, _ = split_address(config.gateway_listen, field="gateway_listen")
        return host, int(sock.getsockname()[1])


async def _start_gateway(
    gateway: Gateway, control: Control, term: Term, context: Any, host: str, port: int
) -> None:
    try:
        await gateway.start(control, term=term, context=context, host=host, port=port)
    except OSError as error:
        raise Failed(
            f"can't listen on {host}:{port}: {error.strerror or error}", field="gateway_listen"
        ) from None


def load_authority(paths: ServerPaths, clock: Clock) -> LocalAuthority:
    try:
        certificate = paths.authority_certificate.read_text()
        key = paths.authority_key.read_text()
    except FileNotFoundError as error:
        raise NotFound(
            f"there is no {error.filename}",
            fix="set the server up first (virtha server init), or restore a backup",
        ) from None
    except OSError as error:
        raise Failed(
            f"can't read {error.filename}: {error.strerror or error}",
            fix="give it back to root: chown root, chmod 600; or restore a backup",
        ) from error
    except UnicodeDecodeError:
        raise Failed(
            f"what is in {paths.authority} is no certificate and key", fix="restore a backup"
        ) from None
    return LocalAuthority(certificate, key, wall_ms=clock.wall_ms)


def server_certificate(
    paths: ServerPaths, config: ServerConfig, authority: LocalAuthority, clock: Clock
) -> tuple[str, str]:
    """The server's certificate and key; made anew when the names changed or it is about to end."""
    names = certificate_names(config.names)
    if paths.server_certificate.is_file() and paths.server_key.is_file():
        certificate = paths.server_certificate.read_text(errors="replace")
        if server_certificate_fits(certificate, names, now=clock.wall_ms()):
            key = paths.server_key.read_text(errors="replace")
            check_pair(paths, authority, certificate, key)
            return certificate, key
        log.info("the server's certificate is renewed", names=names)
    return renew_certificate(paths, authority, names)


def check_pair(paths: ServerPaths, authority: LocalAuthority, certificate: str, key: str) -> None:
    """Raises Failed where the server's key is not that of its certificate."""
    try:
        server_context(authority.certificate_pem(), certificate, key, client_certificates=False)
    except InvalidInput as error:
        raise Failed(
            f"{paths.server_key} is not the key of {paths.server_certificate} ({error.message})",
            fix="make both anew: virtha server renew-certificate",
        ) from None


def renew_certificate(
    paths: ServerPaths, authority: LocalAuthority, names: tuple[str, ...]
) -> tuple[str, str]:
    """The key is written first: a certificate without its key would stop the next start."""
    certificate, key = authority.issue_server_certificate(names)
    paths.server_certificate.unlink(missing_ok=True)
    write_whole(paths.server_key, key.encode(), mode=0o600)
    write_whole(paths.server_certificate, certificate.encode(), mode=0o644)
    return certificate, key


def certificate_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """This machine's own names for itself are always among them: scripts connect to localhost."""
    return tuple(dict.fromkeys((*names, *LOOPBACK_NAMES)))


def server_addresses(names: tuple[str, ...], port: int) -> tuple[str, ...]:
    """What a joining host is told to connect to: each of our names with the gateway's port."""
    return tuple(f"[{name}]:{port}" if ":" in name else f"{name}:{port}" for name in names)


async def _until_stopped(
    paths: ServerPaths,
    server: Running,
    stopping: asyncio.Event,
    on_ready: Callable[[Ready], None],
) -> None:
    tasks: dict[str, Coroutine[Any, Any, None]] = {
        "rest": server.listeners[0].run_until_stopped(server.sockets[0]),
        "rest-local": server.listeners[1].run_until_stopped(server.sockets[1]),
        "presence": server.watch.run(stopping),
        "engines": server.engines.run(stopping),
        "power-tests": server.power_tester.run(stopping),
        "notifier": server.notifier.run(stopping),
        "references": server.references.run(stopping),
        "prune": _at_intervals(
            server.control.events.prune, PRUNE_INTERVAL_S, "old events forgotten", stopping
        ),
        "prune-incidents": _at_intervals(
            server.control.incidents.prune, PRUNE_INTERVAL_S, "old incidents forgotten", stopping
        ),
        "prune-keyed-requests": _at_intervals(
            server.control.keyed_requests.prune,
            PRUNE_INTERVAL_S,
            "old keyed requests forgotten",
            stopping,
        ),
        "expire": _at_intervals(
            server.control.operations.expire, EXPIRE_INTERVAL_S, "orders given up", stopping
        ),
        "host-power": _at_intervals(
            server.control.host_power.settle, EXPIRE_INTERVAL_S, "left power orders ended", stopping
        ),
        "prune-messages": _at_intervals(
            server.control.deliveries.prune, PRUNE_INTERVAL_S, "old messages forgotten", stopping
        ),
        "ready": _announce(paths, server, stopping, on_ready),
        "stop": _stop(server, stopping),
    }
    try:
        async with asyncio.TaskGroup() as group:
            for name, work in tasks.items():
                group.create_task(_guarded(name, work, stopping), name=name)
    except* VirthaError as failures:
        raise failures.exceptions[0] from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            paths.ready.unlink()
    try:
        async with asyncio.timeout(STOP_DEADLINE_S):
            await server.control.installation.stopped()
    except (VirthaError, TimeoutError) as error:
        # A locked database must not keep the server from stopping; the next start says enough.
        log.warning("the stop can't be recorded", error=str(error))
    log.info("server stopped")


async def _guarded(name: str, work: Coroutine[Any, Any, None], stopping: asyncio.Event) -> None:
    """A long task never ends silently: one that returns early or fails takes the server down."""
    await work
    if not stopping.is_set() and name != "ready":
        raise Failed(f"the server's task '{name}' ended by itself")


async def _stop(server: Running, stopping: asyncio.Event) -> None:
    await stopping.wait()
    log.info("server stops")
    notify("STOPPING=1")
    for listener in server.listeners:
        listener.stop()


async def _announce(
    paths: ServerPaths,
    server: Running,
    stopping: asyncio.Event,
    on_ready: Callable[[Ready], None],
) -> None:
    """Ready means served: both listeners have been seen to accept."""
    for listener in server.listeners:
        await listener.accepting.wait()
    if stopping.is_set():
        return
    write_whole(paths.ready, msgspec.json.encode(server.ready) + b"\n", mode=0o644)
    log.info("server ready", **msgspec.to_builtins(server.ready))
    notify(f"READY=1\nSTATUS=REST on {server.ready.url}, agents on {server.ready.gateway}")
    on_ready(server.ready)


async def _at_intervals(
    what: Callable[[], Awaitable[int]], interval_s: float, said: str, stopping: asyncio.Event
) -> None:
    """Do it now and at each interval; a store that is away is asked again then."""
    while not stopping.is_set():
        try:
            if count := await what():
                log.info(said, count=count)
        except VirthaError as error:
            log.warning("not possible now", what=said, error=str(error))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await stopping.wait()


async def _refresh(metrics: Metrics, control: Control, gateway: Gateway, now: UtcMillis) -> None:
    """Gauges that are read, not counted. Without the store the others are shown all the same."""
    links = gateway.metrics()
    metrics.sessions.labels("agent").set(links.agents)
    metrics.sessions.labels("guardian").set(links.guardians)
    metrics.count_facts(links.facts)
    metrics.count_beats(links.beats)
    try:
        metrics.events.set(await control.events.current_revision())
        page = await control.operations.list(OperationQuery(open=True, limit=LIST_LIMIT_MAX))
        figures = await control.deliveries.figures()
    except VirthaError as error:
        metrics.store_failures.inc()
        log.warning("figures of the store are missing", error=str(error))
        return
    for state in (OperationState.PENDING, OperationState.RUNNING):
        count = sum(1 for operation in page.items if operation.state is state)
        metrics.operations.labels(state.value).set(count)
    for name, count in figures.counts.items():
        metrics.deliveries.labels(name).set(count)
    waited_ms = now - figures.oldest_pending if figures.oldest_pending is not None else 0
    metrics.oldest_pending.set(max(0, waited_ms) / 1_000)


def run(paths: ServerPaths, config: ServerConfig, *, on_ready: Callable[[Ready], None]) -> None:
    """`virtha server run`: with uvloop where it is installed (it saves memory per TLS connection)."""
    try:
        import uvloop
    except ModuleNotFoundError:
        asyncio.run(serve(paths, config, on_ready=on_ready))
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(paths, config, on_ready=on_ready))


def absolute_root(root: Path) -> Path:
    return root.expanduser().resolve()
