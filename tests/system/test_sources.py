"""Sources that bring programs and libraries of the system into the service's own sandbox: `command` and `camera`.

A call that the sandbox does not allow kills whoever makes it, here, instead of failing where nobody looks.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.inference.synthetic import Spec, slices
from tests.sources.videos import COLOURS, make_video
from tests.system.machine import Machine
from tests.system.roots import base_tree
from tests.system.service import Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SENSOR = "/usr/local/bin/sensor"
# The `tail` waits for ever: only who kills the whole group gets rid of it.
SENSOR_LINES = """#!/bin/sh
line=$(yes 0.5 | head -n 128 | paste -s -d,)
tail -f /dev/null | while sleep 0.05; do echo "$line"; done
"""
COMMAND = f'plugin = "command"\nrun = ["{SENSOR}"]\n'
VIDEO, IMAGE_MODEL = "/srv/video.mp4", "/srv/colours.tflite"
PYAV = "/usr/lib/python3/dist-packages/av"
CAMERA = f'plugin = "camera"\nurl = "{VIDEO}"\nrate = 25\nrepeat = true\n'


def test_three_lines_of_shell_are_a_sensor_and_leave_no_orphan(service: Service) -> None:
    machine = service.machine
    service.forbid_strictly()
    machine.write(SENSOR, SENSOR_LINES, 0o755)
    service.work(settings(source=COMMAND))
    agent, worker = service.pid, service.worker
    group = group_of_sensor(machine)
    assert len(members(machine, group)) >= 4, "guard, sensor, tail and loop"

    machine.kill(worker)
    machine.wait_until(lambda: not members(machine, group), "all of the sensor has gone with its worker")
    service.nothing_lost()
    new = group_of_sensor(machine)
    assert (new != group, service.worker != worker, service.pid == agent) == (True, True, True)

    # An agent that is killed takes its worker with it, and so the sensor.
    machine.configure_unit("restart", "[Service]\nRestartSec=1s\n")
    machine.kill(agent)
    machine.wait_until(lambda: not members(machine, new), "all of the sensor has gone with the agent")
    service.nothing_forbidden()


def group_of_sensor(machine: Machine) -> int:
    """Return the process group of the sensor, of which there must be one alone."""
    pids = machine.run("pgrep", "--full", f"^/bin/sh {SENSOR}").stdout.split()
    groups = {int(machine.run("ps", "--no-headers", "--format=pgid", "--pid", pid).stdout) for pid in pids}
    assert len(groups) == 1, groups
    return groups.pop()


def members(machine: Machine, group: int) -> list[str]:
    """Return the processes of a group."""
    return machine.run("pgrep", "--pgroup", str(group), check=False).stdout.split()


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """A video in which each picture has one colour."""
    return make_video(tmp_path / "h264.mp4")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    """A model that puts out how red, green and blue the first pixel of a picture is."""
    path = tmp_path / "colours.tflite"
    # Two values more than the three that are wanted of an 8x8 picture's 192 need no output.
    path.write_bytes(slices(Spec("picture", (1, 8, 8, 3), "uint8", 1 / 255), [Spec("colours", (1, 3))]).bytes())
    return path


@pytest.fixture
def camera_settings() -> str:
    """Settings of a camera, and the model of `colours`."""
    text = settings(source=CAMERA, model=IMAGE_MODEL, inference="top_k = 3")
    return text.replace('labels = ["normal", "warning", "failure"]', 'labels = ["red", "green", "blue"]')


@pytest.fixture
def camera_service(debs: Callable[[str], Path], base_trees: object, tmp_path: Path) -> Iterator[Service]:
    """The service of a Debian 12 that has python3-av with all that it depends on."""
    with base_tree("bookworm", "python3-av") as tree, Machine([tree], tmp_path / "camera") as machine:
        machine.install(debs("bookworm"))
        with Service(machine) as service:
            yield service


def test_a_video_goes_through_debians_pyav_to_the_model(
    camera_service: Service, video: Path, colours: Path, camera_settings: str
) -> None:
    service, machine = camera_service, camera_service.machine
    service.forbid_strictly()
    machine.copy_in(video, VIDEO)
    machine.copy_in(colours, IMAGE_MODEL)
    machine.run("mv", PYAV, "/root/av")
    service.start(camera_settings)
    service.wait_for_status("source trouble", "apt install python3-av")
    checked = machine.run("edge-agent", "check-config", check=False)
    assert "the camera source needs PyAV: apt install python3-av" in checked.stderr
    worker = service.worker

    machine.run("mv", "/root/av", PYAV)
    # The whole video, and its beginning once more.
    events = service.wait_for_results(2 * len(COLOURS))
    for event, (red, green, blue) in zip(events.of("result"), COLOURS * 2, strict=False):
        scores = {score["label"]: score["score"] * 255 for score in event["results"]}
        assert scores == pytest.approx({"red": red, "green": green, "blue": blue}, abs=12)
        assert event["prediction"] == max(scores, key=lambda label: scores[label])
    assert service.worker == worker
    assert f"{PYAV}/" in machine.read(f"/proc/{worker}/maps")
    service.nothing_lost()
    service.nothing_forbidden()
