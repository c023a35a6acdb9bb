"""Google's own models, through the source `images` and the whole worker, against what is known of them.

The models, the picture and what the models say of it are those of `shared/models/README.md`.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from edge_agent.inference.interpreter.labels import read_labels
from edge_agent.inference.interpreter.model import build
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import Box, ModelFile, PixelBox, Sample, Score
from tests.inference.conftest import ROOT, running, settings, with_model

FOLDER = ROOT.parent / "shared" / "models"
STEP = 1 / 256
"""One quantisation step of the outputs."""

V1 = ("mobilenet_v1_0.25_128_quant.tflite", [(282, 0.285), (283, 0.285), (286, 0.168)])
V2 = ("mobilenet_v2_1.0_224_quant.tflite", [(286, 0.742), (282, 0.137), (283, 0.094)])


def needed(name: str) -> Path:
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not in {FOLDER}")
    return path


def plain_loop(model: Path, picture: Path) -> Any:
    """The output for the picture, as a script of ten lines would have it."""
    interpreter = Interpreter(model_path=str(model))
    interpreter.allocate_tensors()
    entry, output = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    _, height, width, _ = entry["shape"]
    image = Image.open(picture).convert("RGB").resize((width, height), Image.Resampling.NEAREST)
    interpreter.set_tensor(entry["index"], np.asarray(image)[np.newaxis])
    interpreter.invoke()
    scale, zero_point = output["quantization"]
    return (interpreter.get_tensor(output["index"])[0].astype(np.float64) - zero_point) * scale


def classify(model: Path, picture: Path, labels: list[str], **options: Any) -> list[Score]:
    """What the worker says of the picture."""

    async def scenario() -> list[Score]:
        source = settings("images", path=str(picture), rate=0.0, repeat=False, watch=False)
        configure = with_model(source, labels=labels, **{"top_k": 1001} | options)
        async with running(configure) as rig:
            report = await rig.supervisor.load(ModelFile(str(model), "mobilenet", "v1"))
            assert (report.accepted, report.accelerator, report.degraded) == (True, "cpu", None)
            await asyncio.wait_for(rig.supervisor.source_ended.wait(), 60)
        [result] = [result for batch in rig.batches for result in batch.results]
        assert result.clipped == 0.0
        return result.scores

    return asyncio.run(scenario())


@pytest.mark.parametrize(("name", "expected"), [V1, V2], ids=["mobilenet-v1-0.25", "mobilenet-v2"])
def test_the_cat_is_what_google_says_it_is(name: str, expected: list[tuple[int, float]]) -> None:
    model, picture, labels = needed(name), needed("cat.bmp"), read_labels(needed("imagenet_labels.txt"))
    output = plain_loop(model, picture)

    scores = classify(model, picture, labels, resize="nearest")

    assert [score.label for score in scores] == [labels[score.index] for score in scores]
    # The plain loop has one more say where two classes have the same score: then the lower one comes first.
    assert [score.index for score in scores] == sorted(range(1001), key=lambda i: (-output[i], i))
    assert [score.score for score in scores] == pytest.approx([output[score.index] for score in scores], abs=1e-6)
    for index, score in expected:
        assert {each.index: each.score for each in scores}[index] == pytest.approx(score, abs=STEP)
    assert {score.index for score in scores[:3]} == {index for index, _ in expected}


def test_another_way_to_resize_changes_the_scores_and_not_the_cat() -> None:
    model, picture, labels = needed(V2[0]), needed("cat.bmp"), read_labels(needed("imagenet_labels.txt"))

    scores = classify(model, picture, labels, resize="bilinear")

    assert scores[0].label == labels[V2[1][0][0]]
    assert scores[0].score != pytest.approx(plain_loop(model, picture).max(), abs=STEP / 2)


TRAFFIC = ("traffic_model.tflite", "traffic_0001.bmp")


def frames(picture: Path) -> list[Any]:
    """The picture, its mirror image, and the picture again."""
    pixels = np.asarray(Image.open(picture).convert("RGB"))
    return [pixels, np.ascontiguousarray(pixels[:, ::-1]), pixels]


def objects_in(model: Path, pictures: list[Any]) -> list[list[tuple[float, ...]]]:
    """Class, score and box of all objects in the pictures, as a plain loop has them."""
    interpreter = Interpreter(model_path=str(model))
    interpreter.allocate_tensors()
    inputs = {each["name"]: each["index"] for each in interpreter.get_input_details()}
    outputs = {each["name"]: each["index"] for each in interpreter.get_output_details()}
    # The zero point of the states is 0. They stay there for this model, so what a state does is for other tests.
    states = {name: np.zeros((1, 8, 8, 320), np.uint8) for name in ("lstm_c", "lstm_h")}
    seen = []
    for pixels in pictures:
        interpreter.set_tensor(inputs["normalized_input_image_tensor"], pixels[np.newaxis])
        for name, value in states.items():
            interpreter.set_tensor(inputs[f"raw_inputs/init_{name}"], value)
        interpreter.invoke()
        states = {name: interpreter.get_tensor(outputs[f"raw_outputs/{name}"]) for name in states}
        prefix = "TFLite_Detection_PostProcess"
        boxes, classes, scores = (interpreter.get_tensor(outputs[f"{prefix}{end}"])[0] for end in ("", ":1", ":2"))
        found: list[tuple[float, ...]] = []
        for box, number, score in zip(np.clip(boxes, 0, 1).tolist(), classes, scores, strict=True):
            top, left, bottom, right = box
            if left < right and top < bottom:
                found.append((float(number), float(score), left, top, right, bottom))
        seen.append(found)
    return seen


def flat(score: Score) -> tuple[float, ...]:
    box = score.box
    assert isinstance(box, Box)
    return (float(score.index), score.score, box.left, box.top, box.right, box.bottom)


def close(ours: list[Score], theirs: list[tuple[float, ...]]) -> None:
    """Fail unless these are the same objects, in whatever order: many have the same score."""
    rows = [np.array([flat(score) for score in ours]), np.array(theirs)]
    assert rows[0].shape == rows[1].shape
    got, expected = (each[np.lexsort(np.round(each, 4).T[::-1])] for each in rows)
    np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_detector_with_a_state_sees_the_same_as_a_plain_loop() -> None:
    path, pictures = needed(TRAFFIC[0]), frames(needed(TRAFFIC[1]))
    expected = objects_in(path, pictures)
    options = ModelOptions(task="detection", top_k=40, threshold=0.0)
    page = ProgressPage.create()
    reporter = Reporter(page, Track.INFERENCE)
    samples = [Sample(pixels, 1) for pixels in pictures]
    model = build(find_runtime(), ModelFile(str(path), "traffic", "v1"), options, samples[1], root=Path("/nowhere"))

    results = [model.run(sample, reporter, StageLatencies()) for sample in samples]

    assert str(model.task) == "objects"
    for result, theirs in zip(results, expected, strict=True):
        assert len(theirs) > 30
        close(result.scores, theirs)
        ranked = sorted((row[1] for row in theirs), reverse=True)
        assert [score.score for score in result.scores] == pytest.approx(ranked, abs=1e-6)
    model.close()
    page.close()


def test_objects_come_through_the_worker_with_their_boxes() -> None:
    path, picture = needed(TRAFFIC[0]), needed(TRAFFIC[1])
    names = ["car", "truck", "bus"]
    objects = classify(path, picture, ["???", *names], task="detection", top_k=40, threshold=0.0)
    close(objects, objects_in(path, frames(picture)[:1])[0])
    for score in objects:
        assert score.label == (names[score.index] if score.index < len(names) else str(score.index))
        assert isinstance(score.pixels, PixelBox)
        assert isinstance(score.box, Box)
        assert abs(score.pixels.left - score.box.left * 256) <= 1


def test_a_letterboxed_picture_has_its_objects_where_they_are() -> None:
    path, picture = needed(TRAFFIC[0]), needed(TRAFFIC[1])
    whole = Image.open(picture).convert("RGB")
    wide = np.asarray(whole.crop((0, 64, 256, 192)))
    options = ModelOptions(task="detection", top_k=40, threshold=0.3, fit="letterbox")
    page = ProgressPage.create()
    found = []
    # The same pixels reach the model: once bordered by the model's input, once by the picture itself.
    bordered = np.full((256, 256, 3), 114, np.uint8)
    bordered[64:192] = wide
    for pixels in (wide, bordered):
        model = build(find_runtime(), ModelFile(str(path), "traffic", "v1"), options, None, root=Path("/nowhere"))
        found.append(model.run(Sample(pixels, 1), Reporter(page, Track.INFERENCE), StageLatencies()).scores)
        model.close()
    page.close()
    inside, outside = ([flat(score) for score in scores] for scores in found)
    assert inside
    assert len(inside) == len(outside)
    for ours, theirs in zip(inside, outside, strict=True):
        assert ours[:2] == theirs[:2]
        assert ours[2::2] == pytest.approx(theirs[2::2], abs=1e-5)
        assert ours[3::2] == pytest.approx([min(1, max(0, (side - 0.25) * 2)) for side in theirs[3::2]], abs=1e-5)
