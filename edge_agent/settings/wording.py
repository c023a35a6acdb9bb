"""Puts what pydantic finds wrong, and names that nobody knows, into plain words."""

import difflib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Union, get_args, get_origin, get_type_hints

from edge_agent.settings.lines import KeyPath
from edge_agent.settings.showing import show
from edge_agent.settings.units import Unit

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

_KINDS = {
    "bool": "true or false",
    "date": "a date",
    "datetime": "a date and time",
    "dataclass": "a table",
    "dict": "a table",
    "finite": "a finite number",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
    "mapping": "a table",
    "model": "a table",
    "path": "a path in quotes",
    "set": "a list",
    "string": "text in quotes",
    "time": "a time of day",
    "tuple": "a list",
}
_WRONG_TYPE = ("type", "parsing", "parsing_size", "from_float", "number")
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def explain(errors: Sequence["ErrorDetails"], values: object, owner: object) -> list[tuple[KeyPath, str]]:
    """Put pydantic's errors into plain words, one message for each key.

    `values` is what was validated, and `owner` the model or dataclass that it was validated against.
    """
    by_path: dict[KeyPath, list[ErrorDetails]] = defaultdict(list)
    for error in errors:
        by_path[_path(error, values)].append(error)
    return [(path, _explain_key(path, group, owner)) for path, group in by_path.items()]


def _path(error: "ErrorDetails", values: object) -> KeyPath:
    # pydantic adds the names of the members of a union to the path; those are no keys of the file.
    path: KeyPath = ()
    for step in error["loc"]:
        if isinstance(values, Mapping) and (step in values or error["type"] == "missing"):
            values = values.get(step)
        elif isinstance(values, list) and isinstance(step, int) and step < len(values):
            values = values[step]
        else:
            break
        path = (*path, step)
    return path


def _explain_key(path: KeyPath, errors: "list[ErrorDetails]", owner: object) -> str:
    kinds = [_expected(error) for error in errors]
    if all(kinds):
        wanted = _either([kind for kind in dict.fromkeys(kinds) if kind])
        return f"expected {wanted}, not {_shown(path, errors[0])}"
    return _explain_error(path, errors[0], _unit(owner, path))


def _expected(error: "ErrorDetails") -> str | None:
    if error["type"] == "literal_error":
        return str(error["ctx"]["expected"]).replace("'", '"')
    kind, _, what = error["type"].partition("_")
    return _KINDS.get(kind) if what.endswith(_WRONG_TYPE) else None


def _explain_error(path: KeyPath, error: "ErrorDetails", unit: Unit | None) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "missing":
        return "is missing"
    if kind in {"value_error", "assertion_error"}:
        return str(context["error"])
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        bound = unit.format(context[name]) if unit else f"{context[name]:g}"
        return f"must be {words} {bound}, not {_shown(path, error)}"
    if kind.endswith("too_short") and context.get("min_length") == 1:
        return "must not be empty"
    return f"{error['msg'][:1].lower()}{error['msg'][1:]}, not {_shown(path, error)}"


def _shown(path: KeyPath, error: "ErrorDetails") -> str:
    return show(error["input"], key=str(path[-1]) if path else "")


def _either(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} or {last}" if others else last


def _unit(owner: object, path: KeyPath) -> Unit | None:
    hint: object = owner
    for step in path:
        hint = _member(hint, step)
    marks = (mark for part in (hint, *_alternatives(hint)) for mark in getattr(part, "__metadata__", ()))
    return next((mark for mark in marks if isinstance(mark, Unit)), None)


def _member(hint: object, step: str | int) -> object:
    for part in _alternatives(hint):
        bare = _bare(part)
        if isinstance(step, int) and get_args(bare):
            return get_args(bare)[0]
        if isinstance(step, str) and isinstance(bare, type) and (found := _hints(bare).get(step)):
            return found
    return None


def _alternatives(hint: object) -> tuple[object, ...]:
    bare = _bare(hint)
    return get_args(bare) if get_origin(bare) in {Union, UnionType} else (hint,)


def _bare(hint: object) -> object:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _hints(owner: type) -> dict[str, Any]:
    return get_type_hints(owner, include_extras=True)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that `name` was probably meant to be."""
    near = difflib.get_close_matches(name.lower(), list(known), n=1)
    return near[0] if near else None


def unknown(name: str, known: Iterable[str], *, what: str = "key") -> str:
    """Return the message for a name that is not among `known`, with the nearest one or all of them."""
    names = sorted(known)
    if near := nearest(name, names):
        return f"unknown {what} (did you mean '{near}'?)"
    return f"unknown {what}; known here: {', '.join(names)}" if names else f"unknown {what}; none is known here"
