"""Google's own ImageNet classifiers, through the source `images` and the whole worker, against what is known of them.

The models, the picture and what the models say of it are those of `shared/models/README.md`.
"""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from PIL import Image

from edge_agent.inference.labels import read_labels
from edge_agent.records import ModelFile, Score
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


def classify(model: Path, picture: Path, labels: list[str], *, resize: str) -> list[Score]:
    """What the worker says of the picture."""

    async def scenario() -> list[Score]:
        source = settings("images", path=str(picture), rate=0.0, repeat=False, watch=False)
        configure = with_model(source, labels=labels, resize=resize, top_k=1001)
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
