"""The settings as written: one TOML file, and the environment's values over it.

A document remembers where each value came from, so that a fault can name the line of the file or the variable.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_agent.settings.environment import read_environment
from edge_agent.settings.faults import VARIABLE, Fault, SettingsError
from edge_agent.settings.lines import KeyPath, key_lines, line_of
from edge_agent.settings.location import absolute, without_slash
from edge_agent.settings.schema import SHORT_FORMS, tables
from edge_agent.settings.showing import show

# Values that may be paths, relative to the folder of the file.
_PATHS = (("model", "url"), ("model", "cpu_url"), ("inference", "labels"), ("telemetry", "sink"))
_PATH_LISTS = (("model", "keys"),)
_FOLDERS = (("telemetry", "raw_data", "images"),)

_QUOTE = "the closing quote of a text is missing"
_SYNTAX = {
    "Invalid value": 'the value is not understood; text needs quotes, as in plugin = "vibration"',
    "Invalid statement": "this is neither a [table] nor key = value",
    "Expected '=' after a key in a key/value pair": 'there must be a "=" after the key',
    "Expected newline or end of document after a statement": (
        'there must be only one key = value on a line; what is not only a number needs quotes, as in "10s"'
    ),
    "Invalid initial character for a key part": (
        'a key is missing here; a table in braces must stand on one line, without a "," behind its last value'
    ),
    "Expected ']' at the end of a table declaration": 'the "]" after the name of the table is missing',
    "Unclosed array": 'a "," or the closing "]" of a list is missing',
    "Unclosed inline table": 'a "," or the closing "}" is missing',
    "Unterminated string": _QUOTE,
    "Illegal character '\\n'": _QUOTE,
    'Expected "\'"': _QUOTE,
    "Cannot overwrite a value": "a key stands twice in the same table",
    "Unescaped '\\' in a string": "a backslash in double quotes must be doubled; or use single quotes",
}
_POSITION = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_TWICE = re.compile(r"Cannot declare \((.*?),?\) twice")


@dataclass(frozen=True, slots=True)
class Document:
    """What was read. `values` holds the tables; `faults` what was wrong with the environment's names."""

    file: Path
    values: dict[str, Any]
    lines: dict[KeyPath, int]
    variables: Mapping[tuple[str, ...], str]
    faults: list[Fault]

    @property
    def folder(self) -> Path:
        """The absolute folder that relative paths in the settings start from."""
        return self.file.absolute().parent

    def fault(self, path: KeyPath, message: str) -> Fault:
        """Return a fault of the value at `path`, with the place it came from."""
        key, item = _split_item(path)
        if item is not None:
            message = f"item {item + 1}: {message}"
        for length in range(len(path), 0, -1):
            if variable := self.variables.get(tuple(map(str, path[:length]))):
                hint = ", written as JSON" if message.startswith(("expected a list,", "expected a table,")) else ""
                return Fault(VARIABLE + variable, None, self._shown(key), message + hint)
        return Fault(str(self.file), line_of(self.lines, path), self._shown(key), message)

    def at(self, path: KeyPath) -> Any:
        """Return the value at `path`, or None."""
        value: Any = self.values
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return None
        return value

    def _shown(self, path: KeyPath) -> str:
        if len(path) > 1 and path[0] == "actions":
            name = self.at((*path[:2], "name"))
            which = show(name) if isinstance(name, str) else f"number {int(path[1]) + 1}"
            return ".".join([f"[[actions]] {which}", *map(str, path[2:])])
        if len(path) == 1 and (path == ("actions",) or isinstance(self.at(path), list)):
            return f"[[{path[0]}]]"
        if len(path) == 1 and (path in tables() or isinstance(self.at(path), dict)):
            return f"[{path[0]}]"
        length = next((size for size in (2, 1) if path[:size] in tables()), 0)
        if path[:length] in SHORT_FORMS and not isinstance(self.at(path[:length]), dict):
            length -= 1
        table, key = ".".join(map(str, path[:length])), ".".join(map(str, path[length:]))
        return ".".join(part for part in (f"[{table}]" if table else "", key) if part)


def _split_item(path: KeyPath) -> tuple[KeyPath, int | None]:
    """Separate the place in a list from the list's key; the elements of [[actions]] are tables, not items."""
    if path and isinstance(path[-1], int) and path[:-1] != ("actions",):
        return path[:-1], path[-1]
    return path, None


def read(file: Path, environ: Mapping[str, str] = os.environ) -> Document:
    """Read the file and the environment. Raises SettingsError when the file is not there or is no TOML."""
    text = _read_text(file)
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also for numbers and nesting beyond what Python takes
        raise SettingsError([_syntax_fault(file, text, str(error))]) from error
    overrides, variables, faults = read_environment(environ)
    document = Document(file, _merged(values, overrides), key_lines(text), variables, faults)
    for path in (*_PATHS, *_FOLDERS):
        if isinstance(value := document.at(path), str):
            text = without_slash(value) if path in _FOLDERS else value
            document.at(path[:-1])[path[-1]] = absolute(text, document.folder)
    for path in _PATH_LISTS:
        if isinstance(value := document.at(path), list):
            paths = [absolute(each, document.folder) if isinstance(each, str) else each for each in value]
            document.at(path[:-1])[path[-1]] = paths
    return document


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        message = "there is no such file; write it, or name another one"
    except IsADirectoryError:
        message = "this is a folder; name the file in it"
    except PermissionError:
        message = f"user {os.geteuid()} may not read it; give that user the right to, as root does with chmod"
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SettingsError([Fault(str(file), line, "", "this is not UTF-8; save the file as UTF-8 text")]) from error
    except OSError as error:
        message = f"cannot be read: {error.strerror}"
    raise SettingsError([Fault(str(file), None, "", message)])


def _syntax_fault(file: Path, text: str, message: str) -> Fault:
    position = _POSITION.fullmatch(message)
    if not position:
        return Fault(str(file), None, "", f"no valid TOML: {message}")
    what, line, column = position.groups()
    if twice := _TWICE.fullmatch(what):
        name = twice[1].replace("', '", ".").strip("'")
        what = f"the table [{name}] stands twice"
    place = f"column {column}" if column else "at the end of the file"
    number = int(line) if line else text.rstrip().count("\n") + 1
    return Fault(str(file), number, "", f"no valid TOML, {place}: {_SYNTAX.get(what, what)}")


def _merged(values: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged
