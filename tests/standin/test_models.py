from pathlib import Path

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter

from tests.standin import models

DEMO_MODEL = Path(__file__).parents[2] / "edge_agent" / "demo" / "vibration_classifier.tflite"


def test_inputs_and_outputs_are_those_of_the_cpu_model() -> None:
    cpu_model = DEMO_MODEL.read_bytes()
    ours = Interpreter(model_content=models.edgetpu_model(cpu_model))
    theirs = Interpreter(model_content=cpu_model)

    for mine, its in (
        (ours.get_input_details()[0], theirs.get_input_details()[0]),
        (ours.get_output_details()[0], theirs.get_output_details()[0]),
    ):
        assert mine["name"] == its["name"]
        assert mine["dtype"] is its["dtype"]
        assert mine["quantization"] == its["quantization"]
        np.testing.assert_array_equal(mine["shape"], its["shape"])


def test_it_is_small_and_names_the_custom_operation() -> None:
    model = models.edgetpu_model(DEMO_MODEL.read_bytes())

    assert len(model) < 1024
    assert model[4:8] == b"TFL3"
    assert b"edgetpu-custom-op" in model


def test_it_does_not_run_without_the_driver() -> None:
    interpreter = Interpreter(model_content=models.edgetpu_model(DEMO_MODEL.read_bytes()))

    with pytest.raises(RuntimeError, match="unresolved custom op: edgetpu-custom-op"):
        interpreter.allocate_tensors()
