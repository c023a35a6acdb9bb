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

UNPLUGGED = (
    "RuntimeError: edgetpu stand-in: the device was unplugged"
    "Node number 1 (EdgeTpuDelegateForCustomOp) failed to invoke."
)

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


def resume(child: subprocess.Popen[str]) -> None:
    """Let the child go on behind its `pause`."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


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


@pytest.fixture
def three(tmp_path: Path) -> list[tuple[str, Path]]:
    """Two devices on USB and one on PCIe, as nodes in a folder."""
    nodes = [("usb", tmp_path / "004"), ("pci", tmp_path / "apex_0"), ("usb", tmp_path / "005")]
    for _, node in nodes:
        node.touch()
    return nodes


def held_by(child: subprocess.Popen[str], among: list[tuple[str, Path]]) -> list[str]:
    """The names of the nodes that the process has open."""
    files = [str(entry.readlink()) for entry in Path(f"/proc/{child.pid}/fd").iterdir()]
    return sorted(node.name for _, node in among for file in files if file == str(node))


@pytest.mark.parametrize(
    ("device", "held"),
    [
        ("", "apex_0"),
        (":0", "004"),
        (":1", "apex_0"),
        (":2", "005"),
        ("usb", "004"),
        ("usb:1", "005"),
        ("pci:0", "apex_0"),
        (":3", None),
        ("usb:2", None),
        ("pci:1", None),
    ],
)
def test_several_devices(edgetpu_standin: Path, three: list[tuple[str, Path]], device: str, held: str | None) -> None:
    with running(build.environment(edgetpu_standin, devices=three), f"open={device}", "wait") as child:
        assert next_line(child).get("error") == (None if held else ABSENT)
        assert held_by(child, three) == ([held] if held else [])
        child.communicate(timeout=60)


def test_a_listed_device_is_open_once_and_as_long_as_it_is_used(
    edgetpu_standin: Path, three: list[tuple[str, Path]]
) -> None:
    steps = ["open=usb", "open=usb:0", "pause", "close", "pause"]

    with running(build.environment(edgetpu_standin, devices=three), *steps) as child:
        assert ["error" in next_line(child) for _ in range(2)] == [False] * 2
        assert held_by(child, three) == ["004"]
        resume(child)
        assert [next_line(child)["step"] for _ in range(2)] == ["pause", "close"]
        assert held_by(child, three) == []
        resume(child)
        assert child.wait(60) == 0


def test_one_of_several_devices_is_unplugged_and_comes_back(
    edgetpu_standin: Path, model: str, three: list[tuple[str, Path]]
) -> None:
    environment = build.environment(edgetpu_standin, devices=three)
    steps = ["open=usb", f"load={model}", "invoke=0", "pause", "invoke=0", "close", "open=usb", "pause", "open=usb"]

    with running(environment, *steps) as child:
        assert ["error" in next_line(child) for _ in range(3)] == [False] * 3
        three[0][1].unlink()
        resume(child)
        assert [next_line(child).get("error", "") for _ in range(4)][1:] == [UNPLUGGED, "", ABSENT]
        three[0][1].touch()
        resume(child)
        assert ["error" in next_line(child) for _ in range(2)] == [False] * 2
        assert child.wait(60) == 0


def test_exclusive_is_a_matter_of_each_listed_device(edgetpu_standin: Path, three: list[tuple[str, Path]]) -> None:
    environment = build.environment(edgetpu_standin, "exclusive", devices=three)

    with running(environment, "open=usb:0", "wait") as owner:
        next_line(owner)
        _, lines = run(environment, "open=usb:0", "open=usb:1", "open=pci")
        owner.communicate(timeout=60)

    assert ["error" in line for line in lines] == [True, False, False]


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


def test_a_driver_for_another_runtime_crashes_as_tensors_are_allocated(edgetpu_standin: Path, model: str) -> None:
    status, lines = run(build.environment(edgetpu_standin, "mismatch_segv"), "open=", f"load={model}")

    assert status == -signal.SIGSEGV
    assert [line["step"] for line in lines] == ["open="]


def test_a_driver_for_another_runtime_may_leave_the_operation_unresolved(edgetpu_standin: Path, model: str) -> None:
    environment = build.environment(edgetpu_standin, "mismatch_unresolved")

    status, lines = run(environment, "open=", f"load={model}", "invoke=0")

    assert status == 0
    assert [line["step"] for line in lines if "error" in line] == ["invoke=0"]
    assert "Encountered an unresolved custom op. Did you miss a custom op or delegate?" in errors(lines)[0]


def test_the_state_goes_before_the_mode_while_its_file_is_there(
    edgetpu_standin: Path, model: str, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    environment = build.environment(edgetpu_standin, state=state, after=1000)
    opened = ["open=", f"load={model}"]

    with running(environment, *opened, "invoke=0", "pause", "invoke=0", "pause", *opened, "invoke=0") as child:
        assert ["error" in next_line(child) for _ in range(3)] == [False] * 3
        state.write_text("fail\n")
        resume(child)
        next_line(child)
        assert "this invoke fails" in next_line(child)["error"]
        state.unlink()
        resume(child)
        assert ["error" in next_line(child) for _ in range(4)] == [False] * 4
        assert child.wait(60) == 0


@pytest.mark.parametrize("mode", ["absent", "stuck"])
def test_no_delegate_in_these_states(edgetpu_standin: Path, tmp_path: Path, mode: str) -> None:
    (tmp_path / "state").write_text(mode)

    _, lines = run(build.environment(edgetpu_standin, state=tmp_path / "state"), "open=")

    assert errors(lines) == [ABSENT]


@pytest.mark.parametrize(("mode", "number"), [("abort", signal.SIGABRT), ("stuck", signal.SIGKILL)])
def test_states_that_end_a_running_process(
    edgetpu_standin: Path, model: str, tmp_path: Path, mode: str, number: signal.Signals
) -> None:
    environment = build.environment(edgetpu_standin, state=tmp_path / "state")

    with running(environment, "open=", f"load={model}", "invoke=0", "pause", "invoke=0", "wait") as child:
        for _ in range(3):
            next_line(child)
        (tmp_path / "state").write_text(mode)
        resume(child)
        next_line(child)
        if mode == "stuck":
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(0.3)
            child.kill()
        assert child.wait(60) == -number


def test_the_log_tells_options_failures_and_the_order_of_closing(
    edgetpu_standin: Path, model: str, three: list[tuple[str, Path]], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    environment = build.environment(edgetpu_standin, "fail", after=1, devices=three, log=log)

    run(environment, "open=usb:9", "open=usb:1", f"load={model}", "invoke=0", "invoke=0", "close")

    events = build.read_log(log)
    assert len({event.pop("pid") for event in events}) == 1
    assert events == [
        {"event": "refuse", "options": {"device": "usb:9"}},
        {"event": "create", "delegate": 1, "options": {"device": "usb:1"}, "node": str(three[2][1])},
        {"event": "fail", "delegate": 1},
        {"event": "release", "delegate": 1},
        {"event": "destroy", "delegate": 1, "kernels": 0},
    ]


def test_the_log_tells_the_wrong_order_of_closing(edgetpu_standin: Path, model: str, tmp_path: Path) -> None:
    log = tmp_path / "log"

    run(build.environment(edgetpu_standin, log=log), "open=", f"load={model}", "close_wrongly")

    assert [(event["event"], event.get("kernels")) for event in build.read_log(log)] == [
        ("create", None),
        ("destroy", 1),
        ("release", None),
    ]


def test_the_log_is_json_whatever_the_options_hold(edgetpu_standin: Path, tmp_path: Path) -> None:
    run(build.environment(edgetpu_standin, log=tmp_path / "log"), 'open="\\\n')

    assert [event["options"] for event in build.read_log(tmp_path / "log")] == [{"device": '"\\\n'}]


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
