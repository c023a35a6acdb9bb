"""Tries runtimes, and the Edge TPU's library under them, in throw-away processes.

A library that was built for another TensorFlow Lite does not raise: it crashes as tensors are allocated, or leaves the
model's operation unresolved. What there is, and whether a pair works, is therefore asked of a child that may die:

    python -m edge_agent.inference.runtime.probe list RUNTIME                            prints `Listing` as JSON
    python -m edge_agent.inference.runtime.probe try RUNTIME MODEL DEVICE OPTIONS ROOT   prints `Trial` as JSON

DEVICE is as in the settings, OPTIONS are the driver's, as a JSON object, and ROOT is where /sys and /dev are looked
for. The child opens the device as the worker does, with the lock that keeps others from it. It writes what it is about
to do to its standard error, for the case that it never comes back from it. The agent imports this module too, so
runtimes are imported only in the child.
"""

import enum
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from edge_agent.inference.accelerators.devices import CUSTOM_OP, unresolved_op
from edge_agent.inference.accelerators.opening import EdgeTpuUnavailable, Opened, open_edgetpu
from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import die_with_parent
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import LIBRARY, PyCoral, Runtime, RuntimeUnavailable, open_runtime
from edge_agent.settings.units import format_duration

MODULE = "edge_agent.inference.runtime.probe"
LIST_DEADLINE = 30.0
# libedgetpu takes tens of seconds to give a device up.
TRY_DEADLINE = 90.0
MAX_ERROR = 300

_MARK = "probe: "
# On a USB fault the library ends its process with SIGABRT: only these speak of code that does not fit together.
_MISMATCH_SIGNALS = (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL)
_DPKG_TIMEOUT = 10


class _Stage(enum.StrEnum):
    """What the child is doing."""

    IMPORT = "importing the runtime"
    LIBRARY = "loading the Edge TPU's library"
    READ = "reading the model"
    OPEN = "opening the Edge TPU"
    BUILD = "building the interpreter"
    ALLOCATE = "allocating tensors"
    RUN = "running the model"
    CLOSE = "closing the Edge TPU"


# When the library as well as the runtime is at work.
_WITH_LIBRARY = (_Stage.OPEN, _Stage.BUILD, _Stage.ALLOCATE, _Stage.RUN, _Stage.CLOSE)


class Library(msgspec.Struct, frozen=True):
    """The Edge TPU's library as the dynamic linker finds it. `package` is name and version of Debian's, or empty."""

    path: str
    size: int
    modified_ns: int
    package: str = ""

    def __str__(self) -> str:
        return f"{self.package} at {self.path}" if self.package else self.path

    @property
    def is_unchanged(self) -> bool:
        """Whether the file is still the one that was described."""
        try:
            found = Path(self.path).stat()
        except OSError:
            return False
        return (found.st_size, found.st_mtime_ns) == (self.size, self.modified_ns)


class Listing(msgspec.Struct, frozen=True):
    """A runtime as the worker would find it. `problem` is why it cannot be used, or empty.

    `library` is None where the Edge TPU's library cannot be loaded; `library_problem` is why.
    """

    runtime: str
    version: str = ""
    numpy: str = ""
    problem: str = ""
    library: Library | None = None
    library_problem: str = ""

    def __str__(self) -> str:
        return f"{self.runtime} {self.version}"


class Trial(msgspec.Struct, frozen=True):
    """How it went to run a model on the Edge TPU.

    `mismatch`: runtime and library do not fit together. `trouble`: something else went wrong, which says nothing of the
    pair. `detail` says what. `hung`: it stood still with the library at work.
    """

    verdict: Literal["works", "mismatch", "trouble"]
    detail: str = ""
    hung: bool = False


async def list_runtime(name: str) -> Listing:
    """Say what a runtime of `edge_agent.inference.runtime.runtimes.RUNTIMES` is here."""
    try:
        return await ask(Listing, MODULE, "list", name, timeout=LIST_DEADLINE)
    except NoAnswerError as error:
        return Listing(name, problem=f"{name} cannot be used: the process that looked at it {error}")


async def try_pair(
    runtime: str, model_path: str, device: str, options: Mapping[str, str], *, root: Path = Path("/")
) -> Trial:
    """Run a model once, on zeros, on the Edge TPU that `device` means; no other process may have it open."""
    asked = ("try", runtime, model_path, device, json.dumps(dict(options)), str(root))
    try:
        return await ask(Trial, MODULE, *asked, timeout=TRY_DEADLINE)
    except NoAnswerError as error:
        stage = _last_stage(error.errors)
        if error.killed_by in _MISMATCH_SIGNALS and stage in _WITH_LIBRARY:
            return Trial("mismatch", f"{error.killed_by.name} while {stage}")
        if error.late and stage in _WITH_LIBRARY:
            return Trial("trouble", f"{stage} has taken longer than {format_duration(TRY_DEADLINE)}", hung=True)
        return Trial("trouble", f"the process that tried it {error}")


def _last_stage(errors: str) -> str:
    stages = [line.removeprefix(_MARK) for line in errors.splitlines() if line.startswith(_MARK)]
    return stages[-1] if stages else ""


def main() -> None:
    """Answer the question on the command line."""
    die_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # that it may crash is no news
    question, runtime, *rest = sys.argv[1:]
    answer = _list(runtime) if question == "list" else _try(runtime, *rest)
    sys.stdout.write(msgspec.json.encode(answer).decode())
    sys.stdout.flush()
    os._exit(0)  # what a library does as the process ends is no part of the question


def _list(name: str) -> Listing:
    progress = _Progress(_Stage.IMPORT)
    try:
        runtime = open_runtime(name)
    except RuntimeUnavailable as error:
        return Listing(name, problem=str(error))
    progress.enter(_Stage.LIBRARY)
    library, problem = _find_library()
    numpy = sys.modules.get("numpy")
    return Listing(name, runtime.version, getattr(numpy, "__version__", ""), library=library, library_problem=problem)


def _find_library() -> tuple[Library | None, str]:
    """Have the dynamic linker find the library: nobody else knows all the places where it looks."""
    import ctypes  # noqa: PLC0415  the agent imports this module too

    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        return None, str(error)
    mapped = [line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    path = next((name for name in mapped if Path(name).name.startswith("libedgetpu.so")), None)
    if path is None:
        return None, f"{LIBRARY} was loaded from a file of another name"
    found = Path(path).stat()
    return Library(path, found.st_size, found.st_mtime_ns, _package_of(path)), ""


def _package_of(path: str) -> str:
    owner = _ask_dpkg("--search", path).partition(": ")[0]
    return _ask_dpkg("--show", "--showformat=${Package} ${Version}", owner) if owner else ""


def _ask_dpkg(*arguments: str) -> str:
    """Return what dpkg-query says; empty where there is none, or where it knows of nothing."""
    command = ["dpkg-query", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_DPKG_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _try(name: str, model_path: str, device: str, options: str, root: str) -> Trial:
    progress = _Progress(_Stage.IMPORT)
    try:
        runtime = open_runtime(name)
        # A damaged file crashes the runtime here, without the library.
        progress.enter(_Stage.READ)
        runtime.interpreter(model_path)
        progress.enter(_Stage.OPEN)
        opened = _open(runtime, model_path, ModelOptions(device=device, device_options=json.loads(options)), root)
        _run(runtime, model_path, opened.delegates, progress)
    except (OSError, RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())
        verdict: Literal["mismatch", "trouble"] = "mismatch" if unresolved_op(text) == CUSTOM_OP else "trouble"
        return Trial(verdict, f"{progress.stage}: {text[:MAX_ERROR]}")
    progress.enter(_Stage.CLOSE)
    opened.close()
    return Trial("works")


def _open(runtime: Runtime, model_path: str, options: ModelOptions, root: str) -> Opened:
    try:
        return open_edgetpu(runtime, model_path, options, Path(root))
    except EdgeTpuUnavailable as error:
        raise ValueError(f"{error}{_what_is_seen(runtime)}") from error


def _what_is_seen(runtime: Runtime) -> str:
    if not isinstance(runtime, PyCoral):
        return ""
    seen = [f"{device['type']} {device['path']}" for device in runtime.list_edge_tpus()]
    return f"; PyCoral sees {', '.join(seen) or 'no Edge TPU'}"


def _run(runtime: Runtime, model_path: str, delegates: list[Any], progress: "_Progress") -> None:
    progress.enter(_Stage.BUILD)
    interpreter = runtime.interpreter(model_path, delegates)
    progress.enter(_Stage.ALLOCATE)
    interpreter.allocate_tensors()
    progress.enter(_Stage.RUN)
    for entry in interpreter.get_input_details():
        zeros = interpreter.get_tensor(entry["index"])
        zeros.fill(0)
        interpreter.set_tensor(entry["index"], zeros)
    interpreter.invoke()


class _Progress:
    """Says on standard error what comes next."""

    def __init__(self, stage: _Stage) -> None:
        self.enter(stage)

    def enter(self, stage: _Stage) -> None:
        self.stage = stage
        sys.stderr.write(f"{_MARK}{stage}\n")
        sys.stderr.flush()


if __name__ == "__main__":
    main()
