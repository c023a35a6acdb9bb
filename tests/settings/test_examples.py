"""The settings in `config/examples`: right in every word, whatever is plugged in here."""

import asyncio
from pathlib import Path

import pytest

from edge_agent.configuration_check import check_configuration
from edge_agent.settings.faults import SettingsError

FOLDER = Path(__file__).parents[2] / "config" / "examples"
FILES = sorted(FOLDER.glob("*.toml"))
# What an example expects on the machine, and the test puts there.
LABELS, PASSWORD = "/srv/models/coco_labels.txt", "/etc/edge-agent.camera-password"


def prepared(example: Path, folder: Path) -> Path:
    """Return a copy of the example that finds labels and password."""
    (folder / "labels.txt").write_text("0  person\n1  bicycle\n")
    (folder / "password").write_text("secret\n")
    text = example.read_text(encoding="utf-8")
    copy = folder / example.name
    copy.write_text(text.replace(LABELS, "labels.txt").replace(PASSWORD, "password"))
    return copy


@pytest.mark.parametrize("example", FILES, ids=lambda path: path.name)
def test_an_example_is_good_but_for_what_is_not_plugged_in(example: Path, tmp_path: Path) -> None:
    answer = asyncio.run(check_configuration(prepared(example, tmp_path), {}))
    # The one fault that leaves a configuration is a source that is not there.
    assert answer.configuration is not None
    assert all(fault.key.startswith("[source]") for fault in answer.faults)
    assert answer.configuration.settings.actions
    assert answer.configuration.labels


def test_there_are_examples_of_cameras_sensors_and_tasks() -> None:
    names = {"anomaly", "rtsp-camera", "shell-sensor", "usb-camera-detection", "vibration-iio"}
    assert {path.stem for path in FILES} >= names


def test_a_mistake_in_an_example_would_be_found(tmp_path: Path) -> None:
    copy = prepared(FOLDER / "shell-sensor.toml", tmp_path)
    copy.write_text(copy.read_text(encoding="utf-8").replace("hysteresis", "histeresis"))
    with pytest.raises(SettingsError, match="did you mean 'hysteresis'"):
        asyncio.run(check_configuration(copy, {}))
