"""What golden samples say of a model: whether it puts out what is expected of it, and how fast.

Outputs are compared number by number. What a detector finds is compared object by object instead: near-equal scores
may change places with a rounding error, and the rows behind the last object hold anything.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.golden import Golden, GoldenError
from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import Examination, LoadedModel
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.inference.tasks.detection import Detection
from edge_agent.inference.tasks.objects import compare_objects
from edge_agent.records import Terms

Array = npt.NDArray[Any]

# Of two runtimes that both round right, one may be a step above the exact value and the other a step below.
_STEPS = 2
# Share of an output's largest number by which float32 arithmetic may differ between machines.
_ROUNDING = 1e-5
# What the machine does besides is no fault of the model: the best of so many turns counts.
_TURNS = 3
_P95 = 0.95


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """What golden samples came to.

    `labelled` samples have a label, and `right` of these were given it as their prediction. `latency_ms` is the 95th
    percentile of invoke, None if no output could be read. `clipped` is the share of input values outside the model's
    range. `worst` says in words which sample differs most from what is expected, and is empty where all agree.
    """

    samples: int
    agreed: int
    labelled: int
    right: int
    latency_ms: float | None
    clipped: float
    worst: str

    @property
    def agreement(self) -> float:
        """The share of samples, 0 to 1, that agree."""
        return self.agreed / self.samples

    @property
    def accuracy(self) -> float | None:
        """The share of labelled samples, 0 to 1, that were told right."""
        return self.right / self.labelled if self.labelled else None

    def refusal(self, terms: Terms) -> str:
        """Say in one line on which terms the model is not taken; empty if it is."""
        reasons = []
        if self.agreed < (must := _at_least(terms.min_agreement, self.samples)):
            reasons.append(f"{self.agreed} of {self.samples} agree, {must} must; {self.worst}")
        if terms.min_accuracy is not None and not self.labelled:
            reasons.append(f"none has a label, and the accuracy must be {terms.min_accuracy:g}")
        elif terms.min_accuracy is not None and self.right < (must := _at_least(terms.min_accuracy, self.labelled)):
            reasons.append(f"{self.right} of {self.labelled} are told right, {must} must")
        if _is_slow(self.latency_ms, terms):
            reasons.append(f"one in 20 takes {self.latency_ms:.3g} ms or more, {terms.max_latency_ms:g} ms are allowed")
        return f"golden samples: {'; '.join(reasons)}" if reasons else ""


def evaluate(
    model: LoadedModel, golden: Golden, terms: Terms, *, on_sample: Callable[[], object] = lambda: None
) -> Figures:
    """Run the model on the samples, each as the first of a series. `on_sample` is called before each.

    Raises GoldenError for samples that are not for this model, and the runtime's RuntimeError.
    """
    _check_fit(model, golden)
    on_sample()
    _examine(model, golden.input[0])  # the first invoke after another model's is slower
    comparison = _Comparison(model, golden, terms.tolerance)
    latencies = [_turn(model, golden, on_sample, comparison.add)]
    while _is_slow(latencies[-1], terms) and len(latencies) < _TURNS:
        latencies.append(_turn(model, golden, on_sample))
    return comparison.figures(min((each for each in latencies if each is not None), default=None))


def record(model: LoadedModel, samples: Array, labels: Sequence[str] = ()) -> Golden:
    """Return golden samples that hold what the model puts out now. Raises as `evaluate`, and OutputMismatch."""
    found = [model.examine(data) for data in samples]
    outputs = tuple(np.stack(rows) for rows in zip(*(each.outputs for each in found), strict=True))
    return Golden(samples, outputs, tuple(labels))


def _check_fit(model: LoadedModel, golden: Golden) -> None:
    row = golden.input[0]
    if row.dtype != np.uint8 and row.size != model.input.tensor.size:
        raise GoldenError(f"each has {row.size} values, the model takes {model.input.tensor.size} ({model.input})")
    if len(golden.outputs) != len(model.outputs):
        raise GoldenError(f"they have {len(golden.outputs)} outputs, the model has {len(model.outputs)}")
    for at, (expected, tensor) in enumerate(zip(golden.outputs, model.outputs, strict=True)):
        if expected[0].size != tensor.size:
            raise GoldenError(f"output {at} has {expected[0].size} values, that of the model {tensor.size} ({tensor})")


def _examine(model: LoadedModel, data: Array) -> Examination | OutputMismatch:
    try:
        return model.examine(data)
    except InputMismatch as error:
        raise GoldenError(str(error)) from error
    except OutputMismatch as error:
        return error


def _turn(
    model: LoadedModel,
    golden: Golden,
    on_sample: Callable[[], object],
    add: "Callable[[int, Examination | OutputMismatch], object]" = lambda *_: None,
) -> float | None:
    """Run all samples; returns the time in ms that 95 % of the invokes do not exceed, None if no output was read."""
    times = []
    for at in range(len(golden)):
        on_sample()
        found = _examine(model, golden.input[at])
        add(at, found)
        if not isinstance(found, OutputMismatch):
            times.append(found.invoke_ns)
    return sorted(times)[math.ceil(_P95 * len(times)) - 1] / 1e6 if times else None


def _is_slow(latency_ms: float | None, terms: Terms) -> bool:
    return latency_ms is not None and terms.max_latency_ms is not None and latency_ms > terms.max_latency_ms


def _at_least(share: float, count: int) -> int:
    # 0.9 of 10 must not be 10 for the last digit of a float.
    return math.ceil(share * count - 1e-9)


class _Comparison:
    """Takes what a model made of each sample."""

    def __init__(self, model: LoadedModel, golden: Golden, tolerance: float) -> None:
        self._model = model
        self._golden = golden
        self._tolerance = tolerance
        self._allowed = [
            _allowed(expected, tensor, tolerance)
            for expected, tensor in zip(golden.outputs, model.outputs, strict=True)
        ]
        self._agreed = self._labelled = self._right = 0
        self._clipped = 0.0
        self._worst, self._words = 0.0, ""

    def add(self, at: int, found: Examination | OutputMismatch) -> None:
        label = self._golden.labels[at] if self._golden.labels else ""
        self._labelled += bool(label)
        if isinstance(found, OutputMismatch):
            self._note(at, math.inf, str(found))
            return
        self._right += bool(label) and found.answer.prediction == label
        self._clipped += found.prepared.clipped
        size, words = self._difference(at, found)
        if size <= 1.0:
            self._agreed += 1
        else:
            self._note(at, size, words)

    def figures(self, latency_ms: float | None) -> Figures:
        count = len(self._golden)
        return Figures(
            samples=count,
            agreed=self._agreed,
            labelled=self._labelled,
            right=self._right,
            latency_ms=latency_ms,
            clipped=self._clipped / count,
            worst=self._words,
        )

    def _note(self, at: int, size: float, words: str) -> None:
        if not self._words or size > self._worst:
            self._worst, self._words = size, f"sample {at}: {words}"

    def _difference(self, at: int, found: Examination) -> tuple[float, str]:
        """Return how far the sample is from the expected, in tolerances, and where."""
        expected = [output[at] for output in self._golden.outputs]
        if isinstance(self._model.task, Detection):
            return self._difference_in_objects(expected, found)
        sizes = [
            _largest_difference(wanted, real) / allowed
            for wanted, real, allowed in zip(expected, found.outputs, self._allowed, strict=True)
        ]
        worst = max(range(len(sizes)), key=sizes.__getitem__)
        allowed = self._allowed[worst]
        if not math.isfinite(sizes[worst]):
            return math.inf, f"output {worst} is no number"
        far = sizes[worst] * allowed
        return sizes[worst], f"output {worst} is {far:.3g} from the expected (tolerance {allowed:.3g})"

    def _difference_in_objects(self, expected: Sequence[Array], found: Examination) -> tuple[float, str]:
        task = self._model.task
        assert isinstance(task, Detection)  # noqa: S101  asked before
        try:
            wanted = self._model.interpret(expected, found.prepared)
        except OutputMismatch as error:
            raise GoldenError(str(error)) from error
        words = compare_objects(
            wanted.scores, found.answer.scores, self._tolerance, threshold=task.threshold, most=task.top_k
        )
        return (math.inf, words) if words else (0.0, "")


def _allowed(expected: Array, tensor: TensorInfo, tolerance: float) -> float:
    largest = float(np.abs(expected).max())
    # Where all are the same, as for a single sample, there is no span to take a share of.
    span = float(expected.max()) - float(expected.min()) or largest
    steps = _STEPS * tensor.scale if tensor.quantized else 0.0
    return max(tolerance * span, steps) + _ROUNDING * largest or math.ulp(0.0)


def _largest_difference(expected: Array, real: Array) -> float:
    differences = np.abs(expected.reshape(-1).astype(np.float64) - real.reshape(-1))
    return float(differences.max()) if np.isfinite(differences).all() else math.inf
