"""Models with a memory: which output belongs to which input, and what becomes of the state."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import LoadedModel, build
from edge_agent.inference.interpreter.recurrent import State, find_roles
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.records import ModelFile, Sample
from tests.inference.synthetic import Builder, Spec, counter


def tensors(*specs: Any) -> list[TensorInfo]:
    """Tensors of a name, or of a name and a shape."""
    named = [spec if isinstance(spec, tuple) else (spec, (1, 8)) for spec in specs]
    return [TensorInfo(at, name, shape, np.dtype(np.float32)) for at, (name, shape) in enumerate(named)]


def pairs(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> tuple[str, dict[str, str], list[str]]:
    """The input for data, the state outputs by their input, and the other outputs."""
    roles = find_roles(inputs, outputs)
    states = {pair.input.name: pair.output.name for pair in roles.states}
    return roles.data.name, states, [output.name for output in roles.outputs]


@pytest.mark.parametrize(
    ("inputs", "outputs", "states"),
    [
        (["x", "init_h", "init_c"], ["c", "y", "h"], {"init_h": "h", "init_c": "c"}),
        (["in/h_prev", "x"], ["out/h_next", "y"], {"in/h_prev": "out/h_next"}),
        (["stateIn", "x"], ["y", "stateOut"], {"stateIn": "stateOut"}),
        (["x", "state_in_1", "state_in_2"], ["state_out_2", "state_out_1", "y"], None),
        (["serving_default_hidden:0", "x"], ["y", "hidden"], {"serving_default_hidden:0": "hidden"}),
    ],
)
def test_names_tell_which_output_belongs_to_which_input(inputs: Any, outputs: Any, states: Any) -> None:
    found = pairs(tensors(*inputs), tensors(*outputs))
    expected = states or {"state_in_1": "state_out_1", "state_in_2": "state_out_2"}
    assert found == ("x", expected, ["y"])


def test_where_names_say_nothing_shapes_tell() -> None:
    found = pairs(tensors("args_0", ("args_1", (1, 4))), tensors(("Identity", (1, 3)), ("Identity_1", (1, 4))))
    assert found == ("args_0", {"args_1": "Identity_1"}, ["Identity"])


def test_names_count_more_than_shapes() -> None:
    # By its shape alone y would be the next x.
    found = pairs(tensors("x", ("h", (1, 4))), tensors(("h_out", (1, 4)), "y"))
    assert found == ("x", {"h": "h_out"}, ["y"])


def test_a_name_of_the_signature_or_the_metadata_counts_like_the_tensors_own() -> None:
    inputs = [*tensors("args_0"), TensorInfo(5, "args_1", (1, 8), np.dtype(np.float32), also=("previous_memory",))]
    outputs = [*tensors("Identity"), TensorInfo(6, "next_memory", (1, 8), np.dtype(np.float32))]
    assert pairs(inputs, outputs) == ("args_0", {"args_1": "next_memory"}, ["Identity"])


def test_a_single_input_takes_the_sample_whatever_its_name() -> None:
    assert pairs(tensors("state"), tensors("state_out")) == ("state", {}, ["state_out"])


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ([], ["y"], "the model has no input"),
        (["left", "right"], ["y"], "'left' (float32 of shape 1x8), 'right' (float32 of shape 1x8) all take data"),
        (
            ["x", "state_a"],
            ["Identity", "Identity_1"],
            "'x' (float32 of shape 1x8), 'state_a' (float32 of shape 1x8) rem",
        ),
        (["a_in", "b_in"], ["a_out", "b_out"], "2 inputs that all look like its state"),
    ],
)
def test_what_is_unclear_is_refused_by_name(inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(InputMismatch) as caught:
        find_roles(tensors(*inputs), tensors(*outputs))
    assert message in str(caught.value)


def test_a_state_that_cannot_be_kept_is_refused() -> None:
    inputs = [*tensors("x"), TensorInfo(1, "h_in", (1, 2), np.dtype(np.int64))]
    roles = find_roles(inputs, [TensorInfo(2, "h_out", (1, 2), np.dtype(np.int64))])
    with pytest.raises(InputMismatch, match="the model's state 'h_in' cannot be kept: it is int64 with scale 0"):
        State(roles.states)


def built(model: Builder, folder: Path, last: Sample | None = None) -> LoadedModel:
    path = folder / "model.tflite"
    path.write_bytes(model.bytes())
    options = ModelOptions(task="raw")
    return build(find_runtime(), ModelFile(str(path), "m", "v1"), options, last, root=Path("/nowhere"))


def run(model: LoadedModel, value: float) -> list[float]:
    page = ProgressPage.create()
    try:
        result = model.run(Sample(np.full(4, value, np.float32), 1), Reporter(page, Track.INFERENCE), StageLatencies())
    finally:
        page.close()
    [answer] = result.outputs or []
    return answer.values


X = Spec("x", (1, 4))
FLOAT = (Spec("h_in", (1, 4)), Spec("h_out", (1, 4)))
# The zero points differ and are not zero, and so do the scales.
UINT8 = (Spec("h_in", (1, 4), "uint8", 0.5, 10), Spec("h_out", (1, 4), "uint8", 0.5, 10))
REQUANTIZED = (Spec("h_in", (1, 4), "int8", 0.5, -100), Spec("h_out", (1, 4), "uint8", 0.25, 7))
TO_FLOAT = (Spec("h_in", (1, 4)), Spec("h_out", (1, 4), "int8", 0.5, 3))


@pytest.mark.parametrize("state", [FLOAT, UINT8, REQUANTIZED, TO_FLOAT], ids=["float", "uint8", "other", "to_float"])
@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_a_state_goes_from_run_to_run_and_begins_at_real_zero(tmp_path: Path, state: Any, order: Any) -> None:
    model = built(counter(X, [state], order=order), tmp_path)
    assert [run(model, value)[0] for value in (1.0, 2.0, 0.5, 0.0)] == [1.0, 3.0, 3.5, 3.5]
    model.close()


def test_two_states_do_not_get_mixed_up(tmp_path: Path) -> None:
    states = [(Spec("a_in", (1, 4)), Spec("a_out", (1, 4))), (Spec("b_in", (1, 4)), Spec("b_out", (1, 4)))]
    model = counter(X, states, order=[2, 0, 1])
    # The second state counts in its own way, so that an exchange would be seen.
    model.graph.outputs = [model.graph.outputs[0], model.graph.outputs[2], model.graph.outputs[1]]
    loaded = built(model, tmp_path)
    assert [run(loaded, value)[0] for value in (1.0, 2.0, 4.0)] == [1.0, 3.0, 7.0]
    loaded.close()


def test_the_warm_up_leaves_no_trace_and_a_reset_forgets(tmp_path: Path) -> None:
    model = built(counter(X, [UINT8]), tmp_path, last=Sample(np.full(4, 5.0, np.float32), 1))
    assert [run(model, 1.0)[0], run(model, 1.0)[0]] == [1.0, 2.0]
    model.reset_state()
    assert run(model, 1.0)[0] == 1.0
    model.close()


def test_a_state_that_is_no_number_any_more_does_not_spoil_what_follows(tmp_path: Path) -> None:
    model = built(counter(X, [FLOAT]), tmp_path)
    assert run(model, 1.0)[0] == 1.0
    with pytest.raises(OutputMismatch, match="begins anew"):
        run(model, np.inf)
    assert run(model, 1.0)[0] == 1.0
    model.close()
