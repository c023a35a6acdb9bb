"""The stand-in through LiteRT itself: each mode does what `edgetpu_standin.c` says, in a process of its own."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from tests.standin import build, models

CHILD = Path(__file__).with_name("child.py")
ROOT = Path(__file__).parents[2]
DEMO_MODEL = ROOT / "edge_agent" / "demo" / "vibration_classifier.tflite"
CORAL_MODELS = ROOT.parent / "shared" / "models"
ABSENT = "ValueError: Failed to load delegate from libedgetpu.so.1\n"

Lines = list[dict[str, Any]]


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "vibration_classifier_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return str(path)


def run(environment: dict[str, str], *steps: str) -> tuple[int, Lines]:
    """The child's exit status and what it printed."""
    command = [sys.executable, str(CHILD), *steps]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


@contextmanager
def running(environment: dict[str, str], *steps: str) -> Iterator[subprocess.Popen[str]]:
    """The child while it runs; whatever is left of it in the end is killed."""
    command = [sys.executable, str(CHILD), *steps]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def next_line(child: subprocess.Popen[str]) -> dict[str, Any]:
    assert child.stdout is not None
    line: dict[str, Any] = json.loads(child.stdout.readline())
    return line


def one_hot(count: int, best: int) -> list[float]:
    return [255.0 if index == best else 0.0 for index in range(count)]


def outputs(lines: Lines) -> list[Any]:
    return [line["output"] for line in lines if "output" in line and line["step"].startswith("invoke")]


def errors(lines: Lines) -> list[str]:
    return [line["error"] for line in lines if "error" in line]


def test_the_sum_of_the_input_says_which_class_wins(edgetpu_standin: Path, model: str) -> None:
    status, lines = run(
        build.environment(edgetpu_standin), "open=", f"load={model}", *(f"invoke={value}" for value in range(6))
    )

    assert status == 0
    assert outputs(lines) == [one_hot(3, 128 * value % 3) for value in range(6)]


@pytest.mark.parametrize(
    ("tensor_type", "lowest", "highest"),
    [(schema.TensorType.INT8, -128.0, 127.0), (schema.TensorType.FLOAT32, 0.0, 1.0)],
)
def test_other_output_types(
    edgetpu_standin: Path, tmp_path: Path, tensor_type: int, lowest: float, highest: float
) -> None:
    path = tmp_path / "other_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes(), output_type=tensor_type))

    status, lines = run(build.environment(edgetpu_standin), "open=", f"load={path}", "invoke=2")

    assert status == 0
    assert outputs(lines) == [[lowest, highest, lowest]]


def test_an_output_type_it_cannot_fill_is_refused(edgetpu_standin: Path, tmp_path: Path) -> None:
    path = tmp_path / "other_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes(), output_type=schema.TensorType.INT64))

    _, lines = run(build.environment(edgetpu_standin), "open=", f"load={path}")

    assert "output 0 has type 4, which it cannot fill" in errors(lines)[0]


def test_a_plain_model_is_left_to_the_cpu(edgetpu_standin: Path) -> None:
    steps = [f"invoke={value}" for value in (40, 120, 240)]

    _, with_driver = run(build.environment(edgetpu_standin), "open=", f"load={DEMO_MODEL}", *steps)
    _, without = run(build.environment(edgetpu_standin), f"plain={DEMO_MODEL}", *steps)

    assert outputs(with_driver) == outputs(without)
    assert len(outputs(without)) == 3


@pytest.mark.parametrize("device", ["", ":0", "usb", "usb:0", "pci", "pci:0"])
def test_devices_that_exist(edgetpu_standin: Path, model: str, device: str) -> None:
    status, lines = run(build.environment(edgetpu_standin), f"open={device}", f"load={model}", "invoke=0")

    assert status == 0
    assert outputs(lines) == [one_hot(3, 0)]


@pytest.mark.parametrize("device", [":1", "usb:1", "pci:7", "tpu", "usb:", "USB"])
def test_devices_that_do_not_exist(edgetpu_standin: Path, device: str) -> None:
    _, lines = run(build.environment(edgetpu_standin), f"open={device}")

    assert errors(lines) == [ABSENT]


def test_absent_gives_no_reason(edgetpu_standin: Path) -> None:
    status, lines = run(build.environment(edgetpu_standin, "absent"), "open=", "open=")

    assert status == 0
    assert errors(lines) == [ABSENT, ABSENT]


def test_slow_takes_its_time_at_each_invoke(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "slow", delay_ms=60)

    _, lines = run(environment, "open=", f"load={model}", "invoke=0", "invoke=1")

    assert outputs(lines) == [one_hot(3, 0), one_hot(3, 2)]
    assert all(line["seconds"] >= 0.06 for line in lines[2:])


def test_slow_open_takes_its_time_when_opened(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "slow_open", delay_ms=1100)

    _, lines = run(environment, "open=", f"load={model}", "invoke=0")

    assert lines[0]["seconds"] >= 1.1
    assert outputs(lines) == [one_hot(3, 0)]


def test_fail_fails_after_so_many_invokes_and_can_be_opened_again(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "fail", after=2)
    opened = ["open=", f"load={model}"]

    status, lines = run(environment, *opened, *["invoke=0"] * 4, "close", *opened, "invoke=0")

    assert status == 0
    assert outputs(lines) == [one_hot(3, 0)] * 2
    assert [line["step"] for line in lines if "error" in line] == ["invoke=0"] * 3
    assert all("(EdgeTpuDelegateForCustomOp) failed to invoke" in error for error in errors(lines))


def test_unplug_fails_for_good(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "unplug", after=1)

    status, lines = run(environment, "open=", f"load={model}", *["invoke=0"] * 3, "close", "open=")

    assert status == 0
    assert outputs(lines) == [one_hot(3, 0)]
    assert [line["step"] for line in lines if "error" in line] == ["invoke=0", "invoke=0", "open="]
    assert errors(lines)[-1] == ABSENT


@pytest.mark.parametrize(("mode", "signal_number"), [("abort", signal.SIGABRT), ("segv", signal.SIGSEGV)])
@pytest.mark.parametrize("after", [0, 3])
def test_abort_and_segv_end_the_process(
    edgetpu_standin: Path, model: str, mode: str, signal_number: signal.Signals, after: int
) -> None:
    environment = build.environment(edgetpu_standin, mode, after=after)

    status, lines = run(environment, "open=", f"load={model}", *["invoke=0"] * (after + 1))

    assert status == -signal_number
    assert outputs(lines) == [one_hot(3, 0)] * after


def test_hang_never_returns(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "hang", after=1)

    with running(environment, "open=", f"load={model}", "invoke=0", "invoke=0") as child:
        assert [next_line(child)["step"] for _ in range(3)] == ["open=", f"load={model}", "invoke=0"]
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.kill()
        rest, _ = child.communicate(timeout=60)

    assert rest == ""
    assert child.returncode == -signal.SIGKILL


def test_exclusive_lets_one_process_in_at_a_time(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "exclusive")

    with running(environment, "open=", f"load={model}", "open=", "open=", "wait") as owner:
        assert all("error" not in next_line(owner) for _ in range(4))
        _, refused = run(environment, "open=")
        owner.communicate(timeout=60)
    _, welcome = run(environment, "open=", f"load={model}", "invoke=0", "close", "open=")

    assert errors(refused) == [ABSENT]
    assert owner.returncode == 0
    assert errors(welcome) == []
    assert outputs(welcome) == [one_hot(3, 0)]


def test_exclusive_is_free_again_when_an_attempt_had_failed_before(edgetpu_standin: Path) -> None:
    environment = build.environment(edgetpu_standin, "exclusive")

    with running(environment, "open=usb:1", "open=", "close", "wait") as owner:
        assert ["error" in next_line(owner) for _ in range(3)] == [True, False, False]
        _, lines = run(environment, "open=")

    assert errors(lines) == []


@pytest.mark.parametrize("ending", ["close", None])
def test_exclusive_is_free_again_when_closed_or_killed(edgetpu_standin: Path, ending: str | None) -> None:
    environment = build.environment(edgetpu_standin, "exclusive")
    steps = ["open=", *([ending] if ending else []), "wait"]

    with running(environment, *steps) as owner:
        for _ in steps[:-1]:
            next_line(owner)
        if ending is None:
            owner.kill()
            owner.wait(60)
        _, lines = run(environment, "open=")

    assert errors(lines) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("EDGETPU_STANDIN_MODE", "broken"),
        ("EDGETPU_STANDIN_AFTER", "-1"),
        ("EDGETPU_STANDIN_DELAY_MS", "1s"),
    ],
)
def test_a_wrong_setting_is_told(edgetpu_standin: Path, variable: str, value: str) -> None:
    environment = build.environment(edgetpu_standin) | {variable: value}

    _, lines = run(environment, "open=")

    assert variable in errors(lines)[0]


@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant_edgetpu", "mobilenet_v2_1.0_224_quant_edgetpu"])
def test_real_edge_tpu_models_run(edgetpu_standin: Path, name: str) -> None:
    path = CORAL_MODELS / f"{name}.tflite"
    if not path.exists():
        pytest.skip(f"{path.name} is not in {CORAL_MODELS}")
    size = int(np.prod(Interpreter(model_path=str(path)).get_input_details()[0]["shape"]))

    status, lines = run(build.environment(edgetpu_standin), "open=usb", f"load={path}", "invoke=0", "invoke=5")

    assert status == 0
    assert outputs(lines) == [one_hot(1001, 0), one_hot(1001, 5 * size % 1001)]
