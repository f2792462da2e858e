"""`virtha completion bash|zsh|fish`."""

import os
from enum import StrEnum

import typer

app = typer.Typer()


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


@app.command()
def completion(shell: Shell = typer.Argument(metavar="bash|zsh|fish", help="Your shell.")) -> None:
    """Print the completion script. For bash: source <(virtha completion bash).

    It completes commands and options, and names of VMs, hosts and all else from the server that you are signed in to.
    """
    from virtha.cli.main import COMPLETING, command

    # The shells' own entry: with this variable set the program prints the script and ends.
    os.environ[COMPLETING] = f"source_{shell}"
    command().main(args=[], prog_name="virtha")
