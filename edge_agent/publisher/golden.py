"""Golden samples of a release: what they are made of, and what the model's publisher should know of them.

They are run in a process of their own, `edge_agent.publisher.golden_run`, as a model can crash the runtime; this side
imports neither NumPy nor a runtime.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import child_environment
from edge_agent.models.release.manifest import Acceptance
from edge_agent.publisher.errors import ReleaseError

MODULE = "edge_agent.publisher.golden_run"
DEADLINE = 900.0
# A value in a hundred beyond the range is what a spike in the data gives.
_MUCH = 0.01
# Less than 13 of the 256 steps of an 8-bit number.
_LITTLE = 0.05
_CONVERT = "convert it again with a representative data set of samples like these"


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be run. `model` is that for the Edge TPU (`compiled`) only where there is none for the CPU.

    `source` is a file of samples, a folder of pictures or a file of golden samples; `labels_file` has a line for each
    sample. `labels` and `task` are the model's. The golden samples are written to `output`.
    """

    model: str
    source: str
    output: str
    task: str
    compiled: bool = False
    labels_file: str | None = None
    labels: list[str] | None = None
    acceptance: Acceptance = Acceptance()


class Range(msgspec.Struct, frozen=True):
    """The smallest and the largest of some real numbers."""

    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.low:.4g} to {self.high:.4g}"


class Examined(msgspec.Struct, frozen=True, kw_only=True):
    """What the golden samples came to.

    `labelled` have a label, and `right` of these were told right. `clipped` is the share (0 to 1) of input values
    outside the model's range, `clipped_samples` how many samples had any. `calibrated` is that range, None for
    floating-point numbers, and `values` that of the samples, None for pictures. `predictions` counts the samples by
    what the model said of them. `saturated` is how many samples drove an output, or several classes, to the limit.
    `unknown_labels` are none of the model's, `left_out` are samples that could not be read. `refusal` is why devices
    would refuse the model, `not_run` why the samples were taken as they are, or empty.
    """

    samples: int
    labelled: int = 0
    right: int = 0
    clipped: float = 0.0
    clipped_samples: int = 0
    calibrated: Range | None = None
    values: Range | None = None
    predictions: dict[str, int] = {}
    saturated: int = 0
    unknown_labels: list[str] = []
    left_out: dict[str, int] = {}
    refusal: str = ""
    not_run: str = ""

    @property
    def accuracy(self) -> float | None:
        """The share of labelled samples, 0 to 1, that were told right."""
        return self.right / self.labelled if self.labelled else None

    def __str__(self) -> str:
        if self.not_run:
            return f"golden samples: {self.samples}, taken as they are"
        accuracy = f", {self.right} of {self.labelled} told right" if self.labelled else ""
        return f"golden samples: {self.samples}{accuracy}, {_percent(self.clipped)} of the values out of range"


class Answer(msgspec.Struct, frozen=True):
    """What the other process says: `examined`, or a `problem` that goes on behind the name of the samples."""

    examined: Examined | None = None
    problem: str = ""


async def examine(question: Question) -> Examined:
    """Run the model on the samples, and write them with its outputs. Raises ReleaseError."""
    encoded = msgspec.json.encode(question)
    try:
        answer = await ask(Answer, MODULE, question=encoded, environment=child_environment(), timeout=DEADLINE)
    except NoAnswerError as error:
        raise ReleaseError(f"{question.source}: the process that ran the model on them {error}") from error
    if answer.examined is None:
        raise ReleaseError(f"{question.source}: {answer.problem}")
    _check(question, answer.examined)
    return answer.examined


def _check(question: Question, examined: Examined) -> None:
    """See that there are devices that would take the release. Raises ReleaseError."""
    if examined.refusal:
        raise ReleaseError(f"{question.source}: every device would refuse this model: {examined.refusal}")
    if question.acceptance.min_accuracy is not None and not examined.labelled:
        raise ReleaseError(f"{question.source}: no sample has a label, so nothing is known of --min-accuracy")


def about_golden(source: Path, examined: Examined) -> Iterator[str]:
    """Say what is odd about the samples, or about the model that was run on them."""
    for problem, count in examined.left_out.items():
        yield f"{source}: {count} left out: {problem}" if count > 1 else f"{source}: left out: {problem}"
    if examined.not_run:
        yield f"{source}: nobody has compared these outputs with the model's: {examined.not_run}"
        return
    yield from _about_range(examined)
    if examined.samples > 1 and len(examined.predictions) == 1:
        only = next(iter(examined.predictions))
        yield (
            f"the model says {only!r} of all {examined.samples} golden samples: take samples of all that it is to tell "
            "apart, or look at its calibration"
        )
    if examined.saturated:
        yield (
            f"{examined.saturated} of {examined.samples} golden samples drive the output to its limit, where the model "
            "cannot tell more from less: calibrate it with samples like these"
        )
    if examined.unknown_labels:
        yield f"labels of golden samples that the model does not know: {', '.join(examined.unknown_labels)}"


def _about_range(examined: Examined) -> Iterator[str]:
    calibrated, values = examined.calibrated, examined.values
    if calibrated is None or values is None:
        return
    if examined.clipped >= _MUCH:
        yield (
            f"{_percent(examined.clipped)} of the values of the golden samples are clipped, in "
            f"{examined.clipped_samples} of {examined.samples} samples: the model was calibrated for {calibrated}, the "
            f"samples have {values}. What is clipped the model does not see; {_CONVERT}"
        )
    elif 0 <= values.high - values.low < _LITTLE * (calibrated.high - calibrated.low):
        yield (
            f"the golden samples have values of {values} only, and the model was calibrated for {calibrated}: that "
            f"leaves few of the 256 steps of 8 bits; {_CONVERT}"
        )


def _percent(share: float) -> str:
    return "0 %" if share == 0 else f"{share * 100:.2g} %" if share < 1 else "100 %"
