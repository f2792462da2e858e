"""The use cases, put together."""

from dataclasses import dataclass

from virtha.control.access_check import AccessCheck
from virtha.control.clusters import Clusters
from virtha.control.consoles import Consoles, NoChannels
from virtha.control.deliveries import Deliveries
from virtha.control.device_turns import DeviceTurns
from virtha.control.effects import Dispatcher
from virtha.control.engine_orders import EngineOrders
from virtha.control.engine_power import EnginePower
from virtha.control.events import Events
from virtha.control.facts import FactRecorder
from virtha.control.freeing import Freeing
from virtha.control.hellos import HelloBook
from virtha.control.hold import Hold
from virtha.control.host_care import HostCare
from virtha.control.host_power import HostPower
from virtha.control.hosts import Hosts
from virtha.control.incidents import Incidents
from virtha.control.inhibitions import Inhibitions
from virtha.control.installation import InstallationFacts
from virtha.control.join import Join
from virtha.control.keyed_requests import KeyedRequests
from virtha.control.launch import Launcher
from virtha.control.leading import Leading
from virtha.control.notifications import Notifications
from virtha.control.notifier_bell import NotifierBell
from virtha.control.operations import Operations
from virtha.control.own_machine import OwnMachine
from virtha.control.passwords import Passwords
from virtha.control.power import Power
from virtha.control.power_orders import PowerOrders
from virtha.control.power_results import PowerResults
from virtha.control.power_schedule import PowerSchedule
from virtha.control.provider_sign_in import ProviderSignIns
from virtha.control.readiness import Readiness
from virtha.control.receivers import Receivers
from virtha.control.roles import Roles
from virtha.control.runner import Runner
from virtha.control.secret_box import NoKeyBox, SecretBox
from virtha.control.sessions import Sessions
from virtha.control.settings import Settings
from virtha.control.silences import Silences
from virtha.control.snapshots import Snapshots
from virtha.control.status import Status
from virtha.control.storage import StorageDomains
from virtha.control.subscriptions import Subscriptions
from virtha.control.templates import Templates
from virtha.control.tokens import Tokens
from virtha.control.users import Users
from virtha.control.vm_moves import VmMoves
from virtha.control.vms import Vms
from virtha.ports.authority import Authority
from virtha.ports.channels import HostChannels
from virtha.ports.clock import Clock
from virtha.ports.hosts import HostLinks
from virtha.ports.identity_provider import IdentityProvider, NoIdentityProvider
from virtha.ports.leaders import Leaders, NobodyLeads
from virtha.ports.power import NeighbourPower, PowerDevices
from virtha.ports.receivers import Messengers
from virtha.ports.references import References
from virtha.store import Store


@dataclass(frozen=True, kw_only=True)
class Control:
    """One attribute per kind of use case; each is a small class with the ports that it needs."""

    installation: InstallationFacts
    clusters: Clusters
    hosts: Hosts
    storage: StorageDomains
    snapshots: Snapshots
    templates: Templates
    vms: Vms
    moves: VmMoves
    operations: Operations
    keyed_requests: KeyedRequests
    events: Events
    incidents: Incidents
    access: AccessCheck
    users: Users
    roles: Roles
    sessions: Sessions
    provider_sign_ins: ProviderSignIns
    tokens: Tokens
    settings: Settings
    hold: Hold
    host_care: HostCare
    freeing: Freeing
    join: Join
    status: Status
    readiness: Readiness
    facts: FactRecorder
    receivers: Receivers
    subscriptions: Subscriptions
    silences: Silences
    inhibitions: Inhibitions
    notifications: Notifications
    deliveries: Deliveries
    leading: Leading
    engine_orders: EngineOrders
    consoles: Consoles
    power: Power
    power_orders: PowerOrders
    host_power: HostPower
    power_schedule: PowerSchedule
    engine_power: EnginePower


def make_control(
    *,
    store: Store,
    links: HostLinks,
    authority: Authority,
    clock: Clock,
    servers: tuple[str, ...] = (),
    passwords: Passwords | None = None,
    box: SecretBox | None = None,
    messengers: Messengers | None = None,
    leaders: Leaders | None = None,
    channels: HostChannels | None = None,
    power_devices: PowerDevices | None = None,
    neighbour_power: NeighbourPower | None = None,
    identity_provider: IdentityProvider | None = None,
    own: OwnMachine = OwnMachine(),
    references: References | None = None,
) -> Control:
    """``servers``: addresses (`name:port`) that a joining host is told to connect to. ``box`` None: receivers
    can have no secrets; ``messengers`` None: nothing is sent.
    ``leaders`` None: no engine leads, nothing is done when a host fails. ``channels`` None: consoles can't be seen.
    ``power_devices`` None: power can be set up, and neither read nor switched.
    ``neighbour_power`` None: nor by agents.
    ``identity_provider`` None: nobody signs in but with a password of this installation.
    ``own``: the machine that this server runs on. ``references`` None: it has no reference addresses."""
    leaders = leaders or NobodyLeads()
    dispatcher = Dispatcher(store, links, leaders)
    runner = Runner(Launcher(links), links)
    hellos = HelloBook()
    bell = NotifierBell()
    receivers = Receivers(store, box or NoKeyBox(), bell)
    turns = DeviceTurns()
    users = Users(store, clock, passwords or Passwords())
    power = Power(store, box or NoKeyBox(), power_devices, neighbour_power, turns)
    return Control(
        installation=InstallationFacts(store),
        clusters=Clusters(store, dispatcher),
        hosts=Hosts(store, runner, dispatcher, hellos, leaders, own),
        storage=StorageDomains(store, runner, dispatcher),
        snapshots=Snapshots(store, links, runner, dispatcher),
        templates=Templates(store, links, runner, dispatcher),
        vms=Vms(store, links, runner, dispatcher, leaders),
        moves=VmMoves(store, links, leaders),
        operations=Operations(store, links, runner, dispatcher),
        keyed_requests=KeyedRequests(store),
        events=Events(store),
        incidents=Incidents(store, leaders),
        access=AccessCheck(store),
        roles=Roles(store),
        sessions=Sessions(store),
        users=users,
        provider_sign_ins=ProviderSignIns(
            store, clock, box or NoKeyBox(), users, identity_provider or NoIdentityProvider()
        ),
        tokens=Tokens(store, authority),
        settings=Settings(store),
        hold=Hold(store, dispatcher),
        host_care=HostCare(store, leaders),
        freeing=Freeing(store, leaders),
        join=Join(store, authority, dispatcher, servers),
        status=Status(store, links, leaders),
        readiness=Readiness(store, links, leaders, own, neighbour_power, references),
        facts=FactRecorder(store, runner, dispatcher, hellos, leaders),
        receivers=receivers,
        subscriptions=Subscriptions(store),
        silences=Silences(store),
        inhibitions=Inhibitions(store),
        notifications=Notifications(store, receivers, bell, messengers),
        deliveries=Deliveries(store, receivers, bell),
        leading=Leading(store, dispatcher, hellos, own),
        engine_orders=EngineOrders(store, links, runner, dispatcher),
        consoles=Consoles(store, links, channels or NoChannels()),
        power=power,
        power_orders=PowerOrders(store, power, clock, leaders),
        host_power=HostPower(store, power, clock),
        power_schedule=PowerSchedule(store, leaders, PowerResults(store, clock, leaders)),
        engine_power=EnginePower(store, box or NoKeyBox(), power_devices, neighbour_power, turns),
    )
