"""Industrial I/O on a tree of files that stands for /sys and /dev."""

import errno
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.records import Sample
from edge_agent.sources import iio
from edge_agent.sources.base import Pacer, SourceError
from edge_agent.sources.iio import IndustrialIO, nearest
from edge_agent.sources.iio_device import Device
from edge_agent.testing import Clock
from tests.agentprocess import ordinary_user
from tests.sources.iio_tree import ACCELEROMETER, THERMOMETER, Board, records, state

Open = Callable[..., IndustrialIO]
G = 0.038


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    made = Board(tmp_path / "root")
    yield made
    made.unplug()


@pytest.fixture
def open_device(board: Board, clock: Clock) -> Iterator[Open]:
    """Open sources on the board, with a clock that only naps move, and close them."""
    opened: list[IndustrialIO] = []

    def open_it(device: str = "adxl345", **options: Any) -> IndustrialIO:
        pacer = Pacer(options.get("rate") or iio.POLL_RATE, clock=clock, sleep=clock.sleep)
        source = IndustrialIO(IndustrialIO.Options(device=device, **options), root=board.root, pacer=pacer)
        opened.append(source)
        source.open(None)
        return source

    yield open_it
    for source in opened:
        source.close()


def read(source: IndustrialIO) -> Sample:
    sample = source.read(5.0)
    assert sample is not None
    assert sample.data.dtype == np.float32
    return sample


def failure(action: Callable[[], object]) -> str:
    with pytest.raises(SourceError) as caught:
        action()
    return str(caught.value)


# -- through the buffer


def test_windows_of_the_buffer_in_units_of_the_abi(board: Board, open_device: Open) -> None:
    board.add(0, ACCELEROMETER)
    source = open_device(window=2)
    board.deliver(records([[1, 2, 3], [-4, 5, -4096], [7, 8, 4095], [0, 0, 0], [9, 9, 9]]))
    first, second = read(source), read(source)
    assert first.data == pytest.approx(np.array([[1, 4, 3], [-4, 7, -4096]]) * G)
    assert second.data == pytest.approx(np.array([[7, 10, 4095], [0, 2, 0]]) * G)
    assert (first.captured_ns, second.captured_ns) == (2000, 4000)
    assert source.read(0.0) is None
    assert source.live


def test_windows_may_overlap_and_records_may_be_cut(board: Board, open_device: Open) -> None:
    board.add(0, ACCELEROMETER)
    source = open_device(window=3, step=1, channels=["accel_z", "accel_x"])
    data = b"".join(np.array([(x, x + 100, 0, 1000 * x)], np.dtype("<i2,<i2,<i4,<i8")).tobytes() for x in range(1, 6))
    seen: list[list[list[int]]] = []
    for cut in (data[:10], data[10:50], data[50:]):
        board.deliver(cut)
        while (sample := source.read(0.0)) is not None:
            seen.append(np.round(sample.data / G).astype(int).tolist())
    # Columns come as they were asked for, not as they lie in the record.
    assert seen == [[[n + 100, n] for n in range(start, start + 3)] for start in (1, 2, 3)]


def test_what_is_set_up_and_put_back(board: Board, open_device: Open) -> None:
    folder = board.add(0, ACCELEROMETER | {"scan_elements/in_accel_y_en": "1"})
    before = state(folder)
    source = open_device(window=64, channels=["accel_x"], rate=190)
    during = state(folder)
    assert {name for name in during if during[name] != before[name]} == {
        "buffer/enable",
        "buffer/length",
        "buffer/watermark",
        "current_timestamp_clock",
        "in_accel_sampling_frequency",
        "scan_elements/in_accel_x_en",
        "scan_elements/in_accel_y_en",
        "scan_elements/in_timestamp_en",
    }
    assert (during["buffer/enable"], during["buffer/length"], during["buffer/watermark"]) == ("1", "256", "64")
    assert (during["scan_elements/in_accel_x_en"], during["scan_elements/in_accel_y_en"]) == ("1", "0")
    assert during["in_accel_sampling_frequency"] == "200"
    assert source.remarks == ["asked for 190 scans per second, iio:device0 makes 200"]
    source.close()
    source.close()
    assert state(folder) == before


def test_a_buffer_that_a_killed_worker_left_running_is_taken_over(board: Board, open_device: Open) -> None:
    folder = board.add(0, ACCELEROMETER | {"buffer/enable": "1"})
    open_device().close()
    assert state(folder)["buffer/enable"] == "0"


def test_no_window_spans_a_gap(board: Board, open_device: Open) -> None:
    folder = board.add(0, ACCELEROMETER | {"buffer/data_available": "1"})
    source = open_device(window=2, channels=["accel_x"])
    data = np.array(
        [(n, 1000 * n) for n in range(1, 8)], {"names": ["x", "time"], "formats": ["<i2", "<i8"], "offsets": [0, 8]}
    )
    seen = []
    for first, last, waiting in ((0, 1, 1), (1, 5, 8), (5, 7, 2)):
        (folder / "buffer/data_available").write_text(str(waiting))
        board.deliver(data[first:last].tobytes())
        while (sample := source.read(0.0)) is not None:
            seen.append(np.round(sample.data[:, 0] / G).astype(int).tolist())
    # The fifth has lost what came after it.
    assert seen == [[1, 2], [3, 4], [6, 7]]
    assert source.skipped == 1
    assert next(iter(source.problems)).startswith("the kernel's buffer was full: scans were lost")


def test_without_a_monotonic_clock_the_time_is_that_of_reading(board: Board, open_device: Open) -> None:
    board.add(0, {name: text for name, text in ACCELEROMETER.items() if name != "current_timestamp_clock"})
    source = open_device()
    board.deliver(np.array([[1, 2, 3]], "<i2").tobytes())
    assert read(source).captured_ns > 10_000


def test_a_device_that_goes_away(board: Board, open_device: Open) -> None:
    board.add(0, ACCELEROMETER)
    source = open_device()
    board.deliver(records([[1, 2, 3]]))
    read(source)
    board.unplug()
    message = failure(lambda: source.read(5.0))
    assert message == (
        f"adxl345: {board.root}/dev/iio:device0 has come to its end; "
        "see that it is connected and that its driver is loaded (dmesg tells)"
    )


def test_the_trigger_gives_the_beat(board: Board, open_device: Open) -> None:
    own = {name: text for name, text in ACCELEROMETER.items() if "sampling_frequency" not in name}
    board.add(0, own)
    source = open_device(rate=50)
    assert source.remarks == ["iio:device0 has no sampling_frequency; what gives its beat decides the rate"]
    source.close()
    trigger = board.devices / "trigger0"
    board.put(trigger, {"name": "adxl345-dev0", "sampling_frequency": "10"})
    source = open_device(rate=50)
    assert ((trigger / "sampling_frequency").read_text(), source.remarks) == ("50", [])


# -- file by file


def test_files_are_read_at_a_beat(board: Board, open_device: Open, clock: Clock) -> None:
    folder = board.add(1, THERMOMETER, node=False)
    source = open_device("bmp280", window=2, rate=4)
    first = source.read(0.2)
    (folder / "in_temp_input").write_text("22000\n")
    assert first is None
    sample = read(source)
    # What a driver gives in its unit is not scaled again.
    assert sample.data.tolist() == [[50, 21500], [50, 22000]]
    assert sum(clock.naps) == pytest.approx(0.25)


def test_a_device_without_a_trigger_is_read_file_by_file(board: Board, open_device: Open) -> None:
    folder = board.add(0, ACCELEROMETER | {"trigger/current_trigger": ""})
    source = open_device(channels=["accel_y", "accel_z"])
    assert read(source).data == pytest.approx(np.array([[-18, 256]]) * G)
    assert state(folder)["buffer/enable"] == "0"


def test_a_value_that_is_none(board: Board, open_device: Open) -> None:
    board.add(0, {"name": "adc", "in_voltage0_raw": "none"}, node=False)
    source = open_device("adc")
    assert "in_voltage0_raw: 'none' is no number" in failure(lambda: source.read(1.0))


# -- what is chosen, and what is refused


@pytest.mark.parametrize("name", ["iio:device0", "adxl345", "left-bearing"])
def test_a_device_is_found_by_what_it_is_called(board: Board, open_device: Open, name: str) -> None:
    board.add(0, ACCELEROMETER | {"label": "left-bearing"})
    board.add(1, THERMOMETER)
    assert open_device(name, mode="sysfs").read(1.0) is not None


def test_a_device_that_is_not_there(board: Board, open_device: Open) -> None:
    board.add(0, ACCELEROMETER | {"label": "left"})
    board.add(1, THERMOMETER)
    assert failure(lambda: open_device("mpu6050")).startswith(
        "mpu6050: no industrial I/O device is called mpu6050; there are: iio:device0/adxl345/left, iio:device1/bmp280; "
    )


def test_two_devices_of_one_name(board: Board, open_device: Open) -> None:
    board.add(0, ACCELEROMETER)
    board.add(1, ACCELEROMETER)
    assert "iio:device0 and iio:device1 are both called adxl345" in failure(open_device)


def test_the_check_finds_device_and_channels(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iio, "ROOT", board.root)
    with pytest.raises(FileNotFoundError, match="there are: none"):
        IndustrialIO.Options(device="adxl345").check()
    board.add(0, ACCELEROMETER)
    IndustrialIO.Options(device="adxl345", channels=["accel_z"]).check()
    with pytest.raises(ValueError, match=r"unknown channel \(did you mean 'accel_x'\?\)"):
        IndustrialIO.Options(device="adxl345", channels=["acel_x"]).check()


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "open the sandbox and the files to the service as sandbox.md shows, or set mode"),
        (errno.EPERM, "open the sandbox and the files to the service as sandbox.md shows, or set mode"),
        (errno.EBUSY, "end the program that reads it"),
        (errno.EINVAL, "the driver does not take that; a device that needs a trigger"),
        (errno.ENODEV, "see that it is connected"),
    ],
)
def test_what_the_system_refuses(
    board: Board, open_device: Open, monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    folder = board.add(0, ACCELEROMETER)
    before = state(folder)
    write = Device.write

    def refuse(self: Device, path: Path, text: str) -> None:
        if path.name == "enable":
            raise OSError(number, "Refused", str(path))
        write(self, path, text)

    monkeypatch.setattr(Device, "write", refuse)
    message = failure(open_device)
    assert message.startswith(f"adxl345: {folder}/buffer/enable: refused; {advice}")
    assert state(folder) == before


OPEN = """
import sys
from pathlib import Path
from edge_agent.sources.iio import IndustrialIO

source = IndustrialIO(IndustrialIO.Options(device="adxl345", mode=sys.argv[2], rate=200), root=Path(sys.argv[1]))
source.open(None)
print(source.read(5).data.shape, source.remarks)
source.close()
"""


@pytest.mark.parametrize("mode", ["buffer", "sysfs"])
def test_a_user_who_may_only_read(board: Board, mode: str) -> None:
    user = ordinary_user()
    if not user:
        pytest.skip("only root can make files that this user may not write")
    folder = board.add(0, ACCELEROMETER)
    command = [*user, sys.executable, "-c", OPEN, str(board.root), mode]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    refusal = f"{folder}/in_accel_sampling_frequency: permission denied"
    if mode == "buffer":
        assert f"adxl345: {refusal}; open the sandbox" in done.stderr
    else:
        assert done.stdout == f"(1, 3) ['the device itself goes on with 100 scans per second: {refusal}']\n"


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        (190, "50 100 200 400", 200),
        (1, "50 100", 50),
        (33, "", 33),
        (33, "[10 5 100]", 35),
        (500, "[10 5 100]", 100),
        (7, "[10 0 100]", 10),
        (7, "fast slow", 7),
        (0.4, "0.1 0.39 0.78", 0.39),
    ],
)
def test_the_nearest_rate(wanted: float, offered: str, chosen: float) -> None:
    assert nearest(wanted, offered) == chosen


@pytest.mark.parametrize(
    ("rate", "offered", "written"),
    [
        (1_000_000, "", "1000000"),
        (0.00005, "", "0.00005"),
        (100_000, "26.041667 119047.619047", "119047.619047"),
        (30, "26.041667 52.083333", "26.041667"),
        (0.3, "[0.1 0.1 1]", "0.3"),
    ],
)
def test_a_rate_is_written_as_the_kernel_reads_it(
    board: Board, open_device: Open, rate: float, offered: str, written: str
) -> None:
    folder = board.add(0, ACCELEROMETER | {"in_accel_sampling_frequency_available": offered})
    open_device(rate=rate)
    assert state(folder)["in_accel_sampling_frequency"] == written


@pytest.mark.parametrize(
    ("channel", "files", "expected"),
    [
        ("accel_x", {"in_accel_scale": "2", "in_accel_x_offset": "3"}, (3, 2)),
        ("accel_x", {"in_accel_scale": "2", "in_accel_x_scale": "4"}, (0, 4)),
        ("voltage0", {"in_voltage_scale": "5"}, (0, 5)),
        ("voltage0-voltage1", {"in_voltage-voltage_scale": "6"}, (0, 6)),
        ("temp", {}, (0, 1)),
    ],
)
def test_the_calibration_of_a_channel_may_be_shared(
    board: Board, channel: str, files: dict[str, str], expected: tuple[float, float]
) -> None:
    folder = board.add(0, {"name": "x", **files}, node=False)
    assert Device(folder, board.root).calibration(channel) == expected
