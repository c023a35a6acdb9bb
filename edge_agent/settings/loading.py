"""From the file and the environment to `Settings`, or to the list of all faults."""

import os
from collections.abc import Mapping
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from edge_agent.settings import conditions, raw_data
from edge_agent.settings.document import Document, read
from edge_agent.settings.faults import MISSING, Fault, NotSetUp, SettingsError
from edge_agent.settings.lines import KeyPath
from edge_agent.settings.publish import unchanging
from edge_agent.settings.schema import Settings, SourceSettings, description, keys, tables
from edge_agent.settings.tasks import unused
from edge_agent.settings.wording import explain, nearest, unknown


def load(path: Path, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read and check the settings; only the options of the source's plugin are left unchecked.

    Raises SettingsError with all faults at once; NotSetUp if nothing is wrong but that something is still missing.
    """
    return check(read(path, environ))


def check(document: Document) -> Settings:
    """Return the settings of a document. Raises SettingsError with all faults at once, NotSetUp among them."""
    # A table that is missing is told by the keys that are missing in it.
    empty: dict[str, object] = {path[0]: {} for path in tables() if len(path) == 1 and path != ("actions",)}
    values = {**empty, **document.values}
    values["source"] = _with_options(values["source"])
    faults = list(document.faults)
    try:
        settings = TypeAdapter(Settings).validate_python(values)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        found = _faults(document, errors, values)
        if not faults and all(each["type"] == "missing" and _is_essential(each["loc"]) for each in errors):
            raise NotSetUp(found) from None
        faults += found
    else:
        unmet = (*unused(settings), *conditions.unmet(settings), *unchanging(settings), *raw_data.unmet(settings))
        faults += [document.fault(path, message) for path, message in unmet]
    if faults:
        raise SettingsError(faults)
    return settings


def _is_essential(path: KeyPath) -> bool:
    """Tell whether the key has no default because no agent can do without it; those of an action have no say here."""
    return path[0] != "actions"


def _with_options(source: object) -> object:
    """Put the keys of [source] that are the plugin's into `options`."""
    if not isinstance(source, dict):
        return source
    own = {key: value for key, value in source.items() if key in keys(SourceSettings)}
    return {**own, "options": {key: value for key, value in source.items() if key not in own}}


def _faults(document: Document, errors: list[ErrorDetails], values: Mapping[str, object]) -> list[Fault]:
    ours = {"unexpected_keyword_argument": _unknown, "missing": _missing}
    known = [(error["loc"], ours[error["type"]](document, error["loc"])) for error in errors if error["type"] in ours]
    others = explain([error for error in errors if error["type"] not in ours], values, Settings)
    return [document.fault(path, message) for path, message in known + others]


def _unknown(document: Document, path: KeyPath) -> str:
    name, table = str(path[-1]), _table(path[:-1])
    is_table = isinstance(document.at(path), dict | list) and not table
    homes = [_header(home) for home in tables() if name in _keys(home) and (*home, name) not in tables()]
    if homes and not nearest(name, _keys(table)):
        return f"unknown key here; it belongs in {' or '.join(homes)}"
    return unknown(name, _keys(table), what="table" if is_table else "key")


def _missing(_document: Document, path: KeyPath) -> str:
    text = description(keys(_owner(path[:-1]))[str(path[-1])])
    return f"{MISSING} ({text[:1].lower()}{text[1:].rstrip('.')})"


def _table(path: KeyPath) -> tuple[str, ...]:
    return tuple(step for step in path if isinstance(step, str))


def _keys(table: tuple[str, ...]) -> list[str]:
    return list(keys(_owner(table)))


def _owner(path: KeyPath) -> type:
    return tables().get(_table(path), Settings)


def _header(table: tuple[str, ...]) -> str:
    return "[[actions]]" if table == ("actions",) else f"[{'.'.join(table)}]"
