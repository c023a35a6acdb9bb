"""Finds the line of each key in a TOML text, which `tomllib` does not tell.

Only texts that `tomllib` has accepted come here, so the scanner follows the structure (headers, keys, brackets,
strings, comments) and does not check it. Should it meet anything else, it stops: the lines up to there are right,
and a key without a line is told by that of its table. A key's path is a tuple: names, and a number for each place
in an array or an array of tables, as in `("actions", 0, "when", "label")`.
"""

import re
import tomllib
from bisect import bisect_right

KeyPath = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_KEY_PART = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2})'
    r"|'''.*?'''(?:'{0,2})"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """Return the line, counted from 1, of each key, table and array element of a valid TOML text."""
    scanner = _Scanner(text)
    try:
        scanner.scan()
    except _NotUnderstoodError:
        return scanner.lines  # of TOML newer than this module, these are all that is known for sure
    return scanner.lines


def line_of(lines: dict[KeyPath, int], path: KeyPath) -> int | None:
    """Return the line of `path`, or of the nearest table around it, or None when nothing of it is in the file."""
    known = (path[:length] for length in range(len(path), 0, -1))
    return next((lines[part] for part in known if part in lines), None)


class _NotUnderstoodError(Exception):
    """What comes next is no TOML that this module knows."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[KeyPath, int] = {}
        self.counts: dict[KeyPath, int] = {}  # tables seen so far of each array of tables
        self.newlines = [match.start() for match in re.finditer("\n", text)]

    def scan(self) -> None:
        table: KeyPath = ()
        while not self._at_end():
            table = self._header() if self._at("[") else self._key_value(table)

    def _header(self) -> KeyPath:
        line = self._line()
        is_array = self.text.startswith("[[", self.position)
        self.position += 2 if is_array else 1
        *parents, name = self._key()
        self.position += 2 if is_array else 1
        path: KeyPath = ()
        for part in parents:
            path = self._latest((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, name)
        if is_array:
            self.lines.setdefault(path, line)
            self.counts[path] = self.counts.get(path, 0) + 1
            path = self._latest(path)
        self.lines[path] = line
        return path

    def _latest(self, path: KeyPath) -> KeyPath:
        return (*path, self.counts[path] - 1) if path in self.counts else path

    def _key_value(self, table: KeyPath) -> KeyPath:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self._skip(_BLANK)
        self.position += 1  # the equals sign
        self._value(path)
        return table

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_SPACE)
            parts.append(_unquoted(self._take(_KEY_PART)))
            self._skip(_SPACE)
            if not self._at("."):
                return parts
            self.position += 1

    def _value(self, path: KeyPath) -> None:
        self._skip(_SPACE)
        if self._at("["):
            self._array(path)
        elif self._at("{"):
            self._inline_table(path)
        elif self._at('"') or self._at("'"):
            self._take(_STRING)
        else:
            self._take(_SCALAR)

    def _array(self, path: KeyPath) -> None:
        self.position += 1
        index = 0
        while not self._closed("]"):
            self.lines[*path, index] = self._line()
            self._value((*path, index))
            index += 1

    def _inline_table(self, path: KeyPath) -> None:
        self.position += 1
        while not self._closed("}"):
            self._key_value(path)

    def _closed(self, bracket: str) -> bool:
        self._skip(_BLANK)
        if self._at(","):
            self.position += 1
            self._skip(_BLANK)
        if self._at(bracket):
            self.position += 1
            return True
        return False

    def _at_end(self) -> bool:
        self._skip(_BLANK)
        return self.position >= len(self.text)

    def _at(self, char: str) -> bool:
        return self.text.startswith(char, self.position)

    def _line(self) -> int:
        return bisect_right(self.newlines, self.position - 1) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._take(pattern)

    def _take(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.position)
        if match is None:
            raise _NotUnderstoodError
        self.position = match.end()
        return match[0]


def _unquoted(part: str) -> str:
    if part.startswith("'"):
        return part[1:-1]
    if part.startswith('"'):
        return str(tomllib.loads(f"key = {part}")["key"])
    return part
