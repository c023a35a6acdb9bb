"""Every source that comes with the agent keeps the rules that plugins of others are checked against."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.sources import iio
from edge_agent.sources.command import Command
from edge_agent.sources.iio import IndustrialIO
from edge_agent.sources.images import Images
from edge_agent.sources.recording import Recording
from edge_agent.sources.vibration import Vibration
from edge_agent.testing import check_source, run_in_worker
from tests.sources.iio_tree import THERMOMETER, Board


def test_vibration() -> None:
    check_source(Vibration, {"seed": 1, "rate": 0})
    check_source(Vibration, {"rate": 1000})


@pytest.mark.parametrize("name", ["samples.csv", "samples.npy"])
def test_recording(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    np.save(path, np.arange(12.0).reshape(4, 3)) if name.endswith("npy") else path.write_text("1,2\n3,4\n5,6\n")
    check_source(Recording, {"path": str(path)}, broken={"path": str(tmp_path / "none")})


def test_images(tmp_path: Path) -> None:
    for number in range(3):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / f"{number}.png")
    check_source(Images, {"path": str(tmp_path)}, broken={"path": str(tmp_path / "none")})


def test_command() -> None:
    check_source(Command, {"run": ["yes", "1,2"]}, broken={"run": ["/none"]})
    check_source(Command, {"run": ["seq", "9"], "live": False}, broken={"run": ["false"]})


def test_a_command_in_the_worker() -> None:
    script = "while true; do echo [$(yes 0.5, | head -127 | tr -d '\\n')0.5]; done"
    run = run_in_worker(Command, {"run": ["sh", "-c", script]}, count=3)
    assert {result.scores[0].label for result in run.results} == {"normal"}
    assert (run.failed, run.states) == (0, ["open"])


def test_iio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(tmp_path / "root")
    monkeypatch.setattr(iio, "ROOT", board.root)
    board.add(0, THERMOMETER)
    check_source(IndustrialIO, {"device": "bmp280", "rate": 100}, broken={"device": "none"})
