"""Releases made of real models, and what their publisher is told."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest

from edge_agent.inference.checks.inspection import ModelFacts, TensorFacts
from edge_agent.inference.interpreter.edgetpu_package import EdgeTpuPackage
from edge_agent.models.release.manifest import parse
from edge_agent.publisher.build import Built, Ingredients, build
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.remarks import about_model
from tests.inference.conftest import ROOT
from tests.inference.synthetic import Spec, slices
from tests.standin.models import edgetpu_model

MODELS = ROOT.parent / "shared" / "models"
DEMO = Path("edge_agent/demo/vibration_classifier.tflite")
COMPILED = MODELS / "mobilenet_v2_1.0_224_quant_edgetpu.tflite"
TWIN = MODELS / "mobilenet_v2_1.0_224_quant.tflite"
SMALL_TWIN = MODELS / "mobilenet_v1_0.25_128_quant.tflite"
INPUT, SMALL_INPUT = "uint8 of shape 1x224x224x3", "uint8 of shape 1x128x128x3"
LABELS = MODELS / "imagenet_labels.txt"


pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason=f"the models are not in {MODELS}")


def made(folder: Path, model: Path = DEMO, **more: object) -> Built:
    ingredients = Ingredients(**{"name": "vibration", "version": "v1.4", "model": model, **more})  # type: ignore[arg-type]
    return asyncio.run(build(ingredients, folder, now_ms=1234))


def refusal(folder: Path, **more: object) -> str:
    with pytest.raises(ReleaseError) as error:
        made(folder, **more)  # type: ignore[arg-type]
    assert not (folder / "release.json").exists()
    return str(error.value)


def test_what_devices_and_people_find_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("normal\nwarning\nfailure\n")
    built = made(tmp_path / "out", labels=tmp_path / "labels.txt", accuracy=0.98)
    assert built.warnings == []
    file = parse((tmp_path / "out/release.json").read_bytes())
    assert (file.manifest, file.signatures) == (built.manifest, [])
    manifest = file.manifest
    assert (manifest.version, manifest.sequence, manifest.accuracy) == ("v1.4", 1234, 0.98)
    assert (manifest.inputs, manifest.outputs) == (["uint8 of shape 1x128"], ["uint8 of shape 1x3"])
    assert manifest.labels == ["normal", "warning", "failure"]
    content = (tmp_path / "out/objects" / manifest.model.name).read_bytes()
    assert content == DEMO.read_bytes()
    assert manifest.model.sha256 == hashlib.sha256(content).hexdigest()
    assert re.fullmatch(r"[0-9a-f]{16}-vibration_classifier\.tflite", manifest.model.name)


def test_a_compiled_model_with_its_twin(tmp_path: Path) -> None:
    built = made(tmp_path, COMPILED, twin=TWIN, labels=LABELS)
    assert built.warnings == []
    assert built.manifest.twin is not None
    assert built.manifest.twin.size == TWIN.stat().st_size


def test_what_a_publisher_should_think_about(tmp_path: Path) -> None:
    (tmp_path / "labels.txt").write_text("one\ntwo\n")
    built = made(tmp_path, COMPILED, labels=tmp_path / "labels.txt")
    assert built.warnings == [
        "there is no twin for the CPU (--twin): without an Edge TPU a device stands still",
        "2 labels, but the model has 1001 outputs; a classifier would be refused",
    ]


def test_what_stays_on_the_cpu_is_told(tmp_path: Path) -> None:
    [warning] = made(tmp_path, MODELS / "traffic_model.tflite").warnings
    assert warning.startswith("1 operator stays on the CPU, with all that comes after, as the Edge TPU has no floating")
    assert warning.endswith(": TFLite_Detection_PostProcess")
    path = tmp_path / "model.tflite"
    path.write_bytes(slices(Spec("x", (1, 4)), [Spec("y", (1, 3))]).bytes())
    assert made(tmp_path, path).warnings == ["the model is not quantised to 8 bits: the Edge TPU cannot run it"]
    path.write_bytes(edgetpu_model(DEMO.read_bytes()))
    assert made(tmp_path, path).warnings[1:] == [
        "its Edge TPU package is not understood, so nobody can say which runtime it needs"
    ]


def test_parts_beside_the_edge_tpu_and_runtimes_of_the_future_are_told() -> None:
    tensor = TensorFacts((1, 3), "uint8")
    operators = {"edgetpu-custom-op": 1, "QUANTIZE": 2, "SOFTMAX": 1}
    facts = ModelFacts([tensor], [tensor], operators, package=EdgeTpuPackage("17.0", 15))
    rest, runtime = about_model(facts, None)
    assert rest == "3 operators stay on the CPU: QUANTIZE (2), SOFTMAX"
    assert runtime.startswith("it needs an Edge TPU runtime of version 15, and that of libedgetpu 16.0 is 14: compile ")
    facts = ModelFacts([TensorFacts((-1, 3), "uint8")], [tensor], {"SOFTMAX": 1}, dynamic=3)
    assert "an input has no fixed shape (uint8 of shape -1x3)" in next(iter(about_model(facts, None)))
    facts = ModelFacts([tensor], [TensorFacts((1, -1), "uint8")], {"SOFTMAX": 1}, dynamic=3)
    assert list(about_model(facts, ["a", "b"])) == [
        "3 tensors have no fixed shape: the Edge TPU's compiler refuses them"
    ]


@pytest.mark.parametrize(
    ("model", "twin", "why"),
    [
        (COMPILED, COMPILED, f"{COMPILED}: is compiled for the Edge TPU; the twin is the model before that"),
        (DEMO, TWIN, f"{DEMO}: is not compiled for the Edge TPU, so it needs no twin"),
        (
            COMPILED,
            SMALL_TWIN,
            f"{SMALL_TWIN}: is another model than {COMPILED}: its inputs are {SMALL_INPUT}, and not {INPUT}",
        ),
    ],
)
def test_pairs_that_are_none(tmp_path: Path, model: Path, twin: Path, why: str) -> None:
    assert refusal(tmp_path, model=model, twin=twin) == why


def test_files_that_are_no_models(tmp_path: Path) -> None:
    file = tmp_path / "model.tflite"
    assert refusal(tmp_path, model=file) == f"{file}: cannot be used: No such file or directory"
    file.write_bytes(DEMO.read_bytes()[:5000])
    assert refusal(tmp_path, model=file).startswith(f"{file}: cannot be used: ")


def test_names_that_devices_would_not_take(tmp_path: Path) -> None:
    assert refusal(tmp_path, version="v1\n") == "--version: 'v1\\n' is none: give one line of up to 128 letters"
    assert refusal(tmp_path, name="") == "--name: '' is none: give one line of up to 128 letters"
    strange = tmp_path / "my model (1).tflite"
    strange.write_bytes(DEMO.read_bytes())
    assert made(tmp_path, strange).manifest.model.name.endswith("-my_model__1_.tflite")
