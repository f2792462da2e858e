"""The scenario language: one story per text, played on the simulator and in the lab.

    # A QEMU is killed with -9: the sentinel starts the VM again at once.
    hosts h1
    vm web on=h1 ha watchdog=i6300esb:reset
    start web
    advance 5s
    kill-qemu web
    advance 5s
    ----
    ...what was recorded, and the end state: written by --rewrite, reviewed by people

Lines above ``----`` are commands: a verb, its words, then options as ``name=value`` or flags.
"""

from collections.abc import Sequence

from virtha.model.errors import InvalidInput
from virtha.model.value import Value

SEPARATOR = "----"


class Verb(Value, frozen=True, kw_only=True):
    """``words``: how many follow, least and most. ``options``: names that may be given."""

    words: tuple[int, int]
    options: tuple[str, ...] = ()
    help: str


VERBS: dict[str, Verb] = {
    "hosts": Verb(words=(1, 64), help="hosts NAME...: the hosts, powered on, agents running"),
    "vm": Verb(
        words=(1, 1),
        options=("on", "ha", "watchdog", "no-agent", "ignores-shutdown", "boot", "foreign"),
        help="vm NAME on=HOST [ha] [watchdog=MODEL:ACTION] [no-agent] [ignores-shutdown] [boot=2s] "
        "[foreign: not ours until it is adopted]",
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
        ),
        help="policy restarts_max=2 window=60s after_panic=no ...",
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
    "set": Verb(words=(1, 1), options=("ha",), help="set VM ha=yes|no"),
    "hold": Verb(words=(0, 1), help="hold [REASON]: no automatic action"),
    "unhold": Verb(words=(0, 0), help="unhold: automatic action runs again"),
    "migrating": Verb(words=(2, 2), help="migrating VM yes|no: the mark on its record"),
    "supersede": Verb(words=(1, 1), help="supersede VM: the server proved it dead, counts it up"),
    "kill-qemu": Verb(words=(1, 1), help="kill-qemu VM: kill -9"),
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
        words=(2, 2), options=("on",), help="virsh start|destroy|suspend|resume|run-ungranted VM"
    ),
    "autostart": Verb(words=(1, 1), help="autostart VM: turned on with libvirt's own tools"),
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
    "power-cut": Verb(words=(1, 1), help="power-cut HOST"),
    "boot": Verb(words=(1, 1), help="boot HOST"),
    "shutdown-host": Verb(words=(1, 1), help="shutdown-host HOST: guests are ended with SIGTERM"),
}


class Step(Value, frozen=True, kw_only=True):
    """One command of a scenario."""

    line: int
    verb: str
    words: tuple[str, ...] = ()
    options: dict[str, str] = {}

    def text(self) -> str:
        options = [name if value == "yes" else f"{name}={value}" for name, value in _sorted(self)]
        return " ".join((self.verb, *self.words, *options))


class Scenario(Value, frozen=True, kw_only=True):
    """``story``: the comment on top; ``expected``: the lines below the separator."""

    story: tuple[str, ...]
    body: tuple[str, ...]
    """All lines above the separator, as written."""
    steps: tuple[Step, ...]
    expected: tuple[str, ...]


def parse(text: str) -> Scenario:
    """Raises InvalidInput that names the line and what is allowed there."""
    lines = text.splitlines()
    end = lines.index(SEPARATOR) if SEPARATOR in lines else len(lines)
    story = tuple(line[1:].strip() for line in lines[:end] if line.startswith("#"))
    if not story:
        raise InvalidInput(
            "a scenario begins with its story",
            field="line 1",
            fix="write '# what happens, and why'",
        )
    steps = [
        _parse_step(line, number)
        for number, line in enumerate(lines[:end], 1)
        if line.strip() and not line.startswith("#")
    ]
    return Scenario(
        story=story,
        body=tuple(lines[:end]),
        steps=tuple(steps),
        expected=tuple(line for line in lines[end + 1 :] if line.strip()),
    )


def render(scenario: Scenario, outcome: Sequence[str]) -> str:
    """The scenario's text with ``outcome`` below the separator: what --rewrite writes."""
    return "\n".join((*scenario.body, SEPARATOR, *outcome)) + "\n"


def _parse_step(line: str, number: int) -> Step:
    name, *rest = line.split()
    verb = VERBS.get(name)
    if verb is None:
        raise InvalidInput(
            f"'{name}' is no command", field=f"line {number}", allowed=tuple(sorted(VERBS))
        )
    words: list[str] = []
    options: dict[str, str] = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if equals or key in verb.options:
            options[key] = value if equals else "yes"
        else:
            words.append(part)
    unknown = sorted(set(options) - set(verb.options))
    if unknown:
        raise InvalidInput(
            f"'{unknown[0]}' is no option of {name}",
            field=f"line {number}",
            allowed=verb.options,
            fix=verb.help,
        )
    if not verb.words[0] <= len(words) <= verb.words[1]:
        raise InvalidInput(f"{name} with {len(words)} words", field=f"line {number}", fix=verb.help)
    return Step(line=number, verb=name, words=tuple(words), options=options)


def _sorted(step: Step) -> list[tuple[str, str]]:
    return sorted(step.options.items())
