"""The tables. Portable: no type or clause here that SQLite and PostgreSQL don't share.

A record's configuration is one JSON ``body``; columns beside it exist because they are searched,
joined or unique. So a new field of a record needs no migration, a new way of searching does.
Times are UTC milliseconds, booleans are Boolean, ids are UUID text.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
)

from virtha.store.columns import body as _body
from virtha.store.columns import key as _key
from virtha.store.columns import metadata as metadata
from virtha.store.columns import refers as _refers
from virtha.store.columns import revision as _revision

installation = Table(
    "installation",
    metadata,
    _key(),
    Column("name", Text, nullable=False),
    Column("hold", Text),
    # The one revision counter; it is raised inside each writing transaction.
    Column("revision", BigInteger, nullable=False),
    Column("term", BigInteger, nullable=False),
    # Changes with each restore, so that hosts' earlier inventories no longer count (M2).
    Column("timeline", Text, nullable=False),
    Column("host_number_last", Integer, nullable=False),
    # Events up to this revision may have been pruned: nobody can follow from below it.
    Column("events_pruned_to", BigInteger, nullable=False),
)

cluster = Table(
    "cluster",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _body(),
    _revision(),
)

host = Table(
    "host",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    Column("number", Integer, nullable=False, unique=True),
    _refers("cluster_id", "cluster.id"),
    # NULL where it was not told: NULLs are distinct in both databases.
    Column("libvirt_uuid", Text, unique=True),
    _body(),
    _revision(),
)
Index(None, host.c.cluster_id)

host_status = Table(
    "host_status",
    metadata,
    _refers("host_id", "host.id", cascade=True, primary=True),
    Column("state", Text, nullable=False),
    Column("fact_sequence", BigInteger, nullable=False),
    # Up to which fact the host may forget: what the engine made of it is in its records as well.
    Column("fact_acknowledged", BigInteger, nullable=False),
    # The timeline in which this host last sent its inventory.
    Column("timeline", Text, nullable=False),
    # The timeline in which no start that a lost record knew of can come up there any more.
    Column("settled_timeline", Text, nullable=False),
    _body(),
    _revision(),
)

storage_domain = Table(
    "storage_domain",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _refers("cluster_id", "cluster.id"),
    Column("path", Text, nullable=False),
    _body(),
    _revision(),
    # Of those that its hosts told the one that counts; NULL: none told any.
    Column("mark", Text),
    UniqueConstraint("cluster_id", "path"),
)

storage_report = Table(
    "storage_report",
    metadata,
    _refers("host_id", "host.id", cascade=True, primary=True),
    _refers("storage_domain_id", "storage_domain.id", cascade=True, primary=True),
    # As it counts: the host's own word is in the body.
    Column("usable", Boolean, nullable=False),
    _body(),
    _revision(),
    # The last that it told.
    Column("mark", Text),
    # A host that sees the mark that counts, where this one sees another: it can't use the domain, whatever it says.
    Column("other_than", Text),
)

vm = Table(
    "vm",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _refers("cluster_id", "cluster.id"),
    Column("ha", Boolean, nullable=False),
    # What searches look at in every row; they are in the body too.
    Column("description", Text, nullable=False, server_default=""),
    Column("memory_bytes", BigInteger, nullable=False, server_default="0"),
    Column("vcpus", Integer, nullable=False, server_default="0"),
    Column("watchdog", Text),
    Column("watchdog_action", Text),
    Column("priority", Integer, nullable=False, server_default="0"),
    _body(),
    _revision(),
)
# Pages of one cluster are in this order: without the name all of its VMs would be sorted for each.
Index(None, vm.c.cluster_id, vm.c.name)
# Lists are by name; what they are searched by is read here, without the bodies.
Index(
    "ix_vm_searched",
    *(vm.c.name, vm.c.id, vm.c.cluster_id, vm.c.description, vm.c.ha, vm.c.memory_bytes),
    *(vm.c.vcpus, vm.c.watchdog, vm.c.watchdog_action, vm.c.priority),
)

vm_status = Table(
    "vm_status",
    metadata,
    _refers("vm_id", "vm.id", cascade=True, primary=True),
    Column("state", Text, nullable=False),
    Column("host_id", Text),
    Column("last_watchdog", BigInteger),
    Column("watchdog_count", Integer, nullable=False, server_default="0"),
    _body(),
    _revision(),
)
Index(None, vm_status.c.host_id)
Index(None, vm_status.c.last_watchdog)

# Which hosts may hold a copy (G1). The same set is in vm_status.body; one function writes both.
vm_holder = Table(
    "vm_holder",
    metadata,
    _refers("vm_id", "vm.id", cascade=True, primary=True),
    # RESTRICT: a host that may hold a copy can't vanish from the records.
    _refers("host_id", "host.id", primary=True),
)
Index(None, vm_holder.c.host_id)

# Hosts that were told the domain: a deleted VM is forgotten on each.
vm_definition = Table(
    "vm_definition",
    metadata,
    _refers("vm_id", "vm.id", cascade=True, primary=True),
    _refers("host_id", "host.id", cascade=True, primary=True),
)

disk = Table(
    "disk",
    metadata,
    _key(),
    _refers("vm_id", "vm.id", cascade=True),
    _refers("storage_domain_id", "storage_domain.id"),
    Column("path", Text, nullable=False),
    # No two VMs share a disk.
    UniqueConstraint("storage_domain_id", "path"),
)
Index(None, disk.c.vm_id)

nic = Table(
    "nic",
    metadata,
    _key(),
    _refers("vm_id", "vm.id", cascade=True),
    Column("mac", Text, nullable=False, unique=True),
)
Index(None, nic.c.vm_id)

template = Table(
    "template",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _refers("cluster_id", "cluster.id"),
    _body(),
    _revision(),
)

# RESTRICT: a storage domain that holds a template can't vanish.
template_disk = Table(
    "template_disk",
    metadata,
    _key(),
    _refers("template_id", "template.id", cascade=True),
    _refers("storage_domain_id", "storage_domain.id"),
    Column("path", Text, nullable=False),
    UniqueConstraint("storage_domain_id", "path"),
)
Index(None, template_disk.c.template_id)

# Files that need a template: thin disks for as long as they exist, also those that outlive their VM, full
# copies while they are made. RESTRICT: a template that is in use can't vanish.
template_use = Table(
    "template_use",
    metadata,
    _refers("storage_domain_id", "storage_domain.id", primary=True),
    Column("path", Text, primary_key=True),
    _refers("template_id", "template.id"),
)
Index(None, template_use.c.template_id)

snapshot = Table(
    "snapshot",
    metadata,
    _key(),
    _refers("vm_id", "vm.id", cascade=True),
    Column("name", Text, nullable=False),
    _body(),
    UniqueConstraint("vm_id", "name"),
)

# No foreign keys: the history outlives what it is about.
event = Table(
    "event",
    metadata,
    Column("revision", BigInteger, primary_key=True, autoincrement=False),
    Column("code", Text, nullable=False),
    Column("severity", Integer, nullable=False),
    Column("cluster_id", Text),
    Column("host_id", Text),
    Column("vm_id", Text),
    Column("at", BigInteger, nullable=False),
    _body(),
)
Index(None, event.c.vm_id, event.c.revision)
Index(None, event.c.host_id, event.c.revision)
Index(None, event.c.host_id, event.c.code, event.c.revision)
# The time, so that of events of a kind only those of a time are read.
Index(None, event.c.code, event.c.revision, event.c.at)
# The events that one sees who may see that cluster only.
Index(None, event.c.cluster_id, event.c.revision)
# Of which VMs, hosts and clusters something happened in a time.
Index(None, event.c.at)

operation = Table(
    "operation",
    metadata,
    _key(),
    Column("kind", Text, nullable=False),
    Column("subject", Text, nullable=False),
    # Of its subject, also when that is gone. NULL: it was gone before this was kept.
    Column("cluster_id", Text),
    Column("open", Boolean, nullable=False),
    _body(),
    # What its steps are to do, and what scans answered: see control/plan.py.
    Column("plan", Text, nullable=False),
    Column("foreign_domains", Text),
    # Its first revision: the order of lists.
    Column("number", BigInteger, nullable=False, unique=True),
    _revision(),
)
Index(None, operation.c.subject, operation.c.open)

# Orders that a host has not answered yet.
host_order = Table(
    "host_order",
    metadata,
    _refers("operation_id", "operation.id", cascade=True, primary=True),
    Column("step", Integer, primary_key=True),
    _refers("host_id", "host.id", cascade=True),
    _body(),
    Column("created", BigInteger, nullable=False),
    Column("number", BigInteger, nullable=False),
)
Index(None, host_order.c.host_id)

# Requests with a key of their sender's that were carried out: sent again, they are answered again.
keyed_request = Table(
    "keyed_request",
    metadata,
    # A hash of the user and the key.
    _key(),
    Column("fingerprint", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    # NULL until the sender was answered.
    Column("answer", Text),
)
Index(None, keyed_request.c.at)

user_account = Table(
    "user_account",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    Column("role", Text, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("password_hash", Text, nullable=False),
    Column("email", Text),
    _revision(),
)

token = Table(
    "token",
    metadata,
    _key(),
    Column("kind", Text, nullable=False),
    Column("secret_hash", Text, nullable=False),
    Column("cluster_id", Text, ForeignKey("cluster.id", ondelete="CASCADE")),
    Column("user_id", Text, ForeignKey("user_account.id", ondelete="CASCADE")),
    Column("expires", BigInteger, nullable=False),
    _body(),
    _revision(),
)
Index(None, token.c.user_id)

# Roles that people made; the fixed ones have no row.
access_role = Table(
    "access_role",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _body(),
    _revision(),
)

access_grant = Table(
    "access_grant",
    metadata,
    _key(),
    _refers("user_id", "user_account.id", cascade=True),
    # The name of a fixed role or of one that people made: no foreign key can say either.
    Column("role", Text, nullable=False),
    # NULL: in all clusters.
    Column("cluster_id", Text, ForeignKey("cluster.id", ondelete="CASCADE")),
)
Index(None, access_grant.c.user_id)
Index(None, access_grant.c.role)

setting = Table(
    "setting",
    metadata,
    Column("key", Text, primary_key=True),
    Column("scope", Text, primary_key=True),
    Column("subject", Text, primary_key=True),
    Column("value", Text, nullable=False),
    _revision(),
)

# Without a foreign key: a removed host's certificate must stay known as revoked.
certificate = Table(
    "certificate",
    metadata,
    _key("serial"),
    Column("host_id", Text, nullable=False),
    Column("not_after", BigInteger, nullable=False),
    Column("revoked", Boolean, nullable=False),
)
Index(None, certificate.c.host_id)

receiver = Table(
    "receiver",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    Column("enabled", Boolean, nullable=False),
    _body(),
    # The secrets, encrypted (control/secret_box.py). Never in the body.
    Column("sealed", Text),
    _revision(),
)

# Apart from the receiver: how its messages fare is no change of the receiver, and has no revision.
receiver_status = Table(
    "receiver_status",
    metadata,
    _refers("receiver_id", "receiver.id", cascade=True, primary=True),
    _body(),
)

subscription = Table(
    "subscription",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    # RESTRICT: a receiver that is in use can't vanish.
    _refers("receiver_id", "receiver.id"),
    Column("user_id", Text, ForeignKey("user_account.id", ondelete="RESTRICT")),
    _body(),
    _revision(),
)
Index(None, subscription.c.receiver_id)
Index(None, subscription.c.user_id)

# The queue, and what became of each message. No foreign keys: it outlives what it is about. No body: whole
# queues change state in one statement.
delivery = Table(
    "delivery",
    metadata,
    _key(),
    Column("number", BigInteger, nullable=False, unique=True),
    Column("subscription_id", Text),
    Column("receiver_id", Text, nullable=False),
    Column("event_revision", BigInteger, nullable=False),
    Column("address", Text),
    Column("test", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    # 0: may go now. So the next ones to send are found in their order, however many wait.
    Column("wait_until", BigInteger, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("created", BigInteger, nullable=False),
    Column("expires", BigInteger, nullable=False),
    Column("done_at", BigInteger),
    Column("code", Text),
    Column("detail", Text),
    # Of a group's message: which events it is about, and why it goes out (GroupNote).
    Column("about", Text),
)
Index(None, delivery.c.receiver_id, delivery.c.state, delivery.c.wait_until, delivery.c.number)
Index(None, delivery.c.state, delivery.c.wait_until)
Index(None, delivery.c.state, delivery.c.expires)
Index(None, delivery.c.subscription_id)
Index(None, delivery.c.event_revision)
# The message that has waited longest, per receiver; and what is old enough to be forgotten.
Index(None, delivery.c.receiver_id, delivery.c.state, delivery.c.created)
Index(None, delivery.c.done_at)

# How many there are, kept with each change: counting them would read all that the queue keeps, at each look.
delivery_count = Table(
    "delivery_count",
    metadata,
    Column("receiver_id", Text, primary_key=True),
    Column("state", Text, primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# What routes remember (alerts/router.py), and what became of each event that one wanted. No foreign keys: a route that is
# gone is noticed by the next step, which says what it dropped.
route_group = Table(
    "route_group",
    metadata,
    _key(),
    Column("subscription_id", Text, nullable=False),
    _body(),
)

event_fate = Table(
    "event_fate",
    metadata,
    Column("event_revision", BigInteger, primary_key=True),
    Column("subscription_id", Text, primary_key=True),
    Column("state", Text, nullable=False),
    Column("code", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("by", Text),
    Column("group_id", Text),
    Column("delivery_id", Text),
)
Index(None, event_fate.c.group_id, event_fate.c.code)
Index(None, event_fate.c.delivery_id)
Index(None, event_fate.c.state, event_fate.c.at)

silence = Table(
    "silence",
    metadata,
    _key(),
    Column("ends", BigInteger, nullable=False),
    _body(),
    _revision(),
)
Index(None, silence.c.ends)

inhibition = Table(
    "inhibition",
    metadata,
    _key(),
    Column("name", Text, nullable=False, unique=True),
    _body(),
    _revision(),
)

# Up to where the events were looked at by those who follow them.
follower = Table(
    "follower",
    metadata,
    Column("name", Text, primary_key=True),
    Column("revision", BigInteger, nullable=False),
)

# The engine's records (engine/records.py): what the leader of each cluster keeps, written under its term.
engine_cluster = Table(
    "engine_cluster",
    metadata,
    _refers("cluster_id", "cluster.id", cascade=True, primary=True),
    # Cluster time of the last write (M4): the next leader's never begins before it.
    Column("clock", BigInteger, nullable=False),
    _body(),
)

# No foreign key to the host: the record of a removed one stays, for its VMs' sake.
engine_host = Table(
    "engine_host",
    metadata,
    _key("host_id"),
    _refers("cluster_id", "cluster.id", cascade=True),
    _body(),
)
Index(None, engine_host.c.cluster_id)

engine_vm = Table(
    "engine_vm",
    metadata,
    _key("vm_id"),
    _refers("cluster_id", "cluster.id", cascade=True),
    _body(),
)
Index(None, engine_vm.c.cluster_id)

# What happened to a host and its VMs, from its failure to its return (model/incident.py). No foreign keys: it outlives
# what it is about.
incident = Table(
    "incident",
    metadata,
    _key(),
    Column("cluster_id", Text, nullable=False),
    Column("host_id", Text, nullable=False),
    # Its first revision: the order of lists.
    Column("number", BigInteger, nullable=False, unique=True),
    Column("open", Boolean, nullable=False),
    # When it was closed; 0: it is open.
    Column("closed", BigInteger, nullable=False),
    _body(),
)
Index(None, incident.c.host_id, incident.c.number)
Index(None, incident.c.open, incident.c.closed)

incident_vm = Table(
    "incident_vm",
    metadata,
    _refers("incident_id", "incident.id", cascade=True, primary=True),
    Column("vm_id", Text, primary_key=True),
    # The engine is not done with it.
    Column("open", Boolean, nullable=False),
    Column("state", Text, nullable=False),
    _body(),
)
Index(None, incident_vm.c.vm_id)

# Copies that people's orders made possible and that no write of the engine knows of yet (G1).
engine_grant = Table(
    "engine_grant",
    metadata,
    _refers("vm_id", "vm.id", cascade=True, primary=True),
    Column("host_id", Text, primary_key=True),
    Column("boot", Text, primary_key=True),
    Column("incarnation", BigInteger, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
)

# Of a cluster or of a host: one of the two. Names are unique within each.
power_device = Table(
    "power_device",
    metadata,
    _key(),
    Column("cluster_id", Text, ForeignKey("cluster.id", ondelete="CASCADE")),
    Column("host_id", Text, ForeignKey("host.id", ondelete="CASCADE")),
    Column("name", Text, nullable=False),
    _body(),
    # The password and other secrets, encrypted (control/secret_box.py). Never in the body.
    Column("sealed", Text),
    _revision(),
    UniqueConstraint("cluster_id", "name"),
    UniqueConstraint("host_id", "name"),
)

# How a host's device fared when it was last tested: no change of its settings, and without a revision.
power_test = Table(
    "power_test",
    metadata,
    _refers("host_id", "host.id", cascade=True, primary=True),
    Column("device", Text, primary_key=True),
    _body(),
)
