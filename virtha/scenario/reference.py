"""The reference page of the scenario language, made from its table of verbs."""

from virtha.scenario.language import SEPARATOR
from virtha.scenario.verbs import VERBS

_INTRODUCTION = (
    "# Scenario language",
    "",
    "Generated from `virtha/scenario/verbs.py` by `make docs`.",
    "",
    "A scenario is one story: a comment that tells it, commands, then `"
    + SEPARATOR
    + "` and what was "
    "recorded, with the end state of each VM. `pytest tests/scenarios --rewrite` writes that part; read "
    "what it wrote. Lines of hosts carry the host's own time, in seconds since the story began; lines of "
    "the server carry the server's, so after an outage they are not in the order of time.",
    "",
    "The hosts of the first `hosts` line are connected when the story begins. An order or a setting takes "
    "2 ms to its host: a fault on the very next line comes before it, an `advance 10ms` between them lets "
    "it arrive.",
    "",
    "Agent and guardian each keep a real session (`virtha/wire`) over simulated bytes. A link is directed: "
    "`cut-link h1 server` keeps what h1 says from the server, while the server's words still arrive. What "
    "a cut link holds arrives when it is healed, if the connection is still there; nobody is told of a "
    "cut, only the session's own silence ends it. A reset is seen by both sides. With `after=BYTES` the "
    "cut or the reset comes when so many more bytes went that way: in the middle of a frame.",
    "",
    "With `engine` as its first command the server decides about failed hosts, by the real engine. Each host then has "
    "power devices, and three networks: management (`net`), storage and BMC. Names of links: `server` on net and bmc, "
    "`storage` on storage. Lines of the engine show all their fields. A VM that runs writes to its disk; what a host "
    "could not write waits in its kernel, longer than the QEMU that wrote it. The story fails when writes of two "
    "incarnations interleave on a disk, when a VM is started while another host has it, when a host is ordered off "
    "that most others see alive, when more are than the cap allows, when power orders or the engine's own wakes turn "
    "in circles, or when a protected VM is down and nobody says why. The end of each host that is not simply alive stands before those of the VMs, with its open reasons.",
    "",
    "The leader works in turns; `kill-server` and `freeze-server` can strike at a point of one: `journal` (before what "
    "came is written down), `intents` (decided, not written), `commands` (written, not sent), `sent`. With `of=` they "
    "wait for a command of that kind: `order_power`, `start`, `investigate`, `read_power`, `cancel_start`.",
    "",
    "| command | what it does |",
    "|---|---|",
)


def reference_markdown() -> str:
    """`docs/reference/scenarios.md`."""
    lines = [*_INTRODUCTION]
    for name in sorted(VERBS):
        usage, _, meaning = VERBS[name].help.partition(": ")
        lines.append(f"| `{_cell(usage)}` | {_cell(meaning)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
