"""A stand-in for picamera2 with what the agent uses of it, and what it does when used wrongly.

`Picamera2.script` is what a test wants to happen.
"""

import time
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

# Red, green, blue and so on in the order in which the array has them.
ORDERS = {"BGR888": (200, 100, 50), "RGB888": (50, 100, 200)}
SENSOR = (3280, 2464)


class Script:
    """What happens: how many cameras there are, who else uses one, how many pictures come."""

    def __init__(self, *, cameras: int = 1, busy: bool = False, pictures: int = 1000) -> None:
        self.cameras = cameras
        self.busy = busy
        self.pictures = pictures
        self.open = 0
        self.configured: list[tuple[int, int]] = []
        self.held = 0


class Request:
    def __init__(self, size: tuple[int, int], colour: tuple[int, int, int], script: Script) -> None:
        self._size, self._colour, self._script = size, colour, script
        script.held += 1
        self._taken = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - 40_000_000

    def make_array(self, name: str) -> npt.NDArray[np.uint8]:
        assert name == "main"
        width, height = self._size
        return np.broadcast_to(np.array(self._colour, np.uint8), (height, width, 3)).copy()

    def get_metadata(self) -> dict[str, Any]:
        return {"SensorTimestamp": self._taken, "ExposureTime": 20_000}

    def release(self) -> None:
        self._script.held -= 1


class Job:
    def __init__(self, camera: "Picamera2") -> None:
        self._camera = camera

    def get_result(self, timeout: float | None = None) -> Request:
        assert timeout is not None
        script = self._camera.script
        if not script.pictures:
            raise TimeoutError
        script.pictures -= 1
        return self._camera.complete()


class Picamera2:
    script: ClassVar[Script] = Script()

    @staticmethod
    def global_camera_info() -> list[dict[str, Any]]:
        return [{"Model": "imx219", "Num": number} for number in range(Picamera2.script.cameras)]

    def __init__(self, camera_num: int = 0) -> None:
        if self.script.busy:
            raise RuntimeError("Camera __init__ sequence did not complete.")
        assert camera_num < self.script.cameras
        self.sensor_resolution = SENSOR
        self._configuration: dict[str, Any] | None = None
        self._started = False
        self._closed = False
        self.script.open += 1

    def create_video_configuration(self, main: dict[str, Any]) -> dict[str, Any]:
        return {"main": {"format": "XBGR8888", "size": (1280, 720)} | main}

    def configure(self, configuration: dict[str, Any]) -> None:
        if self._started:
            raise RuntimeError("Camera must be stopped before configuring")
        self._configuration = configuration
        self.script.configured.append(configuration["main"]["size"])

    def start(self) -> None:
        assert self._configuration is not None
        self._started = True

    def stop(self) -> None:
        self._started = False

    def cancel_all_and_flush(self) -> None:
        assert not self._started

    def capture_request(self, wait: bool = True) -> Job:
        assert not wait
        assert self._started
        return Job(self)

    def complete(self) -> Request:
        assert self._configuration is not None
        main = self._configuration["main"]
        return Request(main["size"], ORDERS[main["format"]], self.script)

    def close(self) -> None:
        if not self._closed:
            self.script.open -= 1
        self._closed = True
        self._started = False
