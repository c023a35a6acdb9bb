"""Two packages that are called pycoral: Google's, made for the stand-in's sake, and PyPI's.

Google's has the calls of PyCoral 2.0.0 as https://coral.ai/docs/reference/py/ describes them, above ai-edge-litert
instead of tflite-runtime, which ends with Python 3.11. Each is a folder for PYTHONPATH, with a package's metadata.
"""

from pathlib import Path

EDGETPU = """
import ai_edge_litert.interpreter as tflite
from pycoral.pybind._pywrap_coral import ListEdgeTpus as list_edge_tpus

made = []  # what make_interpreter was called with; Google's keeps no such list


def load_edgetpu_delegate(options=None):
    return tflite.load_delegate("libedgetpu.so.1", options or {})


def make_interpreter(model_path_or_content, device=None, delegate=None):
    made.append({"device": device, "delegate": delegate is not None})
    if delegate is None:
        delegate = load_edgetpu_delegate({"device": device} if device else {})
    kind = "model_content" if isinstance(model_path_or_content, bytes) else "model_path"
    return tflite.Interpreter(**{kind: model_path_or_content}, experimental_delegates=[delegate])
"""

PYWRAP_CORAL = """
import os


def ListEdgeTpus():
    entries = filter(None, os.environ.get("EDGETPU_STANDIN_DEVICES", "").split(","))
    return [{"type": kind, "path": path} for kind, _, path in (entry.partition("=") for entry in entries)]
"""


def googles(folder: Path) -> Path:
    """Makes Google's PyCoral in this folder; returns it."""
    _write(folder / "pycoral/__init__.py", '__version__ = "2.0.0"\n')
    _write(folder / "pycoral/utils/__init__.py", "")
    _write(folder / "pycoral/utils/edgetpu.py", EDGETPU)
    _write(folder / "pycoral/pybind/__init__.py", "")
    _write(folder / "pycoral/pybind/_pywrap_coral.py", PYWRAP_CORAL)
    return _with_metadata(folder, "2.0.0", "Coral Python API")


def pypis(folder: Path) -> Path:
    """Makes PyPI's pycoral in this folder; returns it. Importing it fails, so that a test sees that nobody does."""
    _write(folder / "pycoral/__init__.py", 'raise RuntimeError("a stranger was imported")\n')
    _write(folder / "pycoral/pycoral.py", "")
    return _with_metadata(folder, "0.2.0", "Simple CLI for Allen Coral Atlas")


def _with_metadata(folder: Path, version: str, summary: str) -> Path:
    metadata = f"Metadata-Version: 2.1\nName: pycoral\nVersion: {version}\nSummary: {summary}\n"
    _write(folder / f"pycoral-{version}.dist-info/METADATA", metadata)
    return folder


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
