"""Writes the completion for bash: `packaging/completion.py packaging/edge-agent.bash-completion`.

It is made from the parser that the program itself uses. Names of files are left to readline, which alone knows how
the shell quotes. (shtab, which makes completions of any argparse parser, completes no name with a blank in it, and
nothing after `--option=`.)
"""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

from edge_agent import cli

# What completes the value of an option or an operand, by the word that stands for it in the help; see compopt in
# bash(1).
COMPLETERS = {"FILE": "compopt -o default", "DIR": "compopt -o dirnames", "FOLDER": "compopt -o dirnames"}
# What no file can complete.
COMPLETERS |= dict.fromkeys(("NAME", "VERSION", "SHARE", "TIME", "URL", "N", "LABELS", "TEXT"), ":")
SCRIPT = """\
# bash completion for edge-agent; packaging/completion.py in its sources writes this file.

_edge_agent() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev=${{COMP_WORDS[COMP_CWORD - 1]}} command="" choices="" i
    # bash takes --option=value for three words.
    [[ $cur == "=" ]] && cur=
    [[ $prev == "=" ]] && prev=${{COMP_WORDS[COMP_CWORD - 2]}}
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {names})
                command=${{COMP_WORDS[i]}}
                break
                ;;
        esac
    done

    case $command:$prev in
        *[\\<\\>]) compopt -o default; return ;;
{values}
    esac

    case $command in
{choices}
    esac
    if [[ $cur == -* || ! $command ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$cur")
        return
    fi

    case $command in
{operands}
    esac
}}

complete -F _edge_agent edge-agent
"""


def main() -> None:
    """Write the file on the command line."""
    Path(sys.argv[1]).write_text(script(cli.parser()), encoding="utf-8")


def script(parser: argparse.ArgumentParser) -> str:
    """Return the completion for a parser with commands."""
    commands = _commands(parser)
    return SCRIPT.format(
        names="|".join(commands),
        values="\n".join(line for name, command in commands.items() for line in _values(name, command)),
        choices="\n".join(
            [
                f'        "") choices="{" ".join(commands)} {_flags(parser._actions)}" ;;',
                *(f'        {name}) choices="{_flags(_actions(command))}" ;;' for name, command in commands.items()),
            ]
        ),
        operands="\n".join(line for name, command in commands.items() for line in _operands(name, command)),
    )


# argparse keeps what a parser was given to itself.
def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices)


def _actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options and operands of a command, and those of the steps below it that it does not have itself."""
    found = list(parser._actions)
    for steps in [action for action in found if isinstance(action, argparse._SubParsersAction)]:
        found += [action for step in steps.choices.values() for action in _actions(step) if action.option_strings]
    return list({tuple(action.option_strings) or (action.dest,): action for action in reversed(found)}.values())[::-1]


def _flags(actions: Iterable[argparse.Action]) -> str:
    return " ".join(flag for action in actions for flag in action.option_strings if flag.startswith("--"))


def _values(name: str, command: argparse.ArgumentParser) -> list[str]:
    """Return the lines that complete what follows an option."""
    taking = [action for action in _actions(command) if action.option_strings and action.nargs != 0]
    return [
        f"        {'|'.join(f'{name}:{flag}' for flag in action.option_strings)}) {_completer(action)}; return ;;"
        for action in taking
    ]


def _operands(name: str, command: argparse.ArgumentParser) -> list[str]:
    """Return the line that completes the operand of a command, if it takes one."""
    taking = [action for action in _actions(command) if not action.option_strings]
    return [f"        {name}) {_completer(action)} ;;" for action in taking]


def _completer(action: argparse.Action) -> str:
    if action.choices is not None:
        return f'mapfile -t COMPREPLY < <(compgen -W "{" ".join(map(str, action.choices))}" -- "$cur")'
    return COMPLETERS[str(action.metavar)]


if __name__ == "__main__":
    main()
