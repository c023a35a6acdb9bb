"""The TensorFlow Lite runtimes behind one small face: the only module that imports them.

`ai-edge-litert` is the maintained runtime, `tflite-runtime` its predecessor with the same calls, PyCoral a layer above
`tflite-runtime` that Coral's guides install with apt. What PyPI calls `pycoral` is another project; it is recognised
without being imported. Importing proves little (tflite-runtime imports under NumPy 2 and fails with SystemError when
an interpreter is made), so a runtime counts as found when it has made one.
"""

import importlib.machinery
import importlib.util
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, Protocol

LIBRARY = "libedgetpu.so.1"

RUNTIMES = ("ai-edge-litert", "tflite-runtime", "pycoral")
"""As in [inference].runtime, in the order in which "auto" tries them."""

_INSTALL = {
    "ai-edge-litert": "`pip install ai-edge-litert` (there is none for 32-bit ARM)",
    "tflite-runtime": "`pip install tflite-runtime==2.14.0 'numpy<2'`, for Python up to 3.11",
    "pycoral": (
        "Google's PyCoral is python3-pycoral in Coral's apt archive, for Python up to 3.9; "
        "builds for newer ones are at https://github.com/feranick/pycoral/releases"
    ),
}

# The smallest model there is, as the flatbuffer schema of TensorFlow Lite has it: one graph without operators.
_EMPTY_MODEL = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c00000050000000030000000100000008000000"
    "040004000400000001000000100000000c00140010000c00080004000c0000001000000010000000100000001000000000000000"
    "00000000000000000000000000000000"
)


class RuntimeUnavailable(RuntimeError):
    """No TensorFlow Lite runtime can be used here; the message says what to install."""


class Interpreter(Protocol):
    """What is used of `Interpreter` in ai_edge_litert.interpreter and tflite_runtime.interpreter."""

    def allocate_tensors(self) -> None: ...
    def invoke(self) -> None: ...
    def get_input_details(self) -> list[dict[str, Any]]: ...
    def get_output_details(self) -> list[dict[str, Any]]: ...
    def set_tensor(self, index: int, value: Any) -> None: ...
    def get_tensor(self, index: int) -> Any: ...


class Runtime:
    """A TensorFlow Lite runtime that was found. `module` has its `Interpreter` and its `load_delegate`."""

    def __init__(self, name: str, module: Any, version: str) -> None:
        self.name = name
        self.version = version
        self._module = module

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def interpreter(self, path: str, delegates: Sequence[Any] = ()) -> Interpreter:
        """Make an interpreter for the model file at `path`.

        Raises ValueError when the file is no model, RuntimeUnavailable when the runtime itself does not work.
        """
        try:
            return self._make(path, delegates)
        except SystemError as error:
            raise self._broken() from error

    def try_out(self) -> None:
        """Make an interpreter for an empty model. Raises RuntimeUnavailable."""
        try:
            self._module.Interpreter(model_content=_EMPTY_MODEL)
        except SystemError as error:
            raise self._broken() from error

    def load_delegate(self, options: Mapping[str, str]) -> Any:
        """Open an Edge TPU through libedgetpu. Raises OSError or ValueError, as the runtime does."""
        return self._module.load_delegate(LIBRARY, dict(options))

    def _make(self, path: str, delegates: Sequence[Any]) -> Interpreter:
        made: Interpreter = self._module.Interpreter(model_path=path, experimental_delegates=list(delegates) or None)
        return made

    def _broken(self) -> RuntimeUnavailable:
        return RuntimeUnavailable(f"{self} does not work with the installed NumPy; install ai-edge-litert, or numpy<2")


class PyCoral(Runtime):
    """Google's PyCoral 2; `edgetpu` is its module pycoral.utils.edgetpu.

    `make_interpreter` always wants an Edge TPU, so models without one go to the runtime that PyCoral itself uses.
    """

    def __init__(self, edgetpu: Any, version: str) -> None:
        super().__init__("pycoral", edgetpu.tflite, version)
        self._edgetpu = edgetpu

    def load_delegate(self, options: Mapping[str, str]) -> Any:
        """Open an Edge TPU through libedgetpu. Raises OSError or ValueError, as the runtime does."""
        return self._edgetpu.load_edgetpu_delegate(dict(options))

    def list_edge_tpus(self) -> list[dict[str, str]]:
        """Return "type" ("usb" or "pci") and "path" of the Edge TPUs in libedgetpu's order, without opening any."""
        seen: list[dict[str, str]] = self._edgetpu.list_edge_tpus()
        return seen

    def _make(self, path: str, delegates: Sequence[Any]) -> Interpreter:
        if not delegates:
            return super()._make(path, delegates)
        made: Interpreter = self._edgetpu.make_interpreter(path, delegate=delegates[0])
        return made


def find_runtime(wanted: str = "auto") -> Runtime:
    """Return the wanted runtime, or with "auto" the first of `RUNTIMES` that can make an interpreter.

    Raises RuntimeUnavailable with what is wrong with each and what to install.
    """
    reasons = []
    for name in RUNTIMES if wanted == "auto" else (wanted,):
        try:
            return open_runtime(name)
        except RuntimeUnavailable as error:
            reasons.append(str(error))
    raise RuntimeUnavailable(explain_unavailable(wanted, reasons))


def explain_unavailable(wanted: str, reasons: Sequence[str]) -> str:
    """Say why there is no runtime; `reasons` has one for each that was wanted."""
    if wanted == "auto":
        return f"no TensorFlow Lite runtime can be used: {'; '.join(reasons)}"
    return f"[inference].runtime is {wanted!r}, but {'; '.join(reasons)}"


def open_runtime(name: str) -> Runtime:
    """Return this one of `RUNTIMES`, once it has made an interpreter. Raises RuntimeUnavailable."""
    runtime = _pycoral() if name == "pycoral" else _plain(name)
    runtime.try_out()
    return runtime


def _plain(name: str) -> Runtime:
    package = name.replace("-", "_")
    if importlib.util.find_spec(package) is None:
        raise RuntimeUnavailable(f"{name} is not installed: {_INSTALL[name]}")
    return Runtime(name, _imported(name, f"{package}.interpreter"), _version(package))


def _pycoral() -> Runtime:
    found = importlib.util.find_spec("pycoral")
    if found is None:
        raise RuntimeUnavailable(f"pycoral is not installed: {_INSTALL['pycoral']}")
    if not _has_edgetpu(found):
        raise RuntimeUnavailable(f"{_describe_stranger(found)}; {_INSTALL['pycoral']}")
    edgetpu = _imported("pycoral", "pycoral.utils.edgetpu")
    below = edgetpu.tflite.__name__.partition(".")[0]
    return PyCoral(edgetpu, f"{_version('pycoral')} on {below.replace('_', '-')} {_version(below)}")


def _has_edgetpu(pycoral: importlib.machinery.ModuleSpec) -> bool:
    """Tell whether the package has a module utils.edgetpu. `find_spec` on its name would import the packages above."""
    found: importlib.machinery.ModuleSpec | None = pycoral
    for name in ("pycoral.utils", "pycoral.utils.edgetpu"):
        if found is None or found.submodule_search_locations is None:
            return False
        found = importlib.machinery.PathFinder.find_spec(name, list(found.submodule_search_locations))
    return found is not None


def _describe_stranger(found: importlib.machinery.ModuleSpec) -> str:
    from importlib import metadata  # noqa: PLC0415  costs memory, and is hardly ever needed

    try:
        about = metadata.metadata("pycoral")
    except metadata.PackageNotFoundError:
        place = found.origin or ", ".join(found.submodule_search_locations or [])
        return f"what is called pycoral at {place} is not Google's PyCoral: it has no pycoral.utils.edgetpu"
    return (
        f"the installed pycoral {about['Version']} ({about['Summary']!r}) is not Google's PyCoral but another project "
        "of that name on PyPI: `pip uninstall pycoral`"
    )


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RuntimeUnavailable(f"{name} cannot be imported: {error}") from error


def _version(package: str) -> str:
    return str(getattr(sys.modules[package], "__version__", "of unknown version"))
