"""The installation itself: set up once, started with a new term each time, restored."""

from uuid import uuid4

from virtha.control.history import record
from virtha.control.names import check_name
from virtha.control.passwords import Passwords, check_password
from virtha.control.users import check_user_name, insert_user
from virtha.model.errors import Conflict
from virtha.model.host import Cluster, Installation
from virtha.model.ids import ClusterId, InstallationId, Term
from virtha.model.time import UtcMillis
from virtha.model.user import Role
from virtha.store.clusters import save_cluster
from virtha.store.events import last_event_at
from virtha.store.installations import (
    InstallationRow,
    add_installation,
    find_installation,
    set_term,
    set_timeline,
    the_installation,
)
from virtha.store.store import Store
from virtha.store.users import drop_access_tokens

FIRST_CLUSTER = "default"


class InstallationFacts:
    def __init__(self, store: Store) -> None:
        self._store = store

    async def get(self) -> Installation:
        """Raises NotFound before ``virtha server init``."""
        return (await self.row()).installation

    async def row(self) -> InstallationRow:
        async with self._store.read() as tx:
            return await the_installation(tx)

    async def started(self, *, version: str) -> Term:
        """Each start of the server is a term of its own: 1 + the highest it knows (M1)."""
        async with self._store.write() as tx:
            term = Term((await the_installation(tx)).term + 1)
            await set_term(tx, term)
            await record(tx, "server.started", version=version, term=term)
            return term

    async def last_event_at(self) -> UtcMillis | None:
        async with self._store.read() as tx:
            return await last_event_at(tx)

    async def stopped(self) -> None:
        async with self._store.write() as tx:
            await record(tx, "server.stopped")

    async def backed_up(self, *, path: str, by: str) -> None:
        async with self._store.write() as tx:
            await record(tx, "server.backup.made", by=by, path=path)

    async def restored(self, *, path: str, by: str) -> None:
        """To be called once on a restored database, before anything else is done with it.

        Its records may be older than what runs: a new timeline makes every start wait until each
        host has reported its VMs anew (M2). All sign-ins and access tokens end: which of them were ended since the backup nobody
        knows any more.
        """
        async with self._store.write() as tx:
            await set_timeline(tx, str(uuid4()))
            await drop_access_tokens(tx)
            await record(tx, "server.restored", by=by, path=path)


async def initialise(
    *,
    store: Store,
    name: str,
    administrator: str,
    password: str,
    installation_id: InstallationId | None = None,
    passwords: Passwords | None = None,
) -> Installation:
    """`virtha server init`: the installation, a first cluster and a first administrator.

    ``installation_id``: what the authority's certificate names already; None makes one. One
    transaction; raises Conflict when it was done before.
    """
    check_name(name)
    check_user_name(administrator)
    check_password(password)
    password_hash = await (passwords or Passwords()).hash(password)
    made = Installation(id=installation_id or InstallationId(str(uuid4())), name=name)
    async with store.write() as tx:
        if await find_installation(tx) is not None:
            raise Conflict(
                "the installation was set up already", fix="to begin anew, move its database away"
            )
        await add_installation(tx, made, timeline=str(uuid4()))
        await record(tx, "server.initialised", by="root", installation=name)
        await insert_user(tx, administrator, Role.ADMINISTRATOR, password_hash, by="root")
        cluster = await save_cluster(tx, Cluster(id=ClusterId(str(uuid4())), name=FIRST_CLUSTER))
        await record(tx, "cluster.created", cluster_id=cluster.id, by="root", name=cluster.name)
    return made
