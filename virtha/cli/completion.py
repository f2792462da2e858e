"""`virtha completion bash|zsh|fish`, and the answer that its scripts ask for at each Tab.

The protocol is ours, one for all three shells: with ``COMPLETING`` set to the shell's name, the program is given the
words before the cursor as they would reach it, the begun one last. (bash hands over its line and what it would
replace of it instead: it cuts words at ':' and '=', too.) The first line of the answer says what kind of thing may
follow, the other lines are what is offered, in the form in which that shell takes it. Nothing of it is ever
evaluated by a shell: names come from the server, and could hold anything.
"""

import re
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import NamedTuple

import typer
from typer._click.shell_completion import (
    CompletionItem,
    _resolve_context,
    _resolve_incomplete,
    split_arg_string,
)
from typer.core import TyperOption

app = typer.Typer()

COMPLETING = "_VIRTHA_COMPLETE"
"""The scripts set it, to their shell's name, when they ask what could follow."""


class Shell(StrEnum):
    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"


class Kind(StrEnum):
    """What may follow: the first line of an answer."""

    WORDS = "words"
    JOINED = "joined"
    """Words to which a value is still to be written: no blank follows."""
    FILES = "files"
    DIRECTORIES = "directories"


class Offer(NamedTuple):
    kind: Kind
    items: list[CompletionItem]


BASH = r"""# virtha's completion. bash: source <(virtha completion bash)
_virtha() {
    local answer
    mapfile -t answer < <(_VIRTHA_COMPLETE=bash "${1/#\~/$HOME}" "${COMP_LINE:0:COMP_POINT}" "$2" 2>/dev/null)
    COMPREPLY=("${answer[@]:1}")
    case ${answer[0]} in
        joined) compopt -o nospace ;;
        files) compopt -o default ;;
        directories) compopt -o dirnames ;;
    esac
}
complete -F _virtha virtha
"""
ZSH = r"""#compdef virtha
# virtha's completion. zsh, after compinit: source <(virtha completion zsh)
_virtha() {
    local kind
    local -a answer
    answer=("${(@f)$(_VIRTHA_COMPLETE=zsh "${(Q)words[1]/#\~/$HOME}" "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}")
    kind=$answer[1]
    answer=("${(@)answer[2,-1]}")
    case $kind in
        words) _describe -V virtha answer ;;
        joined) _describe -V virtha answer -S '' ;;
        files) [[ $PREFIX == --*=* ]] && compset -P '*='; _files ;;
        directories) [[ $PREFIX == --*=* ]] && compset -P '*='; _files -/ ;;
    esac
}
if [[ $funcstack[1] == _virtha ]]; then
    _virtha "$@"
elif (( $+functions[compdef] )); then
    compdef _virtha virtha
else
    print -u2 "virtha: no completion: write 'autoload -Uz compinit && compinit' above this line"
fi
"""
FISH = r"""# virtha's completion. fish: virtha completion fish | source
function __virtha_complete
    set -l words (commandline -opc)
    set -l begun (commandline -ct)
    set -l answer (_VIRTHA_COMPLETE=fish $words[1] $words[2..-1] "$begun" 2>/dev/null)
    set -l option (string match -r '^--[^=]*=' -- "$begun")
    set -l path (string replace -r '^--[^=]*=' '' -- "$begun")
    switch "$answer[1]"
        case words joined
            printf '%s\n' $answer[2..-1]
        case files
            printf '%s\n' "$option"(__fish_complete_path "$path")
        case directories
            printf '%s\n' "$option"(__fish_complete_directories "$path" '')
    end
end
complete --command virtha --erase
complete --command virtha --no-files --keep-order --arguments '(__virtha_complete)'
"""
SCRIPTS = {Shell.BASH: BASH, Shell.ZSH: ZSH, Shell.FISH: FISH}


@app.command()
def completion(shell: Shell = typer.Argument(metavar="bash|zsh|fish", help="Your shell.")) -> None:
    """Print the completion script. For bash: source <(virtha completion bash).

    It completes commands and options, and names of VMs, hosts and all else from the server that you are signed in to.
    """
    sys.stdout.write(SCRIPTS[shell])


def answer(shell: str, given: Sequence[str]) -> str:
    """What a shell's script is told: lines, none where nothing follows. Never raises: the line is being typed."""
    try:
        if shell == Shell.BASH:
            return _for_bash(*given)
        *words, begun = given
        if shell == Shell.ZSH:
            return _lines(follows(words, begun), _for_zsh)
        # As it is typed: with a quote that is still open, which fish itself unquotes only in whole words.
        return _lines(follows(words, "".join(split_arg_string(begun))), _for_fish)
    except Exception:
        # Whatever is wrong with the line, the command will say it; here it would tear it.
        return ""


def follows(words: Sequence[str], begun: str) -> Offer:
    """What may follow ``words`` (without the program) and begins with ``begun``."""
    from virtha.cli.main import command

    arguments = [*words]
    context = _resolve_context(command(), {}, "virtha", arguments)
    before = len(arguments)
    asked, value = _resolve_incomplete(context, arguments, begun)
    if isinstance(asked, TyperOption) and arguments[-1:] and arguments[-1] in asked.opts:
        # An option without its value: the parser gave up on the whole line, and what else it says is not known.
        context = _resolve_context(command(), {}, "virtha", arguments[:-1])
    items = asked.shell_complete(context, value)
    if any(item.type in ("file", "dir") for item in items):
        kind = Kind.DIRECTORIES if items[0].type == "dir" else Kind.FILES
        return Offer(kind, [])
    if len(arguments) > before:  # --option=value: what is offered stands for the whole word
        option = begun[: len(begun) - len(value)]
        items = [CompletionItem(option + item.value, help=item.help) for item in items]
    open_ended = bool(items) and all(str(item.value).endswith(("=", ":", "/")) for item in items)
    return Offer(Kind.JOINED if open_ended else Kind.WORDS, items)


def _lines(offer: Offer, form: Callable[[CompletionItem], str]) -> str:
    return "".join(f"{line}\n" for line in (offer.kind, *map(form, offer.items)))


def _help(item: CompletionItem) -> str:
    """One line of it: what a list has room for."""
    return " ".join((item.help or "").split()).partition(". ")[0].removesuffix(".")


def _for_zsh(item: CompletionItem) -> str:
    value = str(item.value).replace("\\", r"\\").replace(":", r"\:")
    return f"{value}:{_help(item)}" if _help(item) else value


def _for_fish(item: CompletionItem) -> str:
    return f"{item.value}\t{_help(item)}" if _help(item) else str(item.value)


_NEEDS_BACKSLASH = re.compile(r"([^\w@%+=:,./-])")
_NEEDS_BACKSLASH_IN_QUOTES = re.compile(r'(["$`\\])')


def _for_bash(line: str, replaced: str) -> str:
    """``line``: up to the cursor; ``replaced``: the part of its last word in place of which bash puts what is offered."""
    words = split_arg_string(line + _CURSOR)[1:]
    begun = words.pop().removesuffix(_CURSOR)
    # bash cuts words at ':' and '=': what stands before the part that it replaces stays.
    kept = len(begun) - len("".join(split_arg_string(replaced)))
    quote = _open_quote(line)

    def form(item: CompletionItem) -> str:
        word = str(item.value)[kept:]
        if quote == "'":
            return word.replace("'", r"'\''")
        needs = _NEEDS_BACKSLASH_IN_QUOTES if quote else _NEEDS_BACKSLASH
        return needs.sub(r"\\\1", word)

    return _lines(follows(words, begun), form)


_CURSOR = "\N{END OF TEXT}"
"""Makes a word of what is not begun yet; nobody types it."""


def _open_quote(line: str) -> str:
    """The quote in which ``line`` ends; empty: none is open."""
    quote, escaped = "", False
    for one in line:
        if escaped:
            escaped = False
        elif one == "\\" and quote != "'":
            escaped = True
        elif one in "\"'" and quote in ("", one):
            quote = "" if quote else one
    return quote
