"""Makes a release of model files: inspects them, and writes the folder that can be published as it is.

out/release.json                              the manifest, not signed yet
out/objects/3f1c8a2b94d07e15-model.tflite     each file under a name that no other content can have
"""

import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from edge_agent.durable import replace_file
from edge_agent.inference.checks.inspection import ModelFacts, NotInspectedError, inspect
from edge_agent.inference.interpreter.labels import LabelsError, read_labels
from edge_agent.models.release.manifest import FORMAT, MANIFEST, OBJECTS, Acceptance, Manifest, ObjectFile
from edge_agent.models.release.releases import clean_version
from edge_agent.models.stores.base import file_sha256
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.golden import Examined, Question, about_golden, examine
from edge_agent.publisher.keys import signed_with
from edge_agent.publisher.places import copy
from edge_agent.publisher.remarks import about_model, number_of_classes

GOLDEN_NAME = "golden.npz"
_UNSAFE = re.compile(r"[^0-9A-Za-z._-]")
_LONGEST_NAME = 180


class Ingredients(msgspec.Struct, frozen=True, kw_only=True):
    """What a release is made of. `twin` is the same model for the CPU, `labels` a labels file.

    `golden` are samples (see `edge_agent.publisher.golden`), `golden_labels` a file with a line for each of them, and
    `acceptance` what devices are to find out with them. `task` is the model's, or empty: it is told from its outputs.
    """

    name: str
    version: str
    model: Path
    twin: Path | None = None
    labels: Path | None = None
    accuracy: float | None = None
    golden: Path | None = None
    golden_labels: Path | None = None
    acceptance: Acceptance = Acceptance()
    task: str = ""


class Built(msgspec.Struct, frozen=True):
    """The manifest that was written, what was found out, and what its publisher should think about."""

    manifest: Manifest
    notes: list[str]
    warnings: list[str]


async def build(ingredients: Ingredients, folder: Path, *, now_ms: int | None = None) -> Built:
    """Inspect everything, and write the release to `folder`. Raises ReleaseError, OSError."""
    for option, text in (("--name", ingredients.name), ("--version", ingredients.version)):
        if not text or clean_version(text) != text:
            raise ReleaseError(f"{option}: {text!r} is none: give one line of up to 128 letters")
    model = await inspected(ingredients.model)
    twin = await inspected(ingredients.twin) if ingredients.twin is not None else None
    labels = given_labels(ingredients.labels)
    if twin is not None:
        _check_twin(ingredients, model, twin)
    notes, warnings = [], list(_warnings(model, twin, labels))
    if model.package is not None:
        notes.append(f"{ingredients.model}: {model.package}")
    with tempfile.TemporaryDirectory(prefix="edge-agent-release-") as desk:
        golden = Path(desk) / GOLDEN_NAME
        examined = await _run_golden(ingredients, model, labels, golden)
        if examined is not None and ingredients.golden is not None:
            notes.append(str(examined))
            warnings += about_golden(ingredients.golden, examined)
        files = _Files(ingredients.model, ingredients.twin, None if examined is None else golden)
        manifest = _manifest(ingredients, files, model, labels, now_ms or int(time.time() * 1000))
        _write(files, manifest, folder)
    return Built(manifest, notes, warnings)


class _Files(msgspec.Struct, frozen=True):
    model: Path
    twin: Path | None
    golden: Path | None


async def inspected(path: Path) -> ModelFacts:
    """Return what a model file holds. Raises ReleaseError."""
    _check_readable(path)
    try:
        return await inspect(str(path))
    except NotInspectedError as error:
        raise ReleaseError(f"{path}: {error}") from error


def _check_readable(path: Path) -> None:
    """The runtime says of a file that is not there that it is no model."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be used: {error.strerror}") from error


def given_labels(path: Path | None) -> list[str] | None:
    """Return the labels of a file, where there is one. Raises ReleaseError."""
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


async def _run_golden(
    ingredients: Ingredients, model: ModelFacts, labels: list[str] | None, output: Path
) -> Examined | None:
    if ingredients.golden is None:
        if ingredients.golden_labels is not None or ingredients.acceptance != Acceptance():
            raise ReleaseError("without golden samples (--golden) there is nothing that a device could find out")
        return None
    classes = number_of_classes(model) or 0
    task = ingredients.task or ("classification" if classes > 1 else "raw")
    if task == "classification" and classes and labels is not None and len(labels) != classes:
        raise ReleaseError(
            f"{ingredients.labels}: {len(labels)} labels, but the model has {classes} outputs; a classifier would be "
            "refused. Correct the labels, or say what else it is (--task)"
        )
    return await examine(
        Question(
            model=str(ingredients.twin or ingredients.model),
            compiled=model.compiled and ingredients.twin is None,
            source=str(ingredients.golden),
            output=str(output),
            task=task,
            labels_file=None if ingredients.golden_labels is None else str(ingredients.golden_labels),
            labels=labels,
            acceptance=ingredients.acceptance,
        )
    )


def _manifest(
    ingredients: Ingredients, files: _Files, model: ModelFacts, labels: list[str] | None, sequence: int
) -> Manifest:
    acceptance = msgspec.structs.replace(ingredients.acceptance, golden=_object(files.golden))
    given = {
        "format": FORMAT,
        "name": ingredients.name,
        "version": ingredients.version,
        "sequence": sequence,
        "model": _object(files.model),
        "twin": _object(files.twin),
        "labels": labels,
        "accuracy": ingredients.accuracy,
        "inputs": list(map(str, model.inputs)),
        "outputs": list(map(str, model.outputs)),
        "acceptance": acceptance,
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


def _write(files: _Files, manifest: Manifest, folder: Path) -> None:
    file = signed_with(manifest, ())
    objects = folder / OBJECTS
    objects.mkdir(parents=True, exist_ok=True)
    pairs = ((files.model, manifest.model), (files.twin, manifest.twin), (files.golden, manifest.acceptance.golden))
    for path, each in pairs:
        if path is not None and each is not None:
            copy(path, objects / each.name, lambda _: None)
    replace_file(folder / MANIFEST, file.encode())


def _warnings(model: ModelFacts, twin: ModelFacts | None, labels: list[str] | None) -> Iterator[str]:
    if model.compiled and twin is None:
        yield "there is no twin for the CPU (--twin): without an Edge TPU a device stands still"
    yield from about_model(model, labels)
