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
ABSENT = {
    "anomaly.toml": "/srv/recordings/pump.csv: no such file or directory",
    "rtsp-camera.toml": "",
    "shell-sensor.toml": "/usr/local/bin/load: there is no such program",
    "usb-camera-detection.toml": "/dev/v4l/by-id/usb-046d_HD_Webcam_C525-video-index0: no such file or directory",
    "vibration-iio.toml": "no such industrial i/o device",
}


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
    absent = ABSENT[example.name]
    # Another machine may have what this one has not.
    assert [fault.message for fault in answer.faults if not (absent and fault.message.startswith(absent))] == []
    assert answer.configuration is not None
    assert answer.configuration.settings.actions
    assert answer.configuration.labels


def test_every_example_is_here() -> None:
    assert {path.name for path in FILES} == set(ABSENT)


def test_a_mistake_in_an_example_would_be_found(tmp_path: Path) -> None:
    copy = prepared(FOLDER / "shell-sensor.toml", tmp_path)
    copy.write_text(copy.read_text(encoding="utf-8").replace("hysteresis", "histeresis"))
    with pytest.raises(SettingsError, match="did you mean 'hysteresis'"):
        asyncio.run(check_configuration(copy, {}))
