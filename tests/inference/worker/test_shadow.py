"""A shadow in its worker: on which samples it runs, and when it says the same as the model in use."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import Opinion
from edge_agent.inference.protocol import Load
from edge_agent.inference.tasks.base import Answer
from edge_agent.inference.worker.shadow import Alike, Shadow
from edge_agent.latency import Histogram
from edge_agent.records import ModelFile, Result, Sample, Score, Tensor, Terms

MODEL = ModelFile("m.tflite", "m", "v2")


def shadow(share: float = 1.0, says: Any = None) -> Shadow:
    class Says:
        def ask(self, _: Sample) -> Opinion:
            if isinstance(says, Exception):
                raise says
            return Opinion(says, 0.25, 2_000_000)

    model: Any = Says()
    return Shadow(model, Load(1, MODEL, terms=Terms(), role="shadow", share=share))


def classified(label: str) -> dict[str, Any]:
    return {"scores": [Score(label, 0.9, 0)]}


def measured(*values: float) -> dict[str, Any]:
    return {"scores": [Score(f"value {at}", value, at) for at, value in enumerate(values)], "value": values[0]}


def raw(*values: list[float]) -> dict[str, Any]:
    return {"scores": [], "outputs": [Tensor(f"t{at}", [len(each)], each) for at, each in enumerate(values)]}


def result(says: dict[str, Any]) -> Result:
    return Result(captured_ns=1, inference_ns=1, clipped=0.0, **says)


def agree(ours: dict[str, Any], theirs: dict[str, Any], *, after: list[dict[str, Any]], tolerance: float = 0.1) -> bool:
    alike = Alike(tolerance)
    for each in after:
        alike(result(each), Answer(**each))
    return alike(result(ours), Answer(**theirs))


@given(share=st.floats(0.001, 1.0), count=st.integers(1, 2000))
def test_it_runs_on_its_share_of_the_samples_evenly(share: float, count: int) -> None:
    taken = shadow(share)
    due = [at for at in range(1, count + 1) if taken.is_due()]
    assert abs(len(due) - share * count) <= 1
    apart = np.diff(due)
    assert set(apart.tolist()) <= {int(1 / share), int(1 / share) + 1}


def test_a_share_of_one_is_every_sample() -> None:
    taken = shadow(1.0)
    assert all(taken.is_due() for _ in range(1000))


def test_it_counts_what_it_comes_to() -> None:
    sample = Sample(np.zeros(1, np.float32), 1)
    for says, agreed, failed, clipped in (
        (Answer(**classified("a")), 1, 0, 1),
        (Answer(**classified("b")), 0, 0, 1),
        (InputMismatch("no"), 0, 1, 0),
    ):
        taken = shadow(says=says)
        taken.run(sample, result(classified("a")))
        tally = taken.take()
        assert tally is not None
        assert (tally.samples, tally.agreed, tally.failed, tally.clipped) == (1, agreed, failed, clipped)
        assert (tally.invoke_ns, Histogram().merge(tally.invoke).count) == (2_000_000 * (1 - failed), 1 - failed)
        assert taken.take() is None


def test_an_error_of_the_runtime_is_for_who_runs_it() -> None:
    with pytest.raises(RuntimeError):
        shadow(says=RuntimeError("gone")).run(Sample(np.zeros(1, np.float32), 1), result(classified("a")))


@pytest.mark.parametrize(
    ("ours", "theirs", "alike"),
    [
        (classified("a"), classified("a"), True),
        (classified("a"), classified("b"), False),
        (classified("a"), {"scores": []}, False),
        ({"scores": []}, classified("a"), False),
        ({"scores": []}, {"scores": []}, True),
        (measured(5.0) | {"verdict": "high"}, measured(50.0) | {"verdict": "high"}, True),
        (measured(5.0) | {"verdict": "high"}, measured(5.0) | {"verdict": "normal"}, False),
        (measured(5.0), measured(5.0, 6.0), False),
        (raw([1.0, 2.0]), raw([1.0], [2.0]), False),
    ],
)
def test_predictions_count_where_there_are_any(ours: dict[str, Any], theirs: dict[str, Any], *, alike: bool) -> None:
    assert agree(ours, theirs, after=[]) is alike


@pytest.mark.parametrize("make", [measured, lambda value: raw([value, 0.0])])
def test_numbers_may_differ_by_a_share_of_their_span(make: Any) -> None:
    history = [make(0.0), make(20.0)]
    assert agree(make(10.0), make(11.9), after=history)
    assert not agree(make(10.0), make(12.1), after=history)
    # The span is that of the model in use.
    assert not agree(make(10.0), make(200.0), after=history)


def test_each_value_has_a_span_of_its_own() -> None:
    history = [measured(0.0, 0.0), measured(100.0, 1.0)]
    assert agree(measured(50.0, 0.5), measured(59.0, 0.59), after=history)
    assert not agree(measured(50.0, 0.5), measured(50.0, 0.7), after=history)


def test_what_has_always_been_the_same_is_measured_by_its_size() -> None:
    assert agree(measured(10.0), measured(10.9), after=[measured(10.0)])
    assert not agree(measured(10.0), measured(11.1), after=[measured(10.0)])
    assert agree(measured(0.0), measured(0.0), after=[])
