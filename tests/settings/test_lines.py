"""The line of each key: on one document with everything in it, and on generated ones."""

import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.settings.lines import KeyPath, key_lines, line_of

EVERYTHING = '''\
top = 1 # [no.table]
"quoted key" . 'and literal'."es\\u0063aped" = "x"

[source]
text = """
key = 1
[table]
""""
literal = \'\'\'
# no comment
[x]\'\'\'
list = [ # comment
  "a]", 'b',
  # comment ]
  { when = 1979-05-27 07:32:00, inner = [1, 2] },
]
after = 1

  [ telemetry . queue ]
size = "1\\"=2"
[[actions]]
name = "a"
when = { label = "x", "min" = 0.5 }
[actions.more]
deep = [[1], [2,
  3]]
[[actions]]
when.label = "y"
when.hold = 1
[[actions.steps]]
run = 1
[[actions.steps]]
run = 2
[telemetry]
last = true'''


def test_a_document_with_everything_in_it() -> None:
    lines = key_lines(EVERYTHING)
    assert lines == {
        ("top",): 1,
        ("quoted key",): 2,
        ("quoted key", "and literal"): 2,
        ("quoted key", "and literal", "escaped"): 2,
        ("source",): 4,
        ("source", "text"): 5,
        ("source", "literal"): 9,
        ("source", "list"): 12,
        ("source", "list", 0): 13,
        ("source", "list", 1): 13,
        ("source", "list", 2): 15,
        ("source", "list", 2, "when"): 15,
        ("source", "list", 2, "inner"): 15,
        ("source", "list", 2, "inner", 0): 15,
        ("source", "list", 2, "inner", 1): 15,
        ("source", "after"): 17,
        ("telemetry",): 34,
        ("telemetry", "queue"): 19,
        ("telemetry", "queue", "size"): 20,
        ("telemetry", "last"): 35,
        ("actions",): 21,
        ("actions", 0): 21,
        ("actions", 0, "name"): 22,
        ("actions", 0, "when"): 23,
        ("actions", 0, "when", "label"): 23,
        ("actions", 0, "when", "min"): 23,
        ("actions", 0, "more"): 24,
        ("actions", 0, "more", "deep"): 25,
        ("actions", 0, "more", "deep", 0): 25,
        ("actions", 0, "more", "deep", 0, 0): 25,
        ("actions", 0, "more", "deep", 1): 25,
        ("actions", 0, "more", "deep", 1, 0): 25,
        ("actions", 0, "more", "deep", 1, 1): 26,
        ("actions", 1): 27,
        ("actions", 1, "when"): 28,
        ("actions", 1, "when", "label"): 28,
        ("actions", 1, "when", "hold"): 29,
        ("actions", 1, "steps"): 30,
        ("actions", 1, "steps", 0): 30,
        ("actions", 1, "steps", 0, "run"): 31,
        ("actions", 1, "steps", 1): 32,
        ("actions", 1, "steps", 1, "run"): 33,
    }
    assert set(lines) == set(paths(tomllib.loads(EVERYTHING)))


def test_windows_line_ends_count_once() -> None:
    assert key_lines("[a]\r\nb = 1\r\nc = '''\r\n'''\r\nd = [\r\n1]\r\n") == {
        ("a",): 1,
        ("a", "b"): 2,
        ("a", "c"): 3,
        ("a", "d"): 5,
        ("a", "d", 0): 6,
    }


def test_what_is_not_in_the_file_has_the_line_of_its_table() -> None:
    lines = key_lines("[a]\nb = 1\n[a.c]\n")
    assert line_of(lines, ("a", "c", "missing")) == 3
    assert line_of(lines, ("a", "missing")) == 1
    assert line_of(lines, ("missing",)) is None


def test_what_is_not_understood_ends_the_search_without_an_error() -> None:
    assert key_lines("[a]\nb = 1\n?\nc = 1\n") == {("a",): 1, ("a", "b"): 2}
    assert key_lines("[a]\nb = [1, ") == {("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 2}


def paths(value: Any, path: KeyPath = ()) -> list[KeyPath]:
    """Return the path of everything that is in a parsed document."""
    below: list[KeyPath] = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        below += paths(item, (*path, key))
    return below


# Generated documents: each piece of text comes with the lines of its keys, counted from its own first line.

SCALARS = st.sampled_from(
    [
        "1",
        "-0.5",
        "inf",
        "1979-05-27 07:32:00",
        '"# [no] = {"',
        "'] }'",
        '"\\"\\\\"',
        '"""a\n[x]\ny = 1"""',
        '""""quoted"""""',
        '"""\\\n  b"""',
        "'''\n# z\n'''",
        "''''a'''''",
    ]
)
COMMENTS = st.sampled_from(["", " # c", " # [x] = {", "\t# '''"])
Piece = tuple[str, dict[KeyPath, int]]
NO_LINES: dict[KeyPath, int] = {}


def keys(names: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, str]]:
    """A name, and one of the ways to write it."""

    def ways(name: str) -> st.SearchStrategy[tuple[str, str]]:
        return st.sampled_from([name, f'"{name}"', f"'{name}'", f'"\\u{ord(name[0]):04x}{name[1:]}"']).map(
            lambda written: (name, written)
        )

    return names.flatmap(ways)


KEYS = keys(st.sampled_from(["a", "b", "c-d", "e_1", "42"]))


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[Piece]) -> Piece:
    text, lines = "[", NO_LINES
    for index in range(draw(st.integers(0, 3))):
        text += draw(st.sampled_from(["", " ", "\n  ", " # ]\n", "\n\n"]))
        inner, found = draw(values)
        lines = lines | shifted(found, (index,), text.count("\n"))
        text += inner + draw(st.sampled_from([",", " ,", "\n,", ", # ,\n"]))
    return text + draw(st.sampled_from(["", "\n", " # ]\n "])) + "]", lines


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[Piece]) -> Piece:
    parts, lines, text = draw(st.lists(KEYS, max_size=3, unique_by=lambda key: key[0])), NO_LINES, "{"
    for number, (name, written) in enumerate(parts):
        inner, found = draw(values)
        text += f"{', ' if number else ' '}{written} = "
        lines = lines | shifted(found, (name,), text.count("\n"))
        text += inner
    return text + " }", lines


def shifted(lines: dict[KeyPath, int], path: KeyPath, by: int) -> dict[KeyPath, int]:
    return {(*path, *below): line + by for below, line in lines.items()}


def nested(values: st.SearchStrategy[Piece]) -> st.SearchStrategy[Piece]:
    inner = arrays(values) | inline_tables(values)
    return inner.map(lambda piece: (piece[0], {(): 0, **piece[1]}))


VALUES: st.SearchStrategy[Piece] = st.recursive(
    SCALARS.map(lambda text: (text, {(): 0})),
    nested,
    max_leaves=5,
)


@st.composite
def bodies(draw: st.DrawFn) -> Piece:
    text, lines = "", NO_LINES
    for name, written in draw(st.lists(KEYS, max_size=4, unique_by=lambda key: key[0])):
        text += draw(st.sampled_from(["", "\n", "# x = 1\n", "  "]))
        value, found = draw(VALUES)
        lines = lines | shifted(found, (name,), text.count("\n"))
        text += f"{written} ={draw(st.sampled_from(['', ' ']))}{value}{draw(COMMENTS)}\n"
    return text, lines


@st.composite
def documents(draw: st.DrawFn) -> Piece:
    text, lines = draw(bodies())
    for number in range(draw(st.integers(0, 3))):
        is_array = draw(st.booleans())
        for index in range(draw(st.integers(1, 3)) if is_array else 1):
            name, path = f"t{number}", ((f"t{number}", index) if is_array else (f"t{number}",))
            header = f"[[ {name} ]]" if is_array else f'["{name}"]'
            here = text.count("\n") + 1
            body, found = draw(bodies())
            lines = lines | {(name,): lines.get((name,), here - 1), path: here - 1}
            text += f"{header}{draw(COMMENTS)}\n"
            lines = lines | shifted(found, path, here)
            text += body
    return text, {path: line + 1 for path, line in lines.items()}


@given(documents())
def test_generated_documents(document: Piece) -> None:
    text, truth = document
    assert key_lines(text) == truth
    assert set(truth) == set(paths(tomllib.loads(text)))
