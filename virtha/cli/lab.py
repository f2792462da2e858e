"""`virtha lab`: several real hosts on this machine, to try virtha and to break things."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from virtha.lab import faults, lab, preflight
from virtha.lab.bmc import BmcFault, BmcManners
from virtha.lab.image import tiny_image
from virtha.lab.lab import Lab
from virtha.lab.overview import Overview, overview
from virtha.lab.progress import Steps
from virtha.lab.state import exclusive, lab_directory, registered
from virtha.model.errors import Failed, InvalidInput, VirthaError

app = typer.Typer(no_args_is_help=True, help="Real hosts on this machine, to try and to break.")

DirOption = typer.Option(
    None, "--dir", metavar="DIR", help="The lab's directory. Default: VIRTHA_LAB, else the usual."
)
HostArgument = typer.Argument(metavar="HOST", help="h1, h2 …")
VmArgument = typer.Argument(metavar="VM", help="The VM's name.")


@app.command("check")
def check_machine() -> None:
    """Say whether this machine can run a lab. Names what is missing and how to get it."""
    found = preflight.checks()
    table = Table("NEED", "HOLDS", "WHAT", box=None)
    for check in found:
        table.add_row(check.name, "yes" if check.holds else "NO", escape(check.detail))
    Console().print(table)
    missing = [check for check in found if not check.holds]
    if missing:
        names = ", ".join(check.name for check in missing)
        raise Failed(f"missing: {names}", fix=preflight.fix_for(missing))
    typer.echo("This machine can run a lab.")


@app.command("image")
def build_image() -> None:
    """Build the tiny guest's image. Only if it is not there; prints its path."""
    typer.echo(tiny_image(Steps().say))


@app.command("up")
def up(
    hosts: int = typer.Option(3, min=1, max=lab.HOSTS_MAX, help="How many hosts."),
    servers: int = typer.Option(1, min=1, help="How many servers; this version knows one."),
    port: int = typer.Option(0, help="Port on 127.0.0.1 that leads to REST; 0: a free one."),
    directory: Path | None = DirOption,
) -> None:
    """Build a lab. A server, hosts that have joined, shared storage, an image."""
    steps = Steps()
    made = lab.up(lab_directory(directory), hosts=hosts, servers=servers, port=port, steps=steps)
    _print(overview(made))
    typer.echo("\n" + hints(made))


def hints(made: Lab) -> str:
    """How to go on from here."""
    option = f" --dir {made.directory}" if made.directory != lab_directory(None) else ""
    return "\n".join(
        (
            "Look around:",
            f"  export VIRTHA_ROOT={made.server.root}",
            "  virtha status",
            "  virtha vm create web1 --image tiny --memory 128MiB --watchdog i6300esb:reset "
            "--ha --start",
            f"  virtha lab hang-guest web1{option}; virtha vm events web1 --follow",
            f"  virtha lab status{option}",
            f"  virtha lab down{option}",
        )
    )


@app.command("down")
def down(
    directory: Path | None = DirOption,
    every: bool = typer.Option(False, "--all", help="Every lab of this machine."),
    keep_files: bool = typer.Option(False, "--keep-files", help="Keep logs and disks."),
) -> None:
    """Stop and delete the lab. All that it started, by process id; works after any crash."""
    steps = Steps()
    if every:
        wanted = registered()
        # The usual place too: it may hold a lab that was never registered, or whose name is lost.
        if directory is None and lab_directory(None) not in wanted:
            wanted.append(lab_directory(None))
    else:
        wanted = [lab_directory(directory)]
    done, failures = False, []
    for one in wanted:
        try:
            done |= lab.down(one, keep_files=keep_files, steps=steps)
        except VirthaError as error:
            failures.append(error)  # one that can't be ended must not keep the others
    if failures:
        raise failures[0]
    if not done:
        typer.echo("No lab to take down.", err=True)


@app.command("status")
def status(
    directory: Path | None = DirOption,
    as_json: bool = typer.Option(False, "--json", help="As JSON."),
) -> None:
    """What is on, plugged in and running. By what the kernel says."""
    found = overview(Lab.open(lab_directory(directory)))
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(found), indent=2))
    else:
        _print(found)


def _print(found: Overview) -> None:
    table = Table("NODE", "POWER", "CABLE", "ADDRESS", "BMC", "RUNNING", "STOPPED", "VMS", box=None)
    for node in found.nodes:
        table.add_row(
            node.name,
            node.power,
            node.cable,
            node.address,
            node.bmc,
            " ".join(node.services),
            " ".join(node.stopped) if node.power == "on" else "",
            " ".join(node.vms),
        )
    Console().print(table)
    state = "ready" if found.ready else "UNFINISHED"
    typer.echo(f"{found.directory}: {state}, guests run with {found.accelerator}, REST {found.url}")


@app.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
def execute(
    name: str = typer.Argument(metavar="NODE", help="h1, h2 …, s1."),
    words: list[str] = typer.Argument(metavar="CMD", help="The command and its arguments."),
    directory: Path | None = DirOption,
) -> None:
    """Run a command inside a host. With its own libvirt, network, processes; `-- bash` is a shell."""
    if words[0] == "--":  # click leaves it in, where options may follow anywhere
        words = words[1:]
    if not words:
        raise InvalidInput("what shall be run?", field="CMD", fix=f"virtha lab exec {name} -- bash")
    command = Lab.open(lab_directory(directory)).node(name).command(words)
    sys.stdout.flush()
    os.execvp(command[0], command)  # noqa: S606 - the user's own command, as root, in their lab


def _fault(name: str, about: str, act: Callable[[Lab, str], object]) -> None:
    """A command on one host."""

    def run(host: str = HostArgument, directory: Path | None = DirOption) -> None:
        where = lab_directory(directory)
        with exclusive(where):
            act(Lab.open(where), host)

    app.command(name, help=about)(run)


@app.command("kill-host")
def kill_host(
    host: str = HostArgument,
    silent: bool = typer.Option(
        False, "--silent", help="Its cable goes first: peers hear nothing, not even a goodbye."
    ),
    directory: Path | None = DirOption,
) -> None:
    """Cut a host's power: everything on it ends at once."""
    where = lab_directory(directory)
    with exclusive(where):
        faults.kill_host(Lab.open(where), host, silent=silent)


_fault("boot-host", "Power a host on: new boot, same disks.", faults.boot_host)
_fault("cut-net", "Pull a host's network cable.", faults.cut_net)
_fault("heal-net", "Plug it in again.", faults.heal_net)
_fault("kill-bmc", "A host's BMC answers no more; the host runs on.", faults.kill_bmc)
_fault("start-bmc", "It answers again.", faults.start_bmc)
_fault("stall-storage", "A host's shared storage hangs.", faults.stall_storage)
_fault("resume-storage", "It goes on.", faults.resume_storage)
_fault("fail-storage", "A host's shared storage breaks, until it boots.", faults.fail_storage)
_fault("kill-agent", "kill -9 of a host's agent.", faults.kill_agent)
_fault("start-agent", "Start a host's agent.", faults.start_agent)
_fault("kill-guardian", "kill -9 of a host's guardian.", faults.kill_guardian)
_fault("start-guardian", "Start a host's guardian.", faults.start_guardian)
_fault("kill-libvirtd", "kill -9 of a host's libvirtd; VMs run on.", faults.kill_libvirtd)
_fault("start-libvirtd", "Start a host's libvirtd.", faults.start_libvirtd)


@app.command("spoil-bmc")
def spoil_bmc(
    host: str = HostArgument,
    fault: BmcFault = typer.Argument(
        metavar="FAULT",
        help="liar: says off, obeys nothing; idle: obeys nothing; slow: takes its time; none: well again.",
    ),
    slow_ms: int = typer.Option(
        3_000, min=1, max=600_000, help="With slow: how much longer each request takes."
    ),
    directory: Path | None = DirOption,
) -> None:
    """What a host's BMC does wrong from now on."""
    manners = BmcManners(fault=fault, slow_ms=slow_ms if fault is BmcFault.SLOW else 0)
    faults.spoil_bmc(Lab.open(lab_directory(directory)), host, manners)


@app.command("kill-server")
def kill_server(directory: Path | None = DirOption) -> None:
    """kill -9 of the server."""
    faults.kill_server(Lab.open(lab_directory(directory)))


@app.command("start-server")
def start_server(directory: Path | None = DirOption) -> None:
    """Start the server."""
    faults.start_server_again(Lab.open(lab_directory(directory)))


@app.command("kill-qemu")
def kill_qemu(vm: str = VmArgument, directory: Path | None = DirOption) -> None:
    """kill -9 of a VM's QEMU."""
    host, process, _ = faults.kill_qemu(Lab.open(lab_directory(directory)), vm)
    typer.echo(f"killed QEMU of {vm} on {host.name} (process {process.pid})")


@app.command("hang-guest")
def hang_guest(vm: str = VmArgument, directory: Path | None = DirOption) -> None:
    """kill -9 of a guest's watchdog daemon. Its card fires 6 seconds later."""
    host = faults.hang_guest(Lab.open(lab_directory(directory)), vm)
    typer.echo(f"{vm} on {host.name} no longer feeds its watchdog")


@app.command("panic-guest")
def panic_guest(vm: str = VmArgument, directory: Path | None = DirOption) -> None:
    """Crash a guest's kernel."""
    host = faults.panic_guest(Lab.open(lab_directory(directory)), vm)
    typer.echo(f"the kernel of {vm} on {host.name} panics")
