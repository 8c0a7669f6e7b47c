"""Print a script for tab completion of `dfine` in a shell.

    # bash; add the line to ~/.bashrc to keep it
    eval "$(dfine completion bash)"

    # zsh; add the line to ~/.zshrc
    eval "$(dfine completion zsh)"

The script contains the commands and their flags, so that completion does not start Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from . import main as dfine
from .common import parser_for

SHELLS = ("bash", "zsh")

SCRIPT = """{zsh}_dfine_complete() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}"
    local words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands}"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
    fi
    if [ "$COMP_CWORD" -gt 1 ] && [ "${{current#-}}" = "$current" ]; then
        COMPREPLY=()
        return
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -o bashdefault -o default -F _dfine_complete {programs}
"""


def make_parser(prog: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of this command; `prog` is its name in the help."""
    parser = parser_for(__doc__, prog)
    parser.add_argument("shell", choices=SHELLS, help="shell of the script")
    return parser


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command with these arguments, or with those of the process."""
    arguments = make_parser(prog).parse_args(argv)
    print(script(arguments.shell), end="")


def script(shell: str) -> str:
    """Return the script for "bash" or "zsh"."""
    cases = []
    for name in dfine.SUBCOMMANDS:
        flags = " ".join(flags_of(name))
        cases.append(f'            {name}) words="{flags}" ;;')
    loading = "autoload -U +X compinit && compinit\n"
    loading += "autoload -U +X bashcompinit && bashcompinit\n"
    return SCRIPT.format(
        zsh=loading if shell == "zsh" else "",
        commands=" ".join(dfine.SUBCOMMANDS),
        cases="\n".join(cases),
        programs=" ".join(dfine.PROGRAMS),
    )


def flags_of(name: str) -> list[str]:
    """Return the long flags of a subcommand, and its verbs if it has any."""
    parser = dfine.subcommand_module(name).make_parser()
    words: list[str] = []
    for action in parser._actions:
        words += [word for word in action.option_strings if "--" in word]
        if isinstance(action, argparse._SubParsersAction):
            words += list(action.choices)
    return words
