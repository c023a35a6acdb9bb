"""Runs a model on samples and keeps what it puts out: `python -m edge_agent.publisher.golden_run`.

It reads a `Question` from its standard input, and prints an `Answer` as JSON.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.child import die_with_parent
from edge_agent.inference.evaluation import evaluate
from edge_agent.inference.golden import MAX_SAMPLES, MAX_SIZE, Golden, GoldenError, read_golden, write_golden
from edge_agent.inference.interpreter.inputs import InputMismatch, resize_image
from edge_agent.inference.interpreter.model import Examination, LoadedModel, build
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.tasks.base import OutputMismatch
from edge_agent.publisher.golden import Answer, Examined, Question, Range
from edge_agent.records import ModelFile, Terms
from edge_agent.sources.base import Source, SourceEnded, SourceError
from edge_agent.sources.images import SUFFIXES, Images
from edge_agent.sources.recording import Recording

Array = npt.NDArray[Any]

_ZIP = b"PK\x03\x04"
_RESIZE = "bilinear"
# A file with a thousand labels that are all wrong is one mistake.
_SHOWN = 5


class _Useless(ValueError):
    """The samples, or the model, cannot be used. The message goes on behind the name of the samples."""


class Samples(msgspec.Struct):
    """Samples as they were read. `left_out` are the reasons for which others were not, and how often each came."""

    data: list[Any]
    labels: list[str]
    left_out: dict[str, int]


def main() -> None:
    """Answer the question on the standard input."""
    die_with_parent()
    question = msgspec.json.decode(sys.stdin.buffer.read(), type=Question)
    try:
        answer = Answer(_examined(question))
    except (_Useless, GoldenError) as error:
        answer = Answer(problem=str(error))
    except (InputMismatch, OutputMismatch, RuntimeError) as error:
        answer = Answer(problem=f"the model cannot work on them: {' '.join(str(error).split())[:300]}")
    except SourceError as error:
        answer = Answer(problem=str(error))
    except OSError as error:
        where = "" if error.filename == question.source else f"{error.filename}: "
        answer = Answer(problem=f"{where}{error.strerror}")
    sys.stdout.write(msgspec.json.encode(answer).decode())


def _examined(question: Question) -> Examined:
    source = Path(question.source)
    if not source.is_dir() and _is_zip(source):
        return _compared(question, read_golden(source))
    try:
        model = _load(question)
    except ModelRefused as refused:
        rather = ". Give the model for the CPU (--twin), or golden samples with their outputs (.npz)"
        raise _Useless(
            f"the model cannot be run on them here: {refused}{rather if question.compiled else ''}"
        ) from refused
    try:
        return _recorded(question, _read(question, model), model)
    finally:
        model.close()


def _is_zip(source: Path) -> bool:
    with source.open("rb") as file:
        return file.read(len(_ZIP)) == _ZIP


def _load(question: Question) -> LoadedModel:
    file = ModelFile(question.model, "golden", "", question.labels)
    return build(find_runtime(), file, ModelOptions(task=question.task, resize=_RESIZE), None)


def _compared(question: Question, golden: Golden) -> Examined:
    """Take golden samples that have outputs already, which may be those of another machine."""
    write_golden(question.output, golden)
    labels = list(golden.labels) or [""] * len(golden)
    try:
        model = _load(question)
    except ModelRefused as refused:
        return Examined(samples=len(golden), labelled=sum(map(bool, labels)), not_run=str(refused))
    try:
        limits = question.acceptance
        terms = Terms(tolerance=limits.tolerance, min_agreement=limits.min_agreement)
        refusal = evaluate(model, golden, terms).refusal(terms)
        found = [model.examine(data) for data in golden.input]
        summary = _summary(question, model, Samples(list(golden.input), labels, {}), found)
        return msgspec.structs.replace(summary, refusal=refusal or summary.refusal)
    finally:
        model.close()


def _recorded(question: Question, samples: Samples, model: LoadedModel) -> Examined:
    found = [model.examine(data) for data in samples.data]
    outputs = tuple(np.stack(rows) for rows in zip(*(each.outputs for each in found), strict=True))
    golden = Golden(np.stack(samples.data), outputs, tuple(samples.labels) if any(samples.labels) else ())
    write_golden(question.output, golden)
    return _summary(question, model, samples, found)


def _read(question: Question, model: LoadedModel) -> Samples:
    source = Path(question.source)
    samples = Samples([], [], {})
    if source.is_dir() or source.suffix.lower() in SUFFIXES:
        _read_pictures(source, model, samples)
    else:
        for data in _rows(Recording(Recording.Options(path=source)), samples):
            _add(samples, data, "")
    if not samples.data:
        raise _Useless("there is no sample in it that can be used")
    if question.labels_file is not None:
        samples.labels = _labels(Path(question.labels_file), samples)
    return samples


def _read_pictures(source: Path, model: LoadedModel, samples: Samples) -> None:
    """Read a picture, or those of a folder and of the folders in it, whose names are the labels."""
    if not model.input.takes_images:
        raise _Useless(f"are pictures, and the model takes {model.input}")
    _, height, width, _ = model.input.shape
    inside = source.iterdir() if source.is_dir() else ()
    for each in [source, *sorted(path for path in inside if path.is_dir() and not path.name.startswith("."))]:
        label = "" if each == source else each.name
        for picture in _rows(Images(Images.Options(path=each, watch=False)), samples):
            # As the model gets it, so that no setting of a device about sizes matters.
            _add(samples, resize_image(picture, width, height, grey=False, way=_RESIZE), label)


def _rows(source: Source, samples: Samples) -> Iterator[Array]:
    source.open(None)
    try:
        while True:
            sample = source.read(1.0)
            if sample is not None:
                yield sample.data
    except SourceEnded:
        for problem, count in source.problems.items():
            samples.left_out[problem] = samples.left_out.get(problem, 0) + count
    finally:
        source.close()


def _add(samples: Samples, data: Array, label: str) -> None:
    if len(samples.data) == MAX_SAMPLES or (len(samples.data) + 1) * data.nbytes > MAX_SIZE:
        raise _Useless(
            f"has too many samples: {MAX_SAMPLES} are allowed, and {MAX_SIZE >> 20} MiB. Choose those that matter; a "
            "device runs them all before it takes the model"
        )
    # NumPy gives pictures out of Pillow as read-only views.
    samples.data.append(np.array(data))
    samples.labels.append(label)


def _labels(file: Path, samples: Samples) -> list[str]:
    if samples.left_out:
        first = next(iter(samples.left_out))
        raise _Useless(f"not all of them can be read, so the lines of {file} do not belong to them: {first}")
    if any(samples.labels):
        raise _Useless(f"has labels already, the names of its folders, and {file} gives others")
    lines = [line.strip() for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines()]
    if len(lines) != len(samples.data):
        raise _Useless(f"has {len(samples.data)} samples, and {file} has {len(lines)} labels")
    return lines


def _summary(question: Question, model: LoadedModel, samples: Samples, found: Sequence[Examination]) -> Examined:
    predictions = [str(each.answer.prediction or "nothing") for each in found]
    labelled = [(label, said) for label, said in zip(samples.labels, predictions, strict=True) if label]
    right = sum(label == said for label, said in labelled)
    clipped = [each.prepared.clipped for each in found]
    unknown = sorted({label for label, _ in labelled}.difference(question.labels or ())) if question.labels else []
    return Examined(
        samples=len(found),
        labelled=len(labelled),
        right=right,
        clipped=float(np.mean(clipped)),
        clipped_samples=sum(map(bool, clipped)),
        calibrated=_calibrated(model),
        values=_values(samples.data),
        predictions=dict(Counter(predictions).most_common(_SHOWN)) if question.task != "raw" else {},
        saturated=sum(_is_saturated(question.task, model, each) for each in found),
        unknown_labels=unknown[:_SHOWN],
        left_out=samples.left_out,
        refusal=_too_inaccurate(question, right, len(labelled)),
    )


def _too_inaccurate(question: Question, right: int, labelled: int) -> str:
    least = question.acceptance.min_accuracy
    if least is None or not labelled or right / labelled >= least:
        return ""
    return f"{right} of {labelled} golden samples are told right, and --min-accuracy is {least:g}"


def _calibrated(model: LoadedModel) -> Range | None:
    """Return the real numbers that the input can hold, None where that is any."""
    tensor = model.input.tensor
    if not tensor.quantized:
        return None
    limits = np.iinfo(tensor.dtype)
    low, high = (float(tensor.real(np.array(each))) for each in (limits.min, limits.max))
    return Range(low, high)


def _values(data: Sequence[Array]) -> Range | None:
    if data[0].dtype == np.uint8:
        return None
    values = np.concatenate([each.reshape(-1) for each in data])
    finite = values[np.isfinite(values)]
    return Range(float(finite.min()), float(finite.max())) if finite.size else None


def _is_saturated(task: str, model: LoadedModel, found: Examination) -> bool:
    """Say whether an output is at a limit of 8 bits and so does not tell any more how much it is, or which is best."""
    tensor = model.outputs[0]
    if not tensor.quantized or task not in {"classification", "regression", "anomaly"}:
        return False
    values, limits = tensor.raw(found.outputs[0]), np.iinfo(tensor.dtype)
    if task == "classification":
        return int(np.count_nonzero(values == limits.max)) > 1
    # Where the smallest one stands for zero, it is mostly meant.
    return bool((values == limits.max).any() or (tensor.zero_point != limits.min and (values == limits.min).any()))


if __name__ == "__main__":
    main()
