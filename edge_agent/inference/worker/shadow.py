"""A model that runs beside the one in use, on a share of the samples, so that both can be compared.

It runs on the thread of the model in use, after that one's results were handed over: the next sample waits for one
invoke of the shadow, and nothing else does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from edge_agent.inference.interpreter.inputs import InputMismatch
from edge_agent.inference.interpreter.model import LoadedModel
from edge_agent.inference.protocol import Load, ShadowTally
from edge_agent.inference.tasks.base import Answer, OutputMismatch
from edge_agent.latency import Histogram
from edge_agent.records import Result, Sample

Array = npt.NDArray[Any]


class Shadow:
    """One model in that role. Belongs to the thread that runs the model in use."""

    def __init__(self, model: LoadedModel, load: Load) -> None:
        self.model = model
        self.request = load.request
        self._share = load.share
        self._due = 0.0
        self._alike = Alike(load.terms.tolerance)
        self._invoke = Histogram()
        self._invoke_ns = self._samples = self._agreed = self._failed = self._clipped = 0

    def is_due(self) -> bool:
        """Count a sample of the model in use; tells whether the shadow takes it, too. Shares come evenly."""
        self._due += self._share
        if self._due < 1.0:
            return False
        self._due -= 1.0
        return True

    def run(self, sample: Sample, result: Result) -> None:
        """Ask the model of a sample, and compare. Raises the runtime's RuntimeError."""
        self._samples += 1
        try:
            opinion = self.model.ask(sample)
        except (InputMismatch, OutputMismatch):
            self._failed += 1
            return
        self._agreed += self._alike(result, opinion.answer)
        self._clipped += opinion.clipped > 0
        self._invoke_ns += opinion.invoke_ns
        self._invoke.add(opinion.invoke_ns)

    def take(self) -> ShadowTally | None:
        """Return what has come together since the last call, or None for nothing."""
        if not self._samples:
            return None
        tally = ShadowTally(
            self.request,
            self._samples,
            self._agreed,
            self._failed,
            self._clipped,
            self._invoke_ns,
            self._invoke.take(),
        )
        self._invoke_ns = self._samples = self._agreed = self._failed = self._clipped = 0
        return tally


class Alike:
    """Tells whether two models say the same of a sample.

    They do if their predictions are the same. Where neither has one, each number may be up to `tolerance` from that of
    the model in use, as a share of the span that this number has had there so far.
    """

    def __init__(self, tolerance: float) -> None:
        self._tolerance = tolerance
        self._spans: list[tuple[float, float]] = []

    def __call__(self, result: Result, answer: Answer) -> bool:
        """Compare what the model in use has said with what the other says."""
        ours, theirs = result.prediction, answer.prediction
        if ours is not UNSET or theirs is not UNSET:
            return ours == theirs
        numbers, others = _numbers(result), _numbers(answer)
        self._widen(numbers)
        if [each.size for each in numbers] != [each.size for each in others]:
            return False
        return all(map(self._is_close, numbers, others, self._spans))

    def _widen(self, numbers: Sequence[Array]) -> None:
        if len(self._spans) != len(numbers):
            self._spans = [(np.inf, -np.inf)] * len(numbers)
        self._spans = [
            (min(low, float(each.min())), max(high, float(each.max())))
            for each, (low, high) in zip(numbers, self._spans, strict=True)
        ]

    def _is_close(self, ours: Array, theirs: Array, span: tuple[float, float]) -> bool:
        low, high = span
        # Where it has always been the same, there is no span to take a share of.
        allowed = self._tolerance * ((high - low) or max(abs(low), abs(high)))
        return bool((np.abs(ours - theirs) <= allowed).all())


def _numbers(said: Result | Answer) -> list[Array]:
    """Return the numbers that have a span of their own: each tensor of the task raw, each value of a regression."""
    if said.outputs is not None:
        return [np.array(tensor.values) for tensor in said.outputs if tensor.values]
    return [np.array([score.score]) for score in said.scores]
