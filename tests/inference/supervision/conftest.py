"""Fixtures for a model on trial, or as a shadow, beside another in a real worker."""

from pathlib import Path

import pytest

from edge_agent.inference.protocol import Configure
from edge_agent.inference.supervision import beside, supervisor, waiting
from edge_agent.records import ModelFile
from tests.inference.conftest import settings
from tests.inference.supervision.trial_kit import VALUES, Use, written
from tests.inference.synthetic import Spec
from tests.standin import build as standin


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause before another worker, and no look at a model's file before it is loaded beside another."""

    async def nothing_wrong(model: ModelFile) -> None:
        """Stands for a look at the file in a process of its own, a second for each model."""

    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.02)
    monkeypatch.setattr(waiting, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(supervisor, "check_files", nothing_wrong)
    monkeypatch.setattr(beside, "check_files", nothing_wrong)


@pytest.fixture
def source(faulty_plugin: str, tmp_path: Path) -> Configure:
    """Samples of eight values, among which one of infinities can be called for."""
    return settings("marked", marker=str(tmp_path / "marker"), values=VALUES)


@pytest.fixture
def tolerant(tmp_path: Path) -> ModelFile:
    """Version 1: its input is quantised, so it clips whatever comes."""
    return written(tmp_path, "v1", Spec("x", (1, VALUES), "uint8", 1 / 255), Spec("y", (1, 3)))


@pytest.fixture
def strict(tmp_path: Path) -> ModelFile:
    """Version 2: it cannot work on infinities."""
    return written(tmp_path, "v2", Spec("x", (1, VALUES)), Spec("y", (1, 3)))


@pytest.fixture
def edgetpu(edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Sets the stand-in's mode for all workers, from now on; none is for the one that it began with."""
    state = tmp_path / "state"
    for name, value in standin.environment(edgetpu_standin, state=state).items():
        monkeypatch.setenv(name, value)

    def use(mode: str = "") -> None:
        if mode:
            (tmp_path / "new").write_text(mode)
            (tmp_path / "new").rename(state)
        else:
            state.unlink(missing_ok=True)

    return use
