"""Environment variables that override single values of the file: EDGE_AGENT_TELEMETRY__SINK is [telemetry].sink.

Lists and tables are written as JSON. A name with a typing error in it is a fault; other programs' names, and
names such as EDGE_AGENT_CONFIG that only begin alike, are not looked at.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from edge_agent.settings.faults import VARIABLE, Fault
from edge_agent.settings.schema import PREFIX, Settings, keys, tables
from edge_agent.settings.wording import nearest

ModelT = TypeVar("ModelT", bound=BaseModel)

_KEYS = {
    path
    for table, owner in tables().items()
    if table[:1] != ("actions",)  # a list can be given only as a whole
    for path in (table, *((*table, name) for name in keys(owner)))
} | {("actions",)}
_OPEN = (("source",), ("device", "labels"))  # tables whose keys anybody may invent
_NAMES = {PREFIX + "__".join(path).upper(): path for path in sorted(_KEYS)}


class _Base(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", defer_build=True)


class _Variables(EnvSettingsSource):
    """pydantic's own reader, for variables that are handed over instead of those of this process."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        super().__init__(_model(Settings, _Base))
        self.env_vars = {name.lower(): text for name, text in variables.items()}

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Decode JSON. Other text is left as it is: the schema then refuses it together with all other faults."""
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return value


def _model(table: type, base: type[ModelT]) -> type[ModelT]:
    """Return the table as a model: pydantic's reader looks for values of a table only in models."""
    fields: dict[str, Any] = {
        name: (_model(hint, BaseModel) if hint in tables().values() else hint, ...)
        for name, hint in keys(table).items()
    }
    return create_model(table.__name__, __base__=base, **fields)


def read_environment(environ: Mapping[str, str]) -> tuple[dict[str, Any], dict[tuple[str, ...], str], list[Fault]]:
    """Return the values by table, the name of the variable for each path that one sets, and the faults."""
    ours = {name: text for name, text in environ.items() if name.upper().startswith(PREFIX)}
    known = {name: text for name, text in ours.items() if _is_known(_path(name))}
    faults = [
        Fault(VARIABLE + name, None, "", _unknown(name)) for name in ours if name not in known and _is_meant(name)
    ]
    values = _Variables(known)()
    if isinstance(source := values.get("source"), dict):
        values["source"] = {key: _decoded(option) for key, option in source.items()}
    return values, {_path(name): name for name in known}, faults


def _path(name: str) -> tuple[str, ...]:
    return tuple(name[len(PREFIX) :].lower().split("__"))


def _is_known(path: tuple[str, ...]) -> bool:
    return path in _KEYS or any(path[: len(table)] == table for table in _OPEN)


def _is_meant(name: str) -> bool:
    """Tell whether an unknown name was meant for a setting: EDGE_AGENT_MODEL_URL was, EDGE_AGENT_CONFIG was not."""
    return "__" in name or name.upper() in {known.replace("__", "_") for known in _NAMES}


def _unknown(name: str) -> str:
    near = nearest(name, (known.lower() for known in _NAMES))
    return f"there is no such setting (did you mean {near.upper()}?)" if near else "there is no such setting"


def _decoded(option: Any) -> Any:
    # The plugin's options are not in the schema, so only their look tells lists and tables from text.
    if isinstance(option, str) and option.startswith(("[", "{")):
        try:
            return json.loads(option)
        except ValueError:
            return option
    return option
