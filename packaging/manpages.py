"""Writes the man pages: `packaging/manpages.py docs/man`.

A template in packaging/man holds the prose, in mdoc(7). `@{NAME}` in it stands for what the code says:

    command run, option run --config    a command, an option or operand, and its help text
    model.url, source.recording.path    a setting, an option of a source: type, limits, default, and what it is for
    NotRunning, EX_CONFIG               an exit status
    synopsis, version, CONFIG_FILE …    other facts

Every command, option and setting must have its place in a template: one that the template forgets is an error, as
is a name that the code does not know.
"""

import argparse
import dataclasses
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, MaxLen, MinLen

from edge_agent import __version__, cli, plugins
from edge_agent.actions.runner import MAX_RUNNING
from edge_agent.service.control_client import ControlError
from edge_agent.settings.faults import Fault
from edge_agent.settings.location import Destination, Location
from edge_agent.settings.publish import Publish
from edge_agent.settings.schema import PREFIX, ModelSettings, description, keys, tables
from edge_agent.settings.units import Unit, parse_size
from edge_agent.settings.window import Window
from edge_agent.settings.wording import unknown
from edge_agent.sources.images import SUFFIXES

TEMPLATES = Path(__file__).parent / "man"
# argparse keeps what a parser was given to itself, so this file looks at `_actions` and the classes of actions.
PLACEHOLDER = re.compile(r"@\{([^{}]+)\}")
ESCAPES = {"\\": r"\e", "-": r"\-", '"': r"\(dq", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti"}
KINDS = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Location: "URL or path",
    Destination: "URL or path",
    Publish: '"all", "change" or table',
    Window: "times of day",
}

Facts = dict[str, str]


def main() -> None:
    """Write both pages into the folder on the command line."""
    folder = Path(sys.argv[1])
    common = common_facts()
    pages = {"edge-agent.8": command_facts(cli.parser()), "edge-agent.toml.5": setting_facts() | plugin_facts()}
    for name, needed in pages.items():
        template = (TEMPLATES / f"{name}.in").read_text(encoding="utf-8")
        (folder / name).write_text(filled(template, needed, common), encoding="utf-8")


def filled(template: str, needed: Mapping[str, str], common: Mapping[str, str]) -> str:
    """Return the page. Raises ValueError if a needed fact has no place in it, or more than one."""
    places = PLACEHOLDER.findall(template)
    astray = sorted(name for name in needed if places.count(name) != 1)
    if astray:
        raise ValueError(f"the template must have one place each for {', '.join(astray)}")
    return PLACEHOLDER.sub(lambda place: needed.get(place[1]) or common[place[1]], template)


def escaped(text: str) -> str:
    """Return text for anywhere but the start of a line."""
    return "".join(ESCAPES.get(char, char) for char in text)


def prose(text: str) -> str:
    """Return sentences as lines of their own, as mdoc wants them; first letter large, full stop at the end."""
    sentence = text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
    return re.sub(r"(?<=\.) +(?=[A-Z])", "\n", escaped(sentence))


def item(tag: str, text: str) -> str:
    """Return an item of a list; without a text its template goes on with one."""
    return f".It {tag}\n{prose(text)}".rstrip("\n")


def common_facts() -> Facts:
    """Return what either page may name."""
    statuses = {name: str(getattr(os, name)) for name in dir(os) if name.startswith("EX_")}
    answers = {kind.__name__: str(kind.exit_status) for kind in ControlError.__subclasses__()}
    places = ("CONFIG_FILE", "STATE_DIRECTORY", "RUNTIME_DIRECTORY", "CONTROL_SOCKET")
    texts = {
        **{name: str(getattr(cli, name)) for name in places},
        "LOGS_DIRECTORY": "/var/log/edge-agent",  # LogsDirectory= in systemd/edge-agent.service
        "version": __version__,
        "prefix": PREFIX,
        "MAX_RUNNING": str(MAX_RUNNING),
        "suffixes": ", ".join(SUFFIXES),
        "fault": str(
            Fault(str(cli.CONFIG_FILE), 14, "[model].pol_interval", unknown("pol_interval", keys(ModelSettings)))
        ),
        "example": (TEMPLATES / "example.toml").read_text(encoding="utf-8").rstrip("\n"),
    }
    return {**statuses, **answers, **{name: escaped(text) for name, text in texts.items()}}


def command_facts(parser: argparse.ArgumentParser) -> Facts:
    """Return the commands and their options, from the parser that the program itself uses."""
    found = {f"option {name}": entry for name, entry in options(parser)}
    synopsis = [f".Nm\n.{markup(action)}" for action in own_actions(parser)]
    for path, text, inner in commands(parser):
        command = f"Cm {escaped(path)}"
        if not list(commands(inner)):
            synopsis.append("\n.".join([".Nm", command, *map(usage, own_actions(inner))]))
        found[f"command {path}"] = item(command, text)
        found |= {f"option {path} {name}": entry for name, entry in options(inner)}
    return {**found, "synopsis": "\n".join(synopsis)}


def commands(parser: argparse.ArgumentParser, path: str = "") -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Yield name, help and parser of each command, and of those below it: "release", "release build"."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                inner = action.choices[choice.dest]
                yield path + choice.dest, choice.help or "", inner
                yield from commands(inner, f"{path}{choice.dest} ")


def own_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the options and operands of one command."""
    return [
        action
        for action in parser._actions
        if not isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
    ]


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    """Yield name and list item of each option and operand."""
    for action in own_actions(parser):
        name = action.option_strings[-1] if action.option_strings else str(action.metavar or action.dest)
        yield name, item(markup(action), (action.help or "") % {**vars(action), "prog": "edge-agent"})


def markup(action: argparse.Action) -> str:
    """Return the option or operand as mdoc macros."""
    value = f"Ar {escaped(str(action.metavar or action.dest))}"
    flags = " , ".join(f"Fl {escaped(option[1:])}" for option in action.option_strings)
    return " ".join(part for part in (flags, value if action.nargs != 0 else "") if part)


def usage(action: argparse.Action) -> str:
    """Return it as it stands in a synopsis."""
    optional = action.nargs == "?" or (action.option_strings and not action.required)
    return f"Oo {markup(action)} Oc" if optional else markup(action)


def setting_facts() -> Facts:
    """Return every setting by its dotted name."""
    found = {}
    for path, table in tables().items():
        defaults = {field.name: default(field) for field in dataclasses.fields(table)}
        for name, hint in keys(table).items():
            if (*path, name) not in tables() or path == ("actions",):
                found[".".join((*path, name))] = setting(name, hint, defaults[name])
    return found


def plugin_facts() -> Facts:
    """Return every option of the sources that come with the agent."""
    found = {}
    for name, plugin in plugins.available(plugins.SOURCES).items():
        if plugin.reference.startswith("edge_agent."):
            kind = plugins.load(plugin).Options
            hints = get_type_hints(kind, include_extras=True)
            for field in dataclasses.fields(kind):
                found[f"source.{name}.{field.name}"] = setting(field.name, hints[field.name], default(field))
    return found


def default(field: "dataclasses.Field[Any]") -> Any:
    """Return the default, or MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def setting(name: str, hint: Any, value: Any) -> str:
    """Return the list item of one setting."""
    bare, marks = unwrapped(hint)
    unit = next((mark for mark in marks if isinstance(mark, Unit)), None)
    kind = kind_words(bare, unit)
    limits = limit_words(bare, marks, unit)
    facts = f"({kind}{limits}; {default_words(value, unit)})"
    return item(f'Cm {escaped(name)} No "{escaped(facts)}"', description(hint))


def unwrapped(hint: Any) -> tuple[Any, list[Any]]:
    """Return the type itself, without `| None`, and all that was annotated to it."""
    if get_origin(hint) is Annotated:
        bare, marks = unwrapped(hint.__origin__)
        return bare, [*marks, *hint.__metadata__]
    if get_origin(hint) in {Union, UnionType}:
        inner = [each for each in get_args(hint) if each is not NoneType]
        if len(inner) == 1:
            return unwrapped(inner[0])
    return hint, []


def kind_words(bare: Any, unit: Unit | None) -> str:
    """Say what is to be written."""
    if unit:
        return "size" if unit.parse is parse_size else "duration"
    if get_origin(bare) is Literal:
        *first, last = (written(choice) for choice in get_args(bare))
        return f"{', '.join(first)} or {last}" if first else last
    if get_origin(bare) in {Union, UnionType}:
        return " or ".join(kind_words(unwrapped(each)[0], None) for each in get_args(bare) if each is not NoneType)
    if get_origin(bare) is list:
        return "list of texts"
    if get_origin(bare) is dict or bare in tables().values():
        return "table"
    return KINDS[bare]


def limit_words(bare: Any, marks: list[Any], unit: Unit | None) -> str:
    """Say what is allowed, as far as it can be told in a word."""

    def bound(kind: type, attribute: str) -> str | None:
        found = [getattr(mark, attribute) for mark in marks if isinstance(mark, kind)]
        return written(found[-1], unit) if found else None

    low, above, high = bound(Ge, "ge"), bound(Gt, "gt"), bound(Le, "le")
    shortest, longest = bound(MinLen, "min_length"), bound(MaxLen, "max_length")
    words = f" from {low} to {high}" if low and high else f", {low} or more" if low else ""
    words += f", more than {above}" if above else ""
    words += f", {shortest} or more" if shortest and get_origin(bare) is list else ""
    return words + (f" of at most {longest} characters" if longest else "")


def default_words(value: Any, unit: Unit | None) -> str:
    """Say what holds when the key is left out."""
    if value is dataclasses.MISSING:
        return "must be given"
    return "no default" if value in (None, {}) else f"default {written(value, unit)}"


def written(value: Any, unit: Unit | None = None) -> str:
    """Return a value as it stands in the file."""
    if unit:
        return f'"{unit.format(value)}"'
    return f'"{value}"' if isinstance(value, str) else str(value).lower()


if __name__ == "__main__":
    main()
