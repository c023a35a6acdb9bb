"""Models are built, or refused in words; in this process, and where the driver is needed in a child."""

import copy
import json
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import msgspec
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edge_agent.inference.accelerators.opening import Opened
from edge_agent.inference.interpreter.inputs import ModelInput
from edge_agent.inference.interpreter.model import LoadedModel, build, try_file
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Stage, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import Runtime, RuntimeUnavailable, find_runtime
from edge_agent.records import ModelFile, Sample
from tests.inference.conftest import DEMO_MODEL, ROOT
from tests.standin.build import environment
from tests.standin.models import edgetpu_model

OPTIONS = ModelOptions(
    accelerator="auto", device="", top_k=3, resize="nearest", image_mean=127.5, image_std=127.5, labels=None, raw_data=0
)
NOT_COMPILED = "the model is not compiled for the Edge TPU (edgetpu_compiler)"
NO_MODEL = "is no TensorFlow Lite model, or is cut short"

# Builds the model named on the command line, with /sys and /dev in a folder, and says how that went.
CHILD = """
import json, sys
import msgspec
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile
from pathlib import Path
path, root, options, twin = sys.argv[1:]
try:
    file = ModelFile(path, "m", "v1", cpu_path=twin or None)
    given = msgspec.json.decode(options, type=ModelOptions)
    model = build(find_runtime(), file, given, None, root=Path(root))
    print(json.dumps([model.accelerator, model.degraded]))
    model.close()
except ModelRefused as refused:
    print(json.dumps(["permanent" if refused.permanent else "refused", str(refused)]))
"""


def options(**changes: Any) -> ModelOptions:
    return msgspec.structs.replace(OPTIONS, **changes)


def built(
    path: Path = DEMO_MODEL,
    given: ModelOptions = OPTIONS,
    last: Sample | None = None,
    labels: list[str] | None = None,
    root: Path = Path("/nowhere"),
) -> LoadedModel:
    return build(find_runtime(), ModelFile(str(path), "vibration", "v1", labels), given, last, root=root)


def refused(path: Path = DEMO_MODEL, given: ModelOptions = OPTIONS, **more: Any) -> tuple[str, bool]:
    """The reason, and whether it is for good."""
    with pytest.raises(ModelRefused) as caught:
        built(path, given, **more)
    return str(caught.value), caught.value.permanent


def changed(change: Callable[[Any], None], path: Path) -> Path:
    """The demo model with something changed in its graph."""
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(DEMO_MODEL.read_bytes(), 0))
    change(model.subgraphs[0])
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), file_identifier=b"TFL3")
    path.write_bytes(builder.Output())
    return path


def sample(value: float = 0.5, size: int = 128) -> Sample:
    return Sample(np.full(size, value, np.float32), 17, "here")


@pytest.fixture
def plugged_in(tmp_path: Path) -> Path:
    """A root folder in which an Edge TPU stands at 2-1."""
    root = tmp_path / "root"
    entry = root / "sys/bus/usb/devices/2-1"
    entry.mkdir(parents=True)
    for name, text in {"idVendor": "1a6e", "idProduct": "089a", "busnum": "2", "devnum": "7"}.items():
        (entry / name).write_text(f"{text}\n")
    node = root / "dev/bus/usb/002/007"
    node.parent.mkdir(parents=True)
    node.touch()
    return root


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    path = tmp_path / "compiled.tflite"
    path.write_bytes(edgetpu_model(DEMO_MODEL.read_bytes()))
    return path


# ------------------------------------------------------------------------------------------ where it runs


def test_a_plain_model_runs_on_the_cpu_and_is_degraded_only_where_an_edge_tpu_was_to_be_expected(
    plugged_in: Path, tmp_path: Path
) -> None:
    cases = [("auto", plugged_in, NOT_COMPILED), ("auto", tmp_path, None), ("cpu", plugged_in, None)]
    for accelerator, root, degraded in cases:
        model = built(given=options(accelerator=accelerator), root=root)
        assert (model.accelerator, model.degraded) == ("cpu", degraded)


def test_a_plain_model_is_refused_where_the_edge_tpu_is_demanded(plugged_in: Path) -> None:
    reason, permanent = refused(given=options(accelerator="edgetpu"), root=plugged_in)
    assert reason == f"{NOT_COMPILED}, but [inference].accelerator is 'edgetpu'"
    assert not permanent


BUSY = (
    "usb:2-1 is there, but libedgetpu could not open it; plug it in again, or switch the machine off and on; "
    "a container or a sandbox may also keep its device file shut"
)
ELSEWHERE = "there is no Edge TPU at '{}'; there is usb:2-1"


@pytest.mark.parametrize(
    ("mode", "device", "outcome"),
    [
        ("ok", "", ["edgetpu", None]),
        ("ok", "usb:0", ["edgetpu", None]),
        ("absent", "usb:0", ["refused", f"it needs an Edge TPU, and {BUSY}"]),
        ("absent", "pci", ["refused", f"it needs an Edge TPU, and {ELSEWHERE.format('pci')}"]),
        ("ok", "usb:1", ["refused", f"it needs an Edge TPU, and {ELSEWHERE.format('usb:1')}"]),
    ],
)
def test_a_compiled_model_opens_the_device_or_says_why_not(
    edgetpu_standin: Path, compiled: Path, plugged_in: Path, *, mode: str, device: str, outcome: list[str | None]
) -> None:
    assert child_says(edgetpu_standin, mode, compiled, plugged_in, given=options(device=device)) == outcome


def child_says(
    standin: Path, mode: str, model: Path, root: Path, *, given: ModelOptions = OPTIONS, twin: str = ""
) -> list[str | None]:
    """How a process with the stand-in for the driver gets along with the model."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(model), str(root), msgspec.json.encode(given).decode(), twin],
        env=environment(standin, mode),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    said: list[str | None] = json.loads(child.stdout)
    return said


def test_where_the_edge_tpu_fails_at_the_first_run_the_twin_takes_over(
    edgetpu_standin: Path, compiled: Path, plugged_in: Path
) -> None:
    twin = str(DEMO_MODEL)
    accelerator, degraded = child_says(edgetpu_standin, "fail", compiled, plugged_in, twin=twin)
    assert accelerator == "cpu"
    assert degraded is not None
    assert degraded.startswith("the Edge TPU failed: the runtime cannot run it: ")
    assert "failed to invoke" in degraded
    demanded = options(accelerator="edgetpu")
    assert child_says(edgetpu_standin, "fail", compiled, plugged_in, given=demanded, twin=twin)[0] == "refused"


class Ends(list[str]):
    """The order in which things come to their end."""

    def watch(self, thing: Any, name: str) -> Any:
        weakref.finalize(thing, self.append, name)
        return thing


class WithoutDelegate(Runtime):
    """As libedgetpu is that was built for another TensorFlow Lite: it opens, and takes over nothing."""

    def __init__(self) -> None:
        from ai_edge_litert import interpreter  # noqa: PLC0415  only here as a module

        super().__init__("ai-edge-litert", interpreter, "1")
        self.ends = Ends()

    def load_delegate(self, options: Any) -> Any:
        class Delegate:
            """Only its end is of interest."""

        return self.ends.watch(Delegate(), "delegate")

    def interpreter(self, path: str, delegates: Any = ()) -> Any:
        return self.ends.watch(super().interpreter(path), "interpreter")


def test_after_a_failure_the_interpreter_is_given_up_before_the_delegate(compiled: Path) -> None:
    runtime = WithoutDelegate()
    with pytest.raises(ModelRefused, match="unresolved custom op: edgetpu-custom-op") as caught:
        build(runtime, ModelFile(str(compiled), "m", "v1"), OPTIONS, None)
    # The error is still at hand, and holds on to neither.
    assert not caught.value.permanent
    assert runtime.ends == ["interpreter", "delegate"]


def test_the_device_is_free_before_the_twin_is_built(compiled: Path) -> None:
    runtime = WithoutDelegate()
    model = build(runtime, ModelFile(str(compiled), "m", "v1", cpu_path=str(DEMO_MODEL)), OPTIONS, None)
    assert runtime.ends == ["interpreter", "delegate"]
    assert model.accelerator == "cpu"
    assert model.degraded is not None
    assert "unresolved custom op" in model.degraded
    model.close()


def test_a_twin_that_cannot_be_used_is_named_and_not_for_good(compiled: Path, tmp_path: Path) -> None:
    broken = write(tmp_path / "twin.tflite", b"x" * 5000)
    with pytest.raises(ModelRefused) as caught:
        build(WithoutDelegate(), ModelFile(str(compiled), "m", "v1", cpu_path=str(broken)), OPTIONS, None)
    assert str(caught.value) == f"its twin for the CPU: {NO_MODEL}"
    assert not caught.value.permanent


def test_the_interpreter_is_given_up_before_the_delegate() -> None:
    class Delegate:
        """Stands for what libedgetpu made; only its end is of interest."""

    ends: list[str] = []
    delegate = Delegate()
    interpreter = find_runtime().interpreter(str(DEMO_MODEL))
    interpreter.allocate_tensors()
    task = built().task
    tensor = TensorInfo.of(interpreter.get_input_details()[0])
    opened = Opened(str(DEMO_MODEL), delegates=[delegate])
    model_input = ModelInput(tensor, resize="nearest", mean=0, std=1)
    model = LoadedModel(interpreter, opened, model_input, task, OPTIONS, outputs=[])
    assert model.accelerator == "edgetpu"
    weakref.finalize(interpreter, ends.append, "interpreter")
    weakref.finalize(delegate, ends.append, "delegate")
    del interpreter, delegate, opened

    model.close()

    assert ends == ["interpreter", "delegate"]


# ------------------------------------------------------------------------------------------ what it says


def test_a_result_is_that_of_the_sample() -> None:
    page = ProgressPage.create()
    model = built(given=options(raw_data=3, top_k=2), labels=["a", "b", "c"])
    interpreter = Interpreter(model_path=str(DEMO_MODEL))
    interpreter.allocate_tensors()
    scale, zero_point = interpreter.get_input_details()[0]["quantization"]
    for value in (0.1, 0.9, 2.6):
        interpreter.set_tensor(0, np.full((1, 128), round(value / scale + zero_point), np.uint8))
        interpreter.invoke()
        output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])[0].tolist()

        result = model.run(sample(value), Reporter(page, Track.INFERENCE), StageLatencies())

        ranked = sorted(range(3), key=lambda i: -output[i])[:2]
        assert [score.index for score in result.scores] == ranked
        assert [score.label for score in result.scores] == ["abc"[i] for i in ranked]
        assert [score.score for score in result.scores] == pytest.approx([output[i] / 256 for i in ranked], abs=1e-6)
        assert (result.captured_ns, result.position, result.clipped) == (17, "here", 0.0)
        assert result.raw_data == pytest.approx([value] * 3, abs=1e-6)
        assert result.inference_ns > 0
    assert page.stage(Track.INFERENCE) is Stage.DECODE
    page.close()


def test_missing_values_go_out_as_they_went_in() -> None:
    page = ProgressPage.create()
    gap = Sample(np.array([np.nan, np.inf] + [0.5] * 126, np.float32), 1)
    result = built(given=options(raw_data=2)).run(gap, Reporter(page, Track.INFERENCE), StageLatencies())
    page.close()
    assert result.clipped == 2 / 128
    assert result.raw_data is not None
    assert result.raw_data[0] == 0.0
    assert np.isfinite(result.raw_data).all()


def test_the_labels_of_the_release_count_more_than_those_of_the_settings() -> None:
    given = options(labels=["x", "y", "z"])
    page = ProgressPage.create()
    for labels, names in ((None, set("xyz")), (["a", "b", "c"], set("abc"))):
        result = built(given=given, labels=labels).run(sample(), Reporter(page, Track.INFERENCE), StageLatencies())
        assert {score.label for score in result.scores} == names
    page.close()


# ------------------------------------------------------------------------------------------ what is refused


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_what_is_no_model_is_refused_for_good(tmp_path: Path) -> None:
    whole = DEMO_MODEL.read_bytes()
    for name, content in {"empty": b"", "rubbish": b"x" * 5000, "short": whole[:5000], "tiny": whole[:10]}.items():
        assert refused(write(tmp_path / name, content)) == (NO_MODEL, True), name


def test_a_file_that_cannot_be_read_is_tried_again(tmp_path: Path) -> None:
    missing = tmp_path / "none.tflite"
    assert refused(missing) == (f"cannot be read: [Errno 2] No such file or directory: '{missing}'", False)
    assert refused(tmp_path) == (f"cannot be read: [Errno 21] Is a directory: '{tmp_path}'", False)


def no_outputs(graph: Any) -> None:
    graph.outputs = []


def two_outputs(graph: Any) -> None:
    graph.outputs = [graph.outputs[0], graph.outputs[0] - 1]


def two_inputs(graph: Any) -> None:
    second = copy.deepcopy(graph.tensors[graph.inputs[0]])
    second.name = b"second"
    graph.tensors.append(second)
    graph.inputs = [graph.inputs[0], len(graph.tensors) - 1]


def an_output_that_is_no_row(graph: Any) -> None:
    # What stands behind the first convolution: 1x1x128x16.
    graph.outputs = [13]


@pytest.mark.parametrize(
    ("change", "found"), [(no_outputs, "none"), (two_outputs, "1x3, 1x3"), (an_output_that_is_no_row, "1x1x128x16")]
)
def test_a_model_for_another_task_is_refused_until_the_settings_name_that(
    tmp_path: Path, change: Callable[[Any], None], found: str
) -> None:
    reason = f"no classifier: expected one output of shape 1xN, found {found}; [inference].task is 'classification'"
    assert refused(changed(change, tmp_path / "m.tflite")) == (reason, False)


def test_a_model_that_wants_more_than_the_sample_is_refused_for_good(tmp_path: Path) -> None:
    reason, permanent = refused(changed(two_inputs, tmp_path / "m.tflite"))
    assert permanent
    assert reason == (
        "the model has 2 inputs, and 'keras_tensor_10' (uint8 of shape 1x128), 'second' (uint8 of shape 1x128) "
        "all take data; only models with one such input can be fed"
    )


def test_a_model_that_does_not_fit_the_last_sample_is_refused_for_good() -> None:
    size = "the model takes 128 values (uint8 of shape 1x128), the source gives"
    assert refused(last=sample(size=64)) == (f"{size} 64", True)
    image = Sample(np.zeros((8, 8, 3), np.uint8), 1)
    assert refused(last=image) == (f"{size} images", True)
    assert built(last=sample()).accelerator == "cpu"


def test_labels_that_do_not_fit_are_refused() -> None:
    assert refused(labels=["a"] * 4) == ("4 labels, but the model has 3 outputs", True)
    # Those of the settings can be mended without another upload of the model.
    assert refused(given=options(labels=["a"] * 5)) == ("5 labels, but the model has 3 outputs", False)


# ------------------------------------------------------------------------------------------ the runtime


def test_a_runtime_that_cannot_work_says_what_to_install() -> None:
    class Module:
        """As tflite-runtime is under NumPy 2."""

        @staticmethod
        def Interpreter(**_: object) -> None:  # noqa: N802  the runtime's name
            raise SystemError("initialization of _pywrap_tensorflow_interpreter_wrapper raised unreported exception")

    runtime = Runtime("tflite-runtime", Module, "2.14.0")
    with pytest.raises(RuntimeUnavailable):
        runtime.interpreter(str(DEMO_MODEL))
    with pytest.raises(ModelRefused) as caught:
        build(runtime, ModelFile(str(DEMO_MODEL), "m", "v1"), OPTIONS, None)
    assert str(caught.value) == (
        "tflite-runtime 2.14.0 does not work with the installed NumPy; install ai-edge-litert, or numpy<2"
    )
    assert not caught.value.permanent


def test_a_file_is_tried_without_a_device(compiled: Path, tmp_path: Path) -> None:
    try_file(str(DEMO_MODEL))
    try_file(str(compiled))
    with pytest.raises(ModelRefused, match=NO_MODEL):
        try_file(str(write(tmp_path / "short", DEMO_MODEL.read_bytes()[:5000])))
