"""Golden samples: what becomes of them in a release, and what their publisher is told."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.inference.golden import Golden, read_golden, write_golden
from edge_agent.models.release.manifest import Acceptance, Manifest
from edge_agent.publisher.build import Built, Ingredients, build
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.golden import Examined, Question, about_golden, examine
from tests.inference.conftest import DEMO_MODEL, ROOT
from tests.inference.synthetic import Builder, Spec, slices

SHARED = ROOT.parent / "shared/models"
LABELS = ["normal", "warning", "failure"]
MEANS = {"normal": (0.5, 0.1), "warning": (1.2, 0.3), "failure": (2.5, 0.8)}
needs_models = pytest.mark.skipif(not SHARED.is_dir(), reason=f"the models are not in {SHARED}")
# What is between 0 and 1 goes in, and three of four values come out.
NARROW = slices(Spec("x", (1, 4), "uint8", 1 / 255, 0), [Spec("y", (1, 3), "uint8", 1 / 256, 0)])


def csv(folder: Path, rows: Any, name: str = "golden.csv") -> Path:
    path = folder / name
    np.savetxt(path, np.asarray(rows), delimiter=",", fmt="%.5f")
    return path


def model(folder: Path, builder: Builder = NARROW) -> Path:
    path = folder / "model.tflite"
    path.write_bytes(builder.bytes())
    return path


def text(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def examined(folder: Path, source: Path, file: Path | None = None, **more: Any) -> Examined:
    question = {"model": str(file or model(folder)), "source": str(source), "output": str(folder / "golden.npz")}
    return asyncio.run(examine(Question(**{"task": "classification", **question, **more})))


def refusal(folder: Path, source: Path, **more: Any) -> str:
    with pytest.raises(ReleaseError) as error:
        examined(folder, source, **more)
    return str(error.value)


def made(folder: Path, **more: Any) -> Built:
    given = {"name": "vibration", "version": "v1.4", "model": DEMO_MODEL, **more}
    return asyncio.run(build(Ingredients(**given), folder / "out", now_ms=1234))


def golden_of(folder: Path, manifest: Manifest) -> Golden:
    assert manifest.acceptance.golden is not None
    return read_golden(folder / "out/objects" / manifest.acceptance.golden.name)


def test_samples_with_labels_go_into_the_release_with_what_the_model_says(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    rows = [np.clip(draw.normal(*MEANS[label], 128), 0, 5) for label in LABELS for _ in range(3)]
    built = made(
        tmp_path,
        labels=text(tmp_path / "labels.txt", *LABELS),
        golden=csv(tmp_path, rows),
        golden_labels=text(tmp_path / "golden.txt", *(label for label in LABELS for _ in range(3))),
        acceptance=Acceptance(min_accuracy=0.9, max_latency_ms=20.0),
    )
    assert built.notes == ["golden samples: 9, 9 of 9 told right, 0 % of the values out of range"]
    assert built.warnings == []
    assert (built.manifest.acceptance.min_accuracy, built.manifest.acceptance.max_latency_ms) == (0.9, 20.0)
    golden = golden_of(tmp_path, built.manifest)
    assert golden.labels == tuple(label for label in LABELS for _ in range(3))
    np.testing.assert_allclose(golden.input, np.array(rows, np.float32), atol=1e-5)
    assert [int(row.argmax()) for row in golden.outputs[0]] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    again = made(tmp_path, golden=tmp_path / "golden.csv")
    assert again.manifest.acceptance.golden != built.manifest.acceptance.golden  # it has no labels


def test_the_calibration_trap_is_told_with_both_ranges(tmp_path: Path) -> None:
    found = examined(tmp_path, csv(tmp_path, [[0.1, 0.2, 0.9, 0.5], [1.5, 2.5, 3.5, 0.5], [0.9, 0.1, 6.8, 0.5]]))
    assert (found.samples, found.clipped_samples) == (3, 2)
    assert found.clipped == pytest.approx(4 / 12)
    [warning, limit] = about_golden(Path("golden.csv"), found)
    assert warning.startswith(
        "33 % of the values of the golden samples are clipped, in 2 of 3 samples: the model was calibrated for 0 to 1, "
        "the samples have 0.1 to 6.8. What is clipped the model does not see; convert it again with a representative"
    )
    assert limit.startswith("1 of 3 golden samples drive the output to its limit")


def test_a_range_that_is_hardly_used_is_told(tmp_path: Path) -> None:
    found = examined(tmp_path, csv(tmp_path, [[0.50, 0.51, 0.52, 0.5], [0.51, 0.50, 0.50, 0.5]]))
    [warning] = about_golden(Path("golden.csv"), found)
    assert warning.startswith("the golden samples have values of 0.5 to 0.52 only, and the model was calibrated for 0 ")


def test_one_prediction_for_all_is_told(tmp_path: Path) -> None:
    found = examined(tmp_path, csv(tmp_path, [[0.9, 0.2, 0.1, 0.5], [0.8, 0.1, 0.0, 0.5]]), labels=LABELS)
    [warning] = about_golden(Path("golden.csv"), found)
    assert warning.startswith("the model says 'normal' of all 2 golden samples: ")


def test_outputs_at_their_limit_are_told(tmp_path: Path) -> None:
    narrow = slices(Spec("x", (1, 4), "uint8", 4 / 255, 0), [Spec("y", (1, 1), "uint8", 1 / 255, 0)])
    rows = csv(tmp_path, [[3.0, 0.2, 0.1, 0.0], [0.5, 0.1, 4.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    found = examined(tmp_path, rows, model(tmp_path, narrow), task="regression")
    assert found.saturated == 1
    assert "1 of 3 golden samples drive the output to its limit" in "".join(about_golden(rows, found))
    # Several classes at their limit cannot be told apart; one alone is sure.
    rows = csv(tmp_path, [[1.0, 1.0, 0.1, 0.0], [1.0, 0.1, 0.0, 0.0]])
    assert examined(tmp_path, rows).saturated == 1


def test_a_model_that_every_device_would_refuse_is_not_released(tmp_path: Path) -> None:
    rows = csv(tmp_path, [[0.9, 0.1, 0.1, 0], [0.9, 0.1, 0.1, 0]])
    labels = text(tmp_path / "golden.txt", "normal", "failure")
    more: dict[str, Any] = {"labels": LABELS, "acceptance": Acceptance(min_accuracy=0.9)}
    assert refusal(tmp_path, rows, labels_file=str(labels), **more) == (
        f"{rows}: every device would refuse this model: 1 of 2 golden samples are told right, and --min-accuracy is 0.9"
    )
    assert refusal(tmp_path, rows, **more).endswith("no sample has a label, so nothing is known of --min-accuracy")


def test_golden_samples_of_another_machine_are_held_against_the_model(tmp_path: Path) -> None:
    data = np.array([[0.9, 0.1, 0.5, 0], [0.1, 0.9, 0.5, 0]], np.float32)
    ready = tmp_path / "ready.npz"
    write_golden(ready, Golden(data, (data[:, :3].copy(),), ("normal", "")))
    found = examined(tmp_path, ready, labels=LABELS)
    assert (found.samples, found.labelled, found.right, found.not_run) == (2, 1, 1, "")
    assert (tmp_path / "golden.npz").read_bytes() == ready.read_bytes()
    write_golden(ready, Golden(data, (1 - data[:, :3],)))
    assert "every device would refuse this model: golden samples: 0 of 2 agree" in refusal(tmp_path, ready)


@needs_models
def test_a_compiled_model_is_run_by_its_twin_and_alone_not_at_all(tmp_path: Path) -> None:
    compiled = SHARED / "mobilenet_v1_0.25_128_quant_edgetpu.tflite"
    twin = SHARED / "mobilenet_v1_0.25_128_quant.tflite"
    pictures = tmp_path / "pictures"
    (pictures / "Egyptian cat").mkdir(parents=True)
    with Image.open(SHARED / "cat.bmp") as cat:
        cat.save(pictures / "Egyptian cat/one.png")
        cat.resize((200, 100)).save(pictures / "Egyptian cat/two.png")
    Image.new("RGB", (64, 64)).save(pictures / "dark.png")
    with pytest.raises(ReleaseError, match=r"cannot be run on them here: it needs an Edge TPU, .* \(\.npz\)$"):
        made(tmp_path, model=compiled, golden=pictures)

    built = made(tmp_path, model=compiled, twin=twin, labels=SHARED / "imagenet_labels.txt", golden=pictures)
    golden = golden_of(tmp_path, built.manifest)
    assert (golden.input.shape, golden.input.dtype) == ((3, 128, 128, 3), np.uint8)
    assert golden.labels == ("", "Egyptian cat", "Egyptian cat")
    assert built.notes[0].endswith("for an Edge TPU runtime of version 12 or later")
    assert built.notes[1].startswith("golden samples: 3, ")

    ready = tmp_path / "ready.npz"
    write_golden(ready, golden)
    alone = made(tmp_path, model=compiled, golden=ready)
    assert alone.notes[1] == "golden samples: 3, taken as they are"
    assert f"{ready}: nobody has compared these outputs with the model's: it needs an Edge TPU" in alone.warnings[1]
    assert golden_of(tmp_path, alone.manifest).labels == golden.labels


def test_labels_belong_to_their_samples(tmp_path: Path) -> None:
    rows = csv(tmp_path, [[0.9, 0.1, 0.1, 0], [0.1, 0.9, 0.1, 0]])
    short = text(tmp_path / "short.txt", "normal")
    assert refusal(tmp_path, rows, labels_file=str(short)) == f"{rows}: has 2 samples, and {short} has 1 labels"
    strange = text(tmp_path / "strange.txt", "normal", "broken")
    found = examined(tmp_path, rows, labels_file=str(strange), labels=LABELS)
    [warning] = about_golden(rows, found)
    assert warning == "labels of golden samples that the model does not know: broken"
    with rows.open("a") as file:
        file.write("0.1,none,0.1,0\n")
    assert "so the lines of" in refusal(tmp_path, rows, labels_file=str(strange))
    [left_out, *_] = about_golden(rows, examined(tmp_path, rows))
    assert left_out.startswith(f"{rows}: left out: golden.csv:3: ")


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path, tmp_path / "none.csv") == f"{tmp_path}/none.csv: No such file or directory"
    rows = csv(tmp_path, [[0.9, 0.1, 0.1, 0]] * 2)
    assert refusal(tmp_path, rows, labels_file=f"{rows}.txt") == f"{rows}: {rows}.txt: No such file or directory"
    wide = csv(tmp_path, [[0.9, 0.1, 0.1, 0, 0], [0.9, 0.1, 0.1, 0, 0]], "wide.csv")
    assert "the model takes 4 values" in refusal(tmp_path, wide)
    many = tmp_path / "many.npy"
    np.save(many, np.zeros((1001, 4), np.float32))
    assert "has too many samples: 1000 are allowed" in refusal(tmp_path, many)
    (tmp_path / "pictures").mkdir()
    assert "are pictures, and the model takes uint8 of shape 1x4" in refusal(tmp_path, tmp_path / "pictures")
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK\x03\x04" + bytes(100))
    assert refusal(tmp_path, broken).startswith(f"{broken}: is no .npz file")


def test_labels_that_are_not_as_many_as_the_classes_are_to_blame(tmp_path: Path) -> None:
    labels = text(tmp_path / "labels.txt", "normal", "failure")
    rows = csv(tmp_path, np.full((2, 128), 0.5))
    with pytest.raises(
        ReleaseError, match=rf"^{labels}: 2 labels, but the model has 3 outputs; a classifier would be "
    ):
        made(tmp_path, labels=labels, golden=rows)
    assert made(tmp_path, labels=labels, golden=rows, task="raw").manifest.labels == ["normal", "failure"]


def test_limits_without_golden_samples_mean_nothing(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"without golden samples \(--golden\) there is nothing"):
        made(tmp_path, acceptance=Acceptance(max_latency_ms=5.0))
