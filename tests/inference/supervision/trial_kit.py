"""Models that a test makes, and what it asks of a worker that runs them on trial, or as a shadow."""

from collections.abc import Callable
from pathlib import Path

from edge_agent.records import ModelFile
from tests.inference.conftest import Rig
from tests.inference.synthetic import Spec, slices
from tests.standin import models

VALUES = 8
LABELS = ["a", "b", "c"]
Use = Callable[..., None]
SCORES = Spec("scores", (1, 3), "uint8", 1 / 255)


def written(folder: Path, version: str, entry: Spec, output: Spec, *, compiled: bool = False) -> ModelFile:
    content = slices(entry, [output]).bytes()
    path = folder / f"{version}.tflite"
    path.write_bytes(models.edgetpu_model(content) if compiled else content)
    return ModelFile(str(path), "m", version, LABELS)


def on_device(folder: Path, version: str, scale: float = 1 / 255) -> ModelFile:
    """A model for the Edge TPU. What its input adds up to depends on the scale."""
    return written(folder, version, Spec("x", (1, VALUES), "uint8", scale), SCORES, compiled=True)


def call_for_the_special_one(folder: Path) -> None:
    (folder / "marker").touch()


def pid(rig: Rig) -> int:
    assert rig.supervisor.worker_pid is not None
    return rig.supervisor.worker_pid


def mapped(process: int) -> set[str]:
    """The model files that a process has in its memory."""
    lines = Path(f"/proc/{process}/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if line.endswith(".tflite")}
