"""The verbs of the scenario language: what follows each, and what it means."""

from virtha.model.policy.document import FIELD_TABLE
from virtha.model.value import Value


class Verb(Value, frozen=True, kw_only=True):
    """``words``: how many follow, least and most. ``options``: names that may be given."""

    words: tuple[int, int]
    options: tuple[str, ...] = ()
    help: str


VERBS: dict[str, Verb] = {
    "hosts": Verb(words=(1, 64), help="hosts NAME...: the hosts, powered on, agents running"),
    "vm": Verb(
        words=(1, 1),
        options=(
            "on",
            "ha",
            "watchdog",
            "no-agent",
            "ignores-shutdown",
            "boot",
            "foreign",
            "writes",
            "memory",
            "priority",
            "depends",
            "apart",
            "prefer-apart",
            "together",
            "storage",
            "on-io-error",
            "grade",
        ),
        help="vm NAME on=HOST [ha] [watchdog=MODEL:ACTION] [no-agent] [ignores-shutdown] [boot=2s] "
        "[writes=500ms] [memory=1GiB] [priority=0] [depends=VM[:CONDITION]] [apart=GROUP] "
        "[prefer-apart=GROUP] [together=GROUP] [storage=DOMAIN] [on-io-error=auto_resume|leave_paused|kill] "
        "[grade=observe|restart|move|fence] [foreign: not ours until it is adopted]",
    ),
    "policy": Verb(
        words=(0, 0),
        options=(
            "enabled",
            "restarts_max",
            "window",
            "delay",
            "delay_growth",
            "delay_max",
            "after_crash",
            "after_panic",
            "after_watchdog_poweroff",
            "after_guest_shutdown",
            "reset_loop_count",
            "reset_loop_window",
            "profile",
            *(field.shown for field in FIELD_TABLE.values()),
        ),
        help="policy restarts_max=2 window=60s profile=fast fencing.action=nothing ...",
    ),
    "engine": Verb(
        words=(0, 0), help="engine: the server decides about failed hosts; before the first host"
    ),
    "host": Verb(
        words=(1, 1),
        options=(
            "power",
            "untested",
            "named",
            "shares-feed",
            "memory",
            "watchdog",
            "virtual",
            "cached-io",
        ),
        help="host NAME [power=bmc|outlets|blind|none, levels with commas] [untested=1: the devices of that "
        "level were never tested] [named: its devices tell whose they are] [shares-feed: a BMC without power of its own] [memory=8GiB] [watchdog=armed|way-out|none, with "
        "leases] [virtual: it is itself a VM] [cached-io: its storage can't do direct I/O]: one more host",
    ),
    "advance": Verb(words=(1, 1), help="advance 5s: let time pass"),
    "start": Verb(words=(1, 1), options=("on",), help="start VM [on=HOST]: the operator's order"),
    "shutdown": Verb(words=(1, 1), help="shutdown VM: asks the guest"),
    "power-off": Verb(words=(1, 1), help="power-off VM"),
    "reboot": Verb(words=(1, 1), help="reboot VM: asks the guest"),
    "reset": Verb(words=(1, 1), help="reset VM"),
    "pause": Verb(words=(1, 1), help="pause VM"),
    "resume": Verb(words=(1, 1), help="resume VM"),
    "adopt": Verb(words=(1, 1), help="adopt VM: take over a domain that libvirt already runs"),
    "forget": Verb(words=(1, 1), help="forget VM: no longer ours"),
    "set": Verb(
        words=(1, 1),
        options=("ha", "on-io-error", "grade"),
        help="set VM [ha=yes|no] [on-io-error=auto_resume|leave_paused|kill] [grade=observe|restart|move|fence]",
    ),
    "hold": Verb(words=(0, 1), help="hold [REASON]: no automatic action"),
    "unhold": Verb(words=(0, 0), help="unhold: automatic action runs again"),
    "migrating": Verb(words=(2, 2), help="migrating VM yes|no: the mark on its record"),
    "supersede": Verb(words=(1, 1), help="supersede VM: the server proved it dead, counts it up"),
    "kill-qemu": Verb(words=(1, 1), options=("on",), help="kill-qemu VM [on=HOST]: kill -9"),
    "vanish-qemu": Verb(
        words=(1, 1), help="vanish-qemu VM: gone while libvirt was down, which names no cause"
    ),
    "term-qemu": Verb(words=(1, 1), help="term-qemu VM: SIGTERM"),
    "fire": Verb(words=(1, 2), help="fire VM [COUNT]: its watchdog fires"),
    "panic": Verb(words=(1, 1), help="panic VM: its kernel panics"),
    "guest-shutdown": Verb(words=(1, 1), help="guest-shutdown VM: from inside"),
    "guest-reboot": Verb(words=(1, 1), help="guest-reboot VM: from inside"),
    "io-error": Verb(words=(1, 1), help="io-error VM: paused on an I/O error"),
    "virsh": Verb(
        words=(2, 2),
        options=("on", "to"),
        help="virsh start|destroy|suspend|resume|run-ungranted|migrate|edit VM [on=HOST] [to=HOST]",
    ),
    "autostart": Verb(
        words=(1, 1),
        options=("on", "managed-save"),
        help="autostart VM [on=HOST] [managed-save: an old image of its memory lies there]: turned on with "
        "libvirt's own tools",
    ),
    "fail-starts": Verb(words=(2, 2), help="fail-starts HOST COUNT: the next starts fail"),
    "blind-starts": Verb(words=(2, 2), help="blind-starts HOST COUNT: results stay unknown"),
    "hide-records": Verb(words=(2, 2), help="hide-records HOST yes|no: guardian can't read them"),
    "crash-agent": Verb(
        words=(1, 1),
        options=("at",),
        help="crash-agent HOST [at=history|intents|states|commands]: now, or at that point",
    ),
    "stop-agent": Verb(words=(1, 1), help="stop-agent HOST"),
    "start-agent": Verb(words=(1, 1), help="start-agent HOST"),
    "stop-guardian": Verb(words=(1, 1), help="stop-guardian HOST"),
    "start-guardian": Verb(words=(1, 1), help="start-guardian HOST"),
    "stop-libvirt": Verb(words=(1, 1), help="stop-libvirt HOST: QEMUs run on"),
    "start-libvirt": Verb(words=(1, 1), help="start-libvirt HOST"),
    "cut-net": Verb(words=(1, 1), help="cut-net HOST: its links, both ways; nobody is told"),
    "heal-net": Verb(words=(1, 1), help="heal-net HOST"),
    "cut-link": Verb(
        words=(2, 2),
        options=("after", "of"),
        help="cut-link FROM TO [after=BYTES] [of=agent|guardian]: that way only; 'server' is the server",
    ),
    "heal-link": Verb(words=(2, 2), help="heal-link FROM TO: what was held arrives"),
    "reset-link": Verb(
        words=(2, 2),
        options=("after", "of"),
        help="reset-link FROM TO [after=BYTES] [of=agent|guardian]: both see their connection break",
    ),
    "stop-server": Verb(words=(0, 0), help="stop-server: killed; its database stays"),
    "start-server": Verb(words=(0, 0), help="start-server: a new instance, a new term"),
    "backup-server": Verb(words=(0, 0), help="backup-server: of its database"),
    "restore-server": Verb(
        words=(0, 0), help="restore-server: started on the backup, in a new timeline"
    ),
    "empty-run": Verb(
        words=(1, 1), help="empty-run HOST: somebody cleans /run, the grants are gone"
    ),
    "slow-start": Verb(
        words=(2, 2),
        help="slow-start HOST 90s: libvirt hangs so long before it makes the next QEMU",
    ),
    "cut": Verb(
        words=(2, 4),
        help="cut net|storage|bmc HOST [to HOST]: its links of that network, both ways; or one of them",
    ),
    "heal": Verb(words=(2, 4), help="heal net|storage|bmc HOST [to HOST]: what was held arrives"),
    "heal-all": Verb(
        words=(0, 0),
        help="heal-all: whatever was cut, stopped, frozen, switched off or made to lie is well again; a cut "
        "or frozen server is followed by a new one",
    ),
    "lease": Verb(
        words=(0, 16),
        help="lease [DOMAIN...]: storage leases on these domains; before the first host",
    ),
    "ceph": Verb(
        words=(0, 16),
        help="ceph [DOMAIN...]: these domains are pools of one Ceph cluster, of which hosts can be shut out; before the first host",
    ),
    "ceph-sees": Verb(
        words=(1, 1),
        options=("as", "nat", "daemons"),
        help="ceph-sees HOST [as=ADDRESS] [nat] [daemons]: how the cluster sees that host from now on",
    ),
    "at-ceph": Verb(
        words=(3, 3),
        help="at-ceph HOST before|done crash|freeze: what happens to its agent when it next works on the cluster's list for another host",
    ),
    "stall-storage": Verb(
        words=(0, 0),
        options=("on", "domain"),
        help="stall-storage [on=HOST] [domain=NAME]: it answers nobody, or not that host; kernels queue writes",
    ),
    "break-storage": Verb(
        words=(1, 1),
        options=("on", "domain"),
        help="break-storage errors|read-only [on=HOST] [domain=NAME]: it answers with errors, at once",
    ),
    "resume-storage": Verb(
        words=(0, 0),
        options=("on", "domain"),
        help="resume-storage [on=HOST] [domain=NAME]: what was queued lands",
    ),
    "tear-slot": Verb(
        words=(1, 1),
        options=("domain",),
        help="tear-slot HOST [domain=NAME]: half of its next slot write lands, and is acknowledged",
    ),
    "late-slot": Verb(
        words=(2, 2),
        options=("domain",),
        help="late-slot HOST 25s [domain=NAME]: its next slot write ends with an error and lands that much later",
    ),
    "stale-slots": Verb(
        words=(1, 1),
        options=("domain", "of"),
        help="stale-slots HOST [of=HOST] [domain=NAME]: it reads all slots but its own, or that host's, as they are now",
    ),
    "fresh-slots": Verb(
        words=(1, 1),
        options=("domain",),
        help="fresh-slots HOST [domain=NAME]: it reads what is there again",
    ),
    "drift": Verb(
        words=(2, 2),
        help="drift HOST PPM: its clock runs that much too fast, or too slow with a minus",
    ),
    "jump-clock": Verb(
        words=(2, 2),
        help="jump-clock HOST 1d: its wall clock jumps, back with a minus; no other does",
    ),
    "hang": Verb(
        words=(1, 1),
        options=("at", "until"),
        help="hang HOST [at=renew|kill|reset|feed|arm|allow|read|poison|waiver] [until=off]: powered, and nothing in it "
        "moves; or when its guardian has next decided that, before it is done; until it is ordered off, which wakes it",
    ),
    "freeze": Verb(
        words=(2, 2),
        options=("at",),
        help="freeze HOST agent|guardian [at=POINT, as with hang]: that process sleeps",
    ),
    "thaw": Verb(words=(1, 1), help="thaw HOST: it and its processes go on where they were"),
    "bmc": Verb(
        words=(2, 3),
        options=("device",),
        help="bmc HOST ok|dead|refuses|lies|nothing|slow TIME|late TIME|of HOST [device=NAME]: how its power devices "
        "behave, or whom they really switch",
    ),
    "kill-server": Verb(
        words=(0, 0),
        options=("at", "of"),
        help="kill-server [at=journal|intents|commands|sent] [of=COMMAND]: now, or at that point of a turn",
    ),
    "freeze-server": Verb(
        words=(0, 0), options=("at", "of"), help="freeze-server [at=POINT] [of=COMMAND]: it sleeps"
    ),
    "stop-driver": Verb(
        words=(0, 0),
        help="stop-driver: the driver of the next power order stops between its look at the clock and the packet",
    ),
    "thaw-server": Verb(words=(0, 0), help="thaw-server: those that sleep go on"),
    "second-server": Verb(
        words=(0, 0), help="second-server: another takes over the lead; the first is not told"
    ),
    "stop-database": Verb(words=(0, 0), help="stop-database: it answers nobody"),
    "start-database": Verb(words=(0, 0), help="start-database"),
    "confirm-dead": Verb(
        words=(1, 1),
        options=("force",),
        help="confirm-dead HOST [force=REASON]: the operator's word",
    ),
    "believed-dead": Verb(
        words=(1, 1),
        help="believed-dead HOST: what says that it is dead will be wrong, so its VMs may run twice until it is heard again",
    ),
    "maintenance": Verb(
        words=(2, 2),
        options=("keep-vms",),
        help="maintenance HOST on|off [keep-vms: nothing is moved away]",
    ),
    "migrate": Verb(
        words=(1, 1),
        options=("to",),
        help="migrate VM [to=HOST]: the operator's order, while it runs",
    ),
    "cancel-migration": Verb(words=(1, 1), help="cancel-migration VM: the operator's order"),
    "busy": Verb(
        words=(2, 2), help="busy VM yes|no: it writes memory faster than the network carries it"
    ),
    "in-migration": Verb(
        words=(3, 8),
        options=("on", "at", "of", "device", "after"),
        help="in-migration VM begun|copying|stands|runs|over VERB WORD...: that happens the next time its move "
        "comes so far",
    ),
    "free": Verb(words=(1, 1), help="free VM: from quarantine, or after it was given up"),
    "lift-brake": Verb(words=(0, 0), help="lift-brake: the operator's word"),
    "explain": Verb(words=(1, 1), help="explain VM|HOST: why it is as it is, now"),
    "must-run": Verb(
        words=(0, 0),
        help="must-run: all is well; within twice the policy's time budget every protected VM runs, or has a "
        "reason that lasts",
    ),
    "crash-points": Verb(
        words=(0, 0),
        help="crash-points: a mark; this story is also played with the leader and the agents struck at every point",
    ),
    "power-cut": Verb(words=(1, 1), help="power-cut HOST: its mains are gone"),
    "boot": Verb(
        words=(1, 1), options=("agent-after",), help="boot HOST [agent-after=60s: and its guardian]"
    ),
    "shutdown-host": Verb(words=(1, 1), help="shutdown-host HOST: guests are ended with SIGTERM"),
}
