"""Checks the options of a source in a child process, because plugin code may be native and must not run in the agent.

The child is `python -m edge_agent.inference.source_check`. It reads one JSON object from its standard input,

    {"plugin": "recording", "options": {"path": "samples.csv"}, "base_dir": "/etc"}

and writes one to its standard output, where `options` is complete and ready for the worker:

    {"faults": [{"path": ["rate"], "message": "…"}], "options": {"path": "/etc/samples.csv", "rate": 0.0}}

An empty path is a fault of the table as a whole; the path ["plugin"] is one of the plugin itself.
"""

import asyncio
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from edge_agent import plugins
from edge_agent.settings.document import Document
from edge_agent.settings.faults import Fault, explain, unknown
from edge_agent.settings.showing import show
from edge_agent.settings.units import format_duration

MODULE = "edge_agent.inference.source_check"
MAX_ANSWER = 1024 * 1024
MAX_MESSAGE = 500
MAX_STDERR = 4096
STDERR_LINES = 3


@dataclasses.dataclass(frozen=True, slots=True)
class SourceFault:
    """One thing that is wrong; `path` is relative to the table [source]."""

    path: tuple[str | int, ...]
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class SourceCheck:
    """What the check found; `options` can be given to the worker if there are no faults."""

    faults: list[SourceFault]
    options: dict[str, object]


# ------------------------------------------------------------------------------------------ in the agent


def source_faults(document: Document, found: SourceCheck) -> list[Fault]:
    """Return what the check found as faults of the table [source], with their lines."""
    return [document.fault(("source", *fault.path), _one_line(fault.message)) for fault in found.faults]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE]


async def check_source(
    plugin: str,
    options: Mapping[str, object],
    base_dir: Path,
    *,
    timeout: float = 60.0,  # noqa: ASYNC109
) -> SourceCheck:
    """Check a source's options in a child process. A child that crashes, hangs or talks nonsense is a fault."""
    request = {"plugin": plugin, "options": options, "base_dir": str(base_dir)}
    answer, errors = bytearray(), bytearray()
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", MODULE),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,  # so that whatever the plugin starts ends with it
    )
    try:
        async with asyncio.timeout(timeout):
            await _talk(child, json.dumps(request, default=str).encode(), answer, errors)
            status = await child.wait()
    except TimeoutError:
        return _refused(f"did not finish within {format_duration(timeout)}", errors)
    finally:
        _kill(child.pid)
        await child.wait()
    if status != 0:
        return _refused(_ending(status), errors)
    return _understood(bytes(answer)) or _refused("gave an answer that is not understood", errors)


async def _talk(child: asyncio.subprocess.Process, request: bytes, answer: bytearray, errors: bytearray) -> None:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise RuntimeError("the child was started without pipes")
    reading = [_read(child.stdout, answer, MAX_ANSWER), _read(child.stderr, errors, MAX_STDERR)]
    await asyncio.gather(_write(child.stdin, request), *reading)


async def _write(stream: asyncio.StreamWriter, request: bytes) -> None:
    try:
        stream.write(request)
        await stream.drain()
        stream.close()
        await stream.wait_closed()
    except (BrokenPipeError, ConnectionResetError):
        return  # it ended before it read the request; its exit status tells more


async def _read(stream: asyncio.StreamReader, kept: bytearray, limit: int) -> None:
    """Read to the end, and keep the last `limit` bytes."""
    while chunk := await stream.read(limit):
        kept += chunk
        del kept[:-limit]


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # it has ended, and so has all that it started


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _refused(what: str, errors: bytearray) -> SourceCheck:
    lines = [line.strip() for line in errors.decode(errors="replace").splitlines() if line.strip()]
    said = f"; its last lines: {' | '.join(lines[-STDERR_LINES:])}" if lines else ""
    return SourceCheck([SourceFault(("plugin",), f"the check of the plugin's options {what}{said}")], {})


def _understood(answer: bytes) -> SourceCheck | None:
    try:
        said = json.loads(answer)
        faults = [SourceFault(tuple(fault["path"]), fault["message"]) for fault in said["faults"]]
        return SourceCheck(faults, dict(said["options"]))
    except (ValueError, TypeError, KeyError):
        return None


# ------------------------------------------------------------------------------------------ in the child


def main() -> None:
    """Answer one request and leave without cleaning up: a native library may hang at exit."""
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a plugin prints must not get into the answer
    request = json.load(sys.stdin)
    try:
        options = _complete(request["plugin"], request["options"], Path(request["base_dir"]))
        found = SourceCheck([], options)
    except _Refused as refused:
        found = SourceCheck(refused.faults, {})
    json.dump(dataclasses.asdict(found), answer)
    answer.close()
    os._exit(0)


class _Refused(Exception):
    def __init__(self, *faults: SourceFault) -> None:
        super().__init__()
        self.faults = list(faults)


def _complete(plugin: str, options: dict[str, Any], base_dir: Path) -> dict[str, object]:
    """Return all options of the plugin, checked, with absolute paths, as JSON values."""
    try:
        kind = plugins.load(plugins.SOURCES, plugin).Options
        names = [field.name for field in dataclasses.fields(kind)]
        adapter: TypeAdapter[Any] = TypeAdapter(kind)
    except plugins.PluginError as error:
        raise _Refused(SourceFault(("plugin",), str(error))) from error
    except Exception as error:
        message = f"plugin '{plugin}' declares no usable Options: {type(error).__name__}: {error}"
        raise _Refused(SourceFault(("plugin",), message)) from error
    faults = [SourceFault((name,), unknown(name, names)) for name in options if name not in names]
    try:
        checked = adapter.validate_python({name: options[name] for name in names if name in options})
        # pydantic takes true for 1, which nobody means.
        switches = [name for name in names if isinstance(options.get(name), bool)]
        wrong = [name for name in switches if not isinstance(getattr(checked, name), bool)]
        faults += [SourceFault((name,), f"expected no {show(options[name])} here") for name in wrong]
    except ValidationError as error:
        told = explain(error.errors(include_url=False), options, kind)
        faults += [SourceFault(path, message) for path, message in told]
    if faults:
        raise _Refused(*faults)
    resolved = _absolute(checked, base_dir)
    _run_check(plugin, resolved)
    return dict(adapter.dump_python(resolved, mode="json"))


def _absolute(value: Any, base_dir: Path) -> Any:
    if isinstance(value, Path):
        return base_dir / value
    if isinstance(value, list | tuple):
        return type(value)(_absolute(item, base_dir) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _absolute(getattr(value, name), base_dir) for name in fields})
    return value


def _run_check(plugin: str, options: Any) -> None:
    """Call the options' own `check()`, if they have one; a ValueError or OSError is its verdict."""
    try:
        if hasattr(options, "check"):
            options.check()
    except OSError as error:
        text = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        raise _Refused(SourceFault((), text)) from error
    except ValueError as error:
        raise _Refused(SourceFault((), str(error))) from error
    except Exception as error:
        message = f"the check of plugin '{plugin}' failed: {type(error).__name__}: {error}"
        raise _Refused(SourceFault(("plugin",), message)) from error


if __name__ == "__main__":
    main()
