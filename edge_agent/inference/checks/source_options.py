"""Checks the options of one source: `python -m edge_agent.inference.checks.source_options`.

Runs as a child of `edge_agent.inference.checks.source_check`, because plugin code may be native and may crash. It reads
one JSON object from its standard input,

    {"plugin": "recording", "options": {"path": "samples.csv"}, "base_dir": "/etc"}

and writes a `SourceCheck` to its standard output, where `options` is complete and ready for the worker, and
`reference` is what the worker imports:

    {"faults": [{"path": ["rate"], "message": "…"}], "options": {"path": "/etc/samples.csv", "rate": 0.0},
     "reference": "edge_agent.sources.recording:Recording"}
"""

import dataclasses
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edge_agent import plugins
from edge_agent.inference.child import die_with_parent
from edge_agent.settings.showing import show
from edge_agent.settings.wording import explain, unknown


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFault:
    """One thing that is wrong.

    `path` is relative to the table [source]: empty for the table as a whole, ("plugin",) for the plugin itself.
    `absent`: the settings may well be right, but what they name cannot be reached now.
    """

    path: tuple[str | int, ...]
    message: str
    absent: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class SourceCheck:
    """What the check found.

    Unless there are faults other than of something absent, the worker can take `options` and the class at `reference`.
    """

    faults: list[SourceFault]
    options: dict[str, object] = dataclasses.field(default_factory=dict)
    reference: str = ""


def main() -> None:
    """Answer one request and leave without cleaning up: a native library may hang at exit."""
    die_with_parent()
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a plugin prints must not get into the answer
    request = json.load(sys.stdin)
    try:
        plugin = _found(request["plugin"])
        options, absent = complete(plugin.name, _loaded(plugin), request["options"], Path(request["base_dir"]))
        found = SourceCheck(absent, options, plugin.reference)
    except Refused as refused:
        found = SourceCheck(refused.faults)
    json.dump(dataclasses.asdict(found), answer)
    answer.close()
    os._exit(0)


class Refused(Exception):
    """The options cannot be used, nor the plugin."""

    def __init__(self, *faults: SourceFault) -> None:
        super().__init__()
        self.faults = list(faults)


def _found(name: str) -> plugins.Plugin:
    try:
        return plugins.find(plugins.SOURCES, name)
    except plugins.PluginError as error:
        raise Refused(SourceFault(("plugin",), str(error))) from error


def _loaded(plugin: plugins.Plugin) -> type[Any]:
    from edge_agent.sources.base import Source  # noqa: PLC0415  whoever imports SourceCheck needs no sources

    try:
        found = plugins.load(plugin)
    except plugins.PluginError as error:
        raise Refused(SourceFault(("plugin",), str(error))) from error
    # The worker would die of it, again and again.
    if not issubclass(found, Source):
        reason = f"{plugin.reference} is no subclass of edge_agent.sources.base.Source"
    elif missing := sorted(found.__abstractmethods__):
        reason = f"{plugin.reference} has no {' and no '.join(missing)}"
    else:
        return found
    message = f"plugin '{plugin.name}' of {plugin.distribution} cannot be used: {reason}"
    raise Refused(SourceFault(("plugin",), message))


def complete(
    name: str, source: type[Any], options: Mapping[str, Any], base_dir: Path
) -> tuple[dict[str, object], list[SourceFault]]:
    """Return all options of plugin `name`, checked, with absolute paths, as JSON values; and what is absent.

    Raises Refused.
    """
    try:
        kind = source.Options
        names = [field.name for field in dataclasses.fields(kind)]
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
        adapter.rebuild(raise_errors=True)  # else a type that does not exist shows only when it is used
    except Exception as error:
        message = f"plugin '{name}' declares no usable Options: {type(error).__name__}: {_first_line(error)}"
        raise Refused(SourceFault(("plugin",), message)) from error
    faults = [SourceFault((key,), unknown(key, names)) for key in options if key not in names]
    try:
        checked = adapter.validate_python({key: options[key] for key in names if key in options})
        # pydantic takes true for 1, which nobody means.
        switches = [key for key in names if isinstance(options.get(key), bool)]
        wrong = [key for key in switches if not isinstance(getattr(checked, key), bool)]
        faults += [SourceFault((key,), f"expected no {show(options[key])} here") for key in wrong]
    except ValidationError as error:
        told = explain(error.errors(include_url=False), options, kind)
        faults += [SourceFault(path, message) for path, message in told]
    if faults:
        raise Refused(*faults)
    resolved = _absolute(checked, base_dir)
    absent = _run_check(name, resolved)
    return dict(adapter.dump_python(resolved, mode="json")), absent


def _first_line(error: Exception) -> str:
    # What pydantic adds is for who writes with pydantic.
    return str(error).partition("\n")[0]


def _absolute(value: Any, base_dir: Path) -> Any:
    if isinstance(value, Path):
        return Path(os.path.normpath(base_dir / value))
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item, base_dir) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _absolute(getattr(value, name), base_dir) for name in fields})
    return value


def _run_check(plugin: str, options: Any) -> list[SourceFault]:
    """Call the options' own `check()`, if they have one; a ValueError or OSError is its verdict."""
    from edge_agent.sources.base import describe  # noqa: PLC0415  whoever imports SourceCheck needs no sources

    try:
        if hasattr(options, "check"):
            options.check()
    except OSError as error:
        return [SourceFault(_option_with(options, error.filename), describe(error), absent=True)]
    except ValueError as error:
        raise Refused(_about_option(options, str(error))) from error
    except Exception as error:
        message = f"the check of plugin '{plugin}' failed: {type(error).__name__}: {error}"
        raise Refused(SourceFault(("plugin",), message)) from error
    return []


def _option_with(options: Any, name: object) -> tuple[str, ...]:
    """Return the option that names this file, so that the admin reads its line."""
    if name is None or not dataclasses.is_dataclass(options):
        return ()
    found = (field.name for field in dataclasses.fields(options) if str(getattr(options, field.name)) == str(name))
    return tuple(found)[:1]


def _about_option(options: Any, message: str) -> SourceFault:
    """Return the fault of the option that the message begins with, if it does."""
    first, _, rest = message.partition(" ")
    name = first.removesuffix(":")
    if not (dataclasses.is_dataclass(options) and name in {field.name for field in dataclasses.fields(options)}):
        return SourceFault((), message)
    return SourceFault((name,), rest if first != name else message)


if __name__ == "__main__":
    main()
