"""The script that made the demo model runs again, with TensorFlow in an environment of its own."""

import json
import subprocess
from pathlib import Path

import pytest

from tests.system.conftest import find_python, fresh_clone

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]


def test_the_demo_model_can_be_trained_again(tmp_path: Path) -> None:
    folder = fresh_clone(tmp_path)
    environment = tmp_path / "environment"
    subprocess.run([find_python("3.11"), "-m", "venv", environment], check=True)
    python = environment / "bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", f"{folder}[train]"], check=True)

    command = [str(python), "-m", "edge_agent.demo.train", "--out", str(tmp_path / "trained"), "--seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert "| seed | 7 |" in done.stdout
    facts = json.loads((tmp_path / "trained/vibration_classifier.tflite.json").read_text())
    assert facts["accuracy"] >= 0.99
    assert facts["labels"] == (tmp_path / "trained/vibration_labels.txt").read_text().split()
    assert (tmp_path / "trained/vibration_classifier.tflite").stat().st_size < 100_000
