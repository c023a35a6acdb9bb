"""A camera on the Raspberry Pi's own connector: the agent's side, against a stand-in for picamera2."""

import importlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.sources.base import SourceError, build
from edge_agent.sources.camera import Camera
from edge_agent.sources.camera_csi import scaled
from edge_agent.sources.video import Wanted

STANDIN = Path(__file__).parents[1] / "plugins" / "csi"
SENSOR = (3280, 2464)


@pytest.fixture
def picamera2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The stand-in, as the installed module."""
    monkeypatch.syspath_prepend(STANDIN)
    module = importlib.import_module("picamera2")
    module.Picamera2.script = module.Script()
    yield module
    assert module.Picamera2.script.held == 0, "requests must go back to the camera"
    assert module.Picamera2.script.open == 0, "the camera must be given back"
    del sys.modules["picamera2"]


def test_pictures_are_rgb_and_as_large_as_asked(picamera2: Any) -> None:
    source = build(Camera, {"url": "csi", "width": 640, "height": 480})
    assert source.live
    source.open(None)
    before = time.monotonic_ns()
    sample = source.read(1)
    source.close()
    assert sample is not None
    assert sample.data.shape == (480, 640, 3)
    assert sample.data[0, 0].tolist() == [200, 100, 50]
    assert sample.size is None
    # The sensor began 40 ms before the picture was there.
    assert before - 41_000_000 < sample.captured_ns < time.monotonic_ns() - 39_000_000


def test_the_image_processor_scales_and_is_set_anew_for_another_model(picamera2: Any) -> None:
    source = build(Camera, {"url": "csi:0"})
    source.prefer_size(224, 224, "bilinear")
    source.open(None)
    small = source.read(1)
    source.prefer_size(300, 300, "bilinear")
    large = source.read(1)
    source.close()
    assert small is not None
    assert large is not None
    assert small.data.shape == (224, 300, 3)
    assert large.data.shape == (300, 400, 3)
    assert small.size == large.size == SENSOR
    assert picamera2.Picamera2.script.configured == [(300, 224), (400, 300)]


@pytest.mark.parametrize(
    ("size", "wanted", "expected"),
    [
        ((1280, 720), None, (1280, 720)),
        ((1280, 720), (224, 224), (400, 224)),
        ((720, 1280), (224, 224), (224, 400)),
        ((1280, 720), (1920, 1080), (1280, 720)),
        ((1281, 721), (640, 96), (640, 362)),
    ],
)
def test_scaled_sizes_keep_the_proportions(
    size: tuple[int, int], wanted: tuple[int, int] | None, expected: tuple[int, int]
) -> None:
    assert scaled(size, wanted and Wanted(*wanted, "bilinear")) == expected


def test_a_camera_without_pictures_is_waited_for_and_then_lost(picamera2: Any) -> None:
    picamera2.Picamera2.script = picamera2.Script(pictures=1)
    source = build(Camera, {"url": "csi", "width": 64, "height": 48, "timeout": 1e-9})
    source.open(None)
    assert source.read(1) is not None
    with pytest.raises(SourceError, match="CSI camera 0 sent nothing for"):
        source.read(0)
    source.close()
    patient = build(Camera, {"url": "csi", "width": 64, "height": 48, "timeout": 3600})
    patient.open(None)
    assert patient.read(0) is None
    patient.close()


def test_trouble_is_told_in_words(picamera2: Any) -> None:
    with pytest.raises(SourceError, match="CSI camera 3 is not there; there are 1; check its cable"):
        build(Camera, {"url": "csi:3"}).open(None)
    picamera2.Picamera2.script.busy = True
    source = build(Camera, {"url": "csi"})
    with pytest.raises(SourceError, match="did not complete; end other programs that use the camera"):
        source.open(None)
    source.close()


def test_without_picamera2_the_check_says_what_to_install() -> None:
    options = Camera.Options(url="csi")
    with pytest.raises(OSError, match="apt install python3-picamera2"):
        options.check()
    with pytest.raises(SourceError, match="apt install python3-picamera2"):
        build(Camera, {"url": "csi"}).open(None)
