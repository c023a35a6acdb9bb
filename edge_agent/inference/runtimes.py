"""The LiteRT packages behind one small face: the only module that imports them.

`ai-edge-litert` is the maintained runtime, `tflite-runtime` its predecessor with the same calls. Importing proves
little (tflite-runtime imports under NumPy 2 and fails with SystemError when an interpreter is made), so the
failure to construct is reported with what to install.
"""

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

LIBRARY = "libedgetpu.so.1"

_MODULES = ("ai_edge_litert", "tflite_runtime")


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
    """A TensorFlow Lite runtime that was found."""

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
            made: Interpreter = self._module.Interpreter(
                model_path=path, experimental_delegates=list(delegates) or None
            )
        except SystemError as error:
            raise RuntimeUnavailable(
                f"{self} does not work with the installed NumPy; install ai-edge-litert, or numpy<2"
            ) from error
        return made

    def load_delegate(self, options: Mapping[str, str]) -> Any:
        """Open an Edge TPU through libedgetpu. Raises OSError or ValueError, as the runtime does."""
        return self._module.load_delegate(LIBRARY, dict(options))


def find_runtime() -> Runtime:
    """Return the first runtime that can be imported. Raises RuntimeUnavailable with the reason for each."""
    reasons = []
    for name in _MODULES:
        try:
            package = importlib.import_module(name)
            module = importlib.import_module(f"{name}.interpreter")
        except ImportError as error:
            reasons.append(f"{name}: {error}")
            continue
        return Runtime(name.replace("_", "-"), module, getattr(package, "__version__", "of unknown version"))
    raise RuntimeUnavailable(f"no TensorFlow Lite runtime; install ai-edge-litert ({'; '.join(reasons)})")
