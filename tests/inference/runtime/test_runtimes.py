"""The runtimes: which one is found, and what is said of those that are not.

What has to be installed for a test is made in a folder and used in a child process: what is imported once stays.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.inference.runtime.runtimes import RuntimeUnavailable, find_runtime
from tests.inference.conftest import DEMO_MODEL, ROOT
from tests.standin import build, models, pycoral

PYCORAL = (
    "Google's PyCoral is python3-pycoral in Coral's apt archive, for Python up to 3.9; "
    "builds for newer ones are at https://github.com/feranick/pycoral/releases"
)
NO_LITERT = "ai-edge-litert is not installed: `pip install ai-edge-litert` (there is none for 32-bit ARM)"
NO_TFLITE = "tflite-runtime is not installed: `pip install tflite-runtime==2.14.0 'numpy<2'`, for Python up to 3.11"

TELL = """
import json, sys
from edge_agent.inference.runtime.runtimes import RuntimeUnavailable, find_runtime
try:
    said = str(find_runtime(*sys.argv[1:]))
except RuntimeUnavailable as error:
    said = str(error)
json.dump({"said": said, "modules": list(sys.modules)}, sys.stdout)
"""

RUN = """
import json, sys
import numpy as np
from edge_agent.inference.runtime.runtimes import find_runtime
plain, compiled = sys.argv[1:]
runtime = find_runtime("pycoral")
from pycoral.utils import edgetpu

def run(path, delegates=()):
    interpreter = runtime.interpreter(path, delegates)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist()

on_cpu = run(plain)
device = runtime.load_delegate({"device": "usb:0", "Performance": "Low"})
answer = {"name": runtime.name, "version": runtime.version, "cpu": on_cpu, "edgetpu": run(compiled, [device])}
json.dump(answer | {"made": edgetpu.made, "seen": runtime.list_edge_tpus()}, sys.stdout)
del device
"""


def child(code: str, *arguments: str, first: Path | None = None, environment: dict[str, str] | None = None) -> Any:
    """What a program prints that finds the packages in the folder `first` before all others."""
    path = f"{first}{os.pathsep}{ROOT}" if first else str(ROOT)
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *arguments],
        env=(environment or dict(os.environ)) | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    return json.loads(done.stdout)


def package(folder: Path, name: str, interpreter: str) -> None:
    """Make a runtime of this name, with this text for its module `interpreter`."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text('__version__ = "2.14.0"\n')
    (folder / name / "interpreter.py").write_text(interpreter)


def test_without_a_runtime_each_one_is_named_with_what_to_install() -> None:
    # -S: without the packages of the virtual environment.
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\nfrom edge_agent.inference.runtime.runtimes import find_runtime\n"
    )
    code += "try: find_runtime()\nexcept RuntimeError as error: print(error)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == (
        f"no TensorFlow Lite runtime can be used: {NO_LITERT}; {NO_TFLITE}; pycoral is not installed: {PYCORAL}\n"
    )


def test_the_maintained_runtime_comes_first() -> None:
    assert find_runtime().name == "ai-edge-litert"
    assert str(find_runtime("ai-edge-litert")) == str(find_runtime())


def test_a_runtime_that_was_asked_for_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tflite_runtime", "pycoral"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed

    for wanted, reason in (("tflite-runtime", NO_TFLITE), ("pycoral", f"pycoral is not installed: {PYCORAL}")):
        with pytest.raises(RuntimeUnavailable) as caught:
            find_runtime(wanted)
        assert str(caught.value) == f"[inference].runtime is {wanted!r}, but {reason}"


def test_a_runtime_that_cannot_make_an_interpreter_is_passed_over(tmp_path: Path) -> None:
    # As tflite-runtime 2.14 is under NumPy 2.
    broken = "def Interpreter(**_):\n    raise SystemError('returned a result with an exception set')\n"
    package(tmp_path, "tflite_runtime", broken)
    package(tmp_path, "ai_edge_litert", broken)
    pycoral.pypis(tmp_path)

    told = child(TELL, first=tmp_path)["said"]

    assert "ai-edge-litert 2.14.0 does not work with the installed NumPy; install ai-edge-litert, or numpy<2" in told
    assert "tflite-runtime 2.14.0 does not work with the installed NumPy; install ai-edge-litert, or numpy<2" in told
    assert "Allen Coral Atlas" in told


def test_the_next_runtime_is_taken(tmp_path: Path) -> None:
    package(tmp_path, "ai_edge_litert", "raise ImportError('libstdc++.so.6: cannot open shared object file')")
    package(tmp_path, "tflite_runtime", "def Interpreter(**_):\n    pass\n")

    assert child(TELL, first=tmp_path)["said"] == "tflite-runtime 2.14.0"
    assert child(TELL, "ai-edge-litert", first=tmp_path)["said"] == (
        "[inference].runtime is 'ai-edge-litert', but ai-edge-litert cannot be imported: "
        "libstdc++.so.6: cannot open shared object file"
    )


# ------------------------------------------------------------------------------------------ what is called pycoral


def test_pypis_pycoral_is_named_and_not_imported(tmp_path: Path) -> None:
    told = child(TELL, "pycoral", first=pycoral.pypis(tmp_path))

    assert told["said"] == (
        "[inference].runtime is 'pycoral', but the installed pycoral 0.2.0 ('Simple CLI for Allen Coral Atlas') is not "
        f"Google's PyCoral but another project of that name on PyPI: `pip uninstall pycoral`; {PYCORAL}"
    )
    assert "pycoral" not in told["modules"]


def test_pypis_pycoral_does_not_stand_in_the_way(tmp_path: Path) -> None:
    assert child(TELL, first=pycoral.pypis(tmp_path))["said"] == str(find_runtime())


@pytest.mark.parametrize("place", ["pycoral.py", "pycoral/__init__.py", "pycoral/utils/__init__.py"])
def test_anything_else_called_pycoral_is_named_by_its_place(tmp_path: Path, place: str) -> None:
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / place).touch()

    said = child(TELL, "pycoral", first=tmp_path)["said"]

    assert f"what is called pycoral at {tmp_path}/pycoral" in said
    assert "is not Google's PyCoral: it has no pycoral.utils.edgetpu" in said


def test_a_pycoral_for_another_python_is_told(tmp_path: Path) -> None:
    (pycoral.googles(tmp_path) / "pycoral/pybind/_pywrap_coral.py").unlink()

    assert child(TELL, "pycoral", first=tmp_path)["said"] == (
        "[inference].runtime is 'pycoral', but pycoral cannot be imported: "
        "No module named 'pycoral.pybind._pywrap_coral'"
    )


def test_googles_pycoral_runs_models_on_the_edge_tpu_and_on_the_cpu(edgetpu_standin: Path, tmp_path: Path) -> None:
    compiled, node, log = tmp_path / "compiled.tflite", tmp_path / "004", tmp_path / "log"
    compiled.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    node.touch()
    environment = build.environment(edgetpu_standin, devices=[("usb", node)], log=log)

    answer = child(
        RUN, str(DEMO_MODEL), str(compiled), first=pycoral.googles(tmp_path / "site"), environment=environment
    )

    litert = find_runtime("ai-edge-litert")
    interpreter = litert.interpreter(str(DEMO_MODEL))
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], np.zeros(entry["shape"], entry["dtype"]))
    interpreter.invoke()
    expected = interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).tolist()
    assert answer == {
        "name": "pycoral",
        "version": f"2.0.0 on {litert}",
        "cpu": expected,
        "edgetpu": [[255, 0, 0]],
        # With the device that was opened before: make_interpreter by itself would heed no options.
        "made": [{"device": None, "delegate": True}],
        "seen": [{"type": "usb", "path": str(node)}],
    }
    events = build.read_log(log)
    assert [event["event"] for event in events] == ["create", "release", "destroy"]
    assert events[0]["options"] == {"device": "usb:0", "Performance": "Low"}
