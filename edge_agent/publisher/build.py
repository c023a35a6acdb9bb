"""Makes a release of model files: inspects them, and writes the folder that can be published as it is.

out/release.json                              the manifest, not signed yet
out/objects/3f1c8a2b94d07e15-model.tflite     each file under a name that no other content can have
"""

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edge_agent.durable import replace_file
from edge_agent.inference.checks.inspection import EDGETPU_OPERATOR, ModelFacts, NotInspectedError, inspect
from edge_agent.inference.interpreter.labels import LabelsError, read_labels
from edge_agent.models.manifest import FORMAT, MANIFEST, OBJECTS, Manifest, ObjectFile, unsigned
from edge_agent.models.stores import file_sha256

_UNSAFE = re.compile(r"[^0-9A-Za-z._-]")
_LONGEST_NAME = 180


class ReleaseError(Exception):
    """The release cannot be made, signed or published; the message says why, and where."""


class Ingredients(msgspec.Struct, frozen=True, kw_only=True):
    """What a release is made of. `twin` is the same model for the CPU, `labels` a labels file."""

    name: str
    version: str
    model: Path
    twin: Path | None = None
    labels: Path | None = None
    accuracy: float | None = None


class Built(msgspec.Struct, frozen=True):
    """The manifest that was written, and what its publisher should think about."""

    manifest: Manifest
    warnings: list[str]


async def build(ingredients: Ingredients, folder: Path, *, now_ms: int | None = None) -> Built:
    """Inspect everything, and write the release to `folder`. Raises ReleaseError, OSError."""
    model = await _inspected(ingredients.model)
    twin = await _inspected(ingredients.twin) if ingredients.twin is not None else None
    labels = _labels(ingredients.labels)
    if twin is not None:
        _check_twin(ingredients, model, twin)
    manifest = _manifest(ingredients, labels, now_ms or int(time.time() * 1000))
    _write(ingredients, manifest, folder)
    return Built(manifest, list(_warnings(model, twin, labels)))


async def _inspected(path: Path) -> ModelFacts:
    try:
        return await inspect(str(path))
    except NotInspectedError as error:
        raise ReleaseError(f"{path}: {error}") from error


def _labels(path: Path | None) -> list[str] | None:
    try:
        return None if path is None else read_labels(path)
    except LabelsError as error:
        raise ReleaseError(str(error)) from error


def _check_twin(ingredients: Ingredients, model: ModelFacts, twin: ModelFacts) -> None:
    if twin.compiled:
        raise ReleaseError(f"{ingredients.twin}: is compiled for the Edge TPU; the twin is the model before that")
    if not model.compiled:
        raise ReleaseError(f"{ingredients.model}: is not compiled for the Edge TPU, so it needs no twin")
    for what, ours, theirs in (("input", model.inputs, twin.inputs), ("output", model.outputs, twin.outputs)):
        if sorted(map(str, ours)) != sorted(map(str, theirs)):
            raise ReleaseError(
                f"{ingredients.twin}: is another model than {ingredients.model}: "
                f"its {what}s are {_listed(theirs)}, and not {_listed(ours)}"
            )


def _listed(tensors: Sequence[object]) -> str:
    return ", ".join(map(str, tensors))


def _manifest(ingredients: Ingredients, labels: list[str] | None, sequence: int) -> Manifest:
    given = {
        "format": FORMAT,
        "name": ingredients.name,
        "version": ingredients.version,
        "sequence": sequence,
        "model": _object(ingredients.model),
        "twin": _object(ingredients.twin),
        "labels": labels,
        "accuracy": ingredients.accuracy,
    }
    try:
        return msgspec.convert({key: value for key, value in given.items() if value is not None}, Manifest)
    except msgspec.ValidationError as error:
        raise ReleaseError(f"the release would not be a good one: {error}") from error


def _object(path: Path | None) -> ObjectFile | None:
    if path is None:
        return None
    digest = file_sha256(path)
    name = f"{digest[:16]}-{_UNSAFE.sub('_', path.name)[-_LONGEST_NAME:]}"
    return ObjectFile(name=name, size=path.stat().st_size, sha256=digest)


def _write(ingredients: Ingredients, manifest: Manifest, folder: Path) -> None:
    objects = folder / OBJECTS
    objects.mkdir(parents=True, exist_ok=True)
    for path, file in ((ingredients.model, manifest.model), (ingredients.twin, manifest.twin)):
        if path is not None and file is not None:
            shutil.copyfile(path, objects / file.name)
    replace_file(folder / MANIFEST, unsigned(manifest).encode())


def _warnings(model: ModelFacts, twin: ModelFacts | None, labels: list[str] | None) -> Iterator[str]:
    if model.compiled and twin is None:
        yield "there is no twin for the CPU (--twin): without an Edge TPU a device stands still"
    if model.compiled and (rest := {name: n for name, n in model.operators.items() if name != EDGETPU_OPERATOR}):
        names = ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(rest.items()))
        yield f"{sum(rest.values())} operators stay on the CPU: {names}"
    if not model.compiled:
        yield from _obstacles(model)
    if labels is not None and (classes := _classes(model)) is not None and len(labels) != classes:
        yield f"{len(labels)} labels, but the model has {classes} outputs; a classifier would be refused"


def _obstacles(model: ModelFacts) -> Iterator[str]:
    """Say what keeps the model from being compiled for the Edge TPU."""
    if any(length < 0 for tensor in model.inputs for length in tensor.shape):
        yield f"an input has no fixed shape ({model.inputs[0]}): the Edge TPU's compiler wants batch_shape=(1, …)"
    if any(tensor.type == "float32" for tensor in model.inputs):
        yield "the model is not quantised to 8 bits: the Edge TPU cannot run it"


def _classes(model: ModelFacts) -> int | None:
    """Return how many classes a classifier has: one output of shape (1, classes)."""
    shape = model.outputs[0].shape
    return shape[-1] if len(model.outputs) == 1 and len(shape) == 2 else None  # noqa: PLR2004  (1, classes)
