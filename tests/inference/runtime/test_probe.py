"""Runtimes and the Edge TPU's library, tried in real children on the stand-in for that library."""

import asyncio
import ctypes.util
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edge_agent.inference.checks.throwaway import NoAnswerError
from edge_agent.inference.runtime import probe as runtime_probe
from edge_agent.inference.runtime.probe import Library, Listing, Trial, list_runtime, try_pair
from edge_agent.inference.runtime.runtimes import find_runtime
from tests.inference.conftest import DEMO_MODEL
from tests.standin import build, models, pycoral

LITERT = "ai-edge-litert"
Use = Callable[..., None]


@pytest.fixture
def edgetpu(edgetpu_standin: Path, monkeypatch: pytest.MonkeyPatch) -> Use:
    """Set the stand-in's mode for all children that are started from now on."""

    def use(mode: str = "ok", *, log: Path | str = "", devices: Sequence[tuple[str, Path]] = ()) -> None:
        for name, value in build.environment(edgetpu_standin, mode, log=log, devices=devices).items():
            monkeypatch.setenv(name, value)

    use()
    return use


@pytest.fixture
def compiled(tmp_path: Path) -> str:
    """The demo model as the Edge TPU compiler would leave it."""
    path = tmp_path / "vibration_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    return str(path)


def tried(model: str, device: str = "", runtime: str = LITERT, **options: str) -> Trial:
    return asyncio.run(try_pair(runtime, model, device, options))


# ------------------------------------------------------------------------------------------ what there is


def test_a_runtime_and_the_library_are_described(edgetpu: Use, edgetpu_standin: Path) -> None:
    import numpy as np  # noqa: PLC0415  for its version only

    found = asyncio.run(list_runtime(LITERT))

    file = (edgetpu_standin / "libedgetpu.so.1").stat()
    assert found == Listing(
        LITERT,
        find_runtime().version,
        np.__version__,
        library=Library(str(edgetpu_standin / "libedgetpu.so.1"), file.st_size, file.st_mtime_ns),
    )


def test_the_library_is_known_by_the_file_behind_its_links(
    edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "libedgetpu.so.1").symlink_to(edgetpu_standin / "libedgetpu.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))

    library = asyncio.run(list_runtime(LITERT)).library

    assert library is not None
    assert library.path == str(edgetpu_standin / "libedgetpu.so.1")


def test_the_library_is_named_by_its_package(
    edgetpu: Use, edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(edgetpu_standin / "libedgetpu.so.1")
    dpkg = tmp_path / "dpkg-query"
    dpkg.write_text(
        '#!/bin/sh\ncase "$*" in\n'
        f'"--search {path}") echo "libedgetpu1-std:arm64: {path}" ;;\n'
        '"--show --showformat=\\${Package} \\${Version} libedgetpu1-std:arm64") printf "libedgetpu1-std 16.0" ;;\n'
        "*) exit 1 ;;\nesac\n"
    )
    dpkg.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    library = asyncio.run(list_runtime(LITERT)).library

    assert str(library) == f"libedgetpu1-std 16.0 at {path}"


@pytest.mark.skipif(ctypes.util.find_library("edgetpu") is not None, reason="libedgetpu is installed here")
def test_a_missing_library_is_told_as_the_linker_tells_it() -> None:
    found = asyncio.run(list_runtime(LITERT))

    assert found.problem == ""
    assert found.library is None
    assert found.library_problem == "libedgetpu.so.1: cannot open shared object file: No such file or directory"


def test_a_changed_library_is_another_one(tmp_path: Path) -> None:
    file = tmp_path / "libedgetpu.so.1"
    file.write_bytes(b"library")
    library = Library(str(file), 7, file.stat().st_mtime_ns)
    assert library.is_unchanged

    os.utime(file, ns=(0, library.modified_ns + 1))
    assert not library.is_unchanged
    os.utime(file, ns=(0, library.modified_ns))
    assert library.is_unchanged
    file.unlink()
    assert not library.is_unchanged


def test_a_runtime_that_is_not_what_it_seems_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pycoral.pypis(tmp_path)))

    found = asyncio.run(list_runtime("pycoral"))

    assert found.problem.startswith("the installed pycoral 0.2.0 ('Simple CLI for Allen Coral Atlas') is not Google's")


def test_a_runtime_that_crashes_as_it_is_imported_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As one that was built for a newer processor.
    crash = "import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n"
    (tmp_path / "tflite_runtime").mkdir()
    (tmp_path / "tflite_runtime/__init__.py").write_text(crash)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert asyncio.run(list_runtime("tflite-runtime")).problem == (
        "tflite-runtime cannot be used: the process that looked at it was killed by SIGILL; "
        "its last lines: probe: importing the runtime"
    )


# ------------------------------------------------------------------------------------------ whether it works


def test_a_pair_that_works_gives_the_device_back_in_order(edgetpu: Use, compiled: str, tmp_path: Path) -> None:
    node = tmp_path / "004"
    node.touch()
    edgetpu(devices=[("usb", node)], log=tmp_path / "log")

    assert tried(compiled, "usb:0", Performance="Low") == Trial("works")

    events = build.read_log(tmp_path / "log")
    assert [event["event"] for event in events] == ["create", "release", "destroy"]
    assert events[0]["options"] == {"Performance": "Low", "device": "usb:0"}
    assert events[-1]["kernels"] == 0


def test_pycoral_is_tried_as_itself(
    edgetpu: Use, compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(pycoral.googles(tmp_path / "site")))
    node = tmp_path / "apex_0"
    node.touch()
    edgetpu(devices=[("pci", node)])

    assert tried(compiled, "pci", "pycoral") == Trial("works")
    assert tried(compiled, "usb", "pycoral") == Trial(
        "trouble",
        f"opening the Edge TPU: no Edge TPU is plugged in; PyCoral sees pci {node}",
    )


@pytest.mark.parametrize(
    ("mode", "detail"),
    [
        ("mismatch_segv", "SIGSEGV while allocating tensors"),
        (
            "mismatch_unresolved",
            (
                "running the model: Encountered an unresolved custom op. Did you miss a custom op or delegate?"
                "Node number 1 (EdgeTpuDelegateForCustomOp) failed to invoke."
            ),
        ),
        ("segv", "SIGSEGV while running the model"),
    ],
)
def test_a_library_for_another_runtime_is_recognised(edgetpu: Use, compiled: str, mode: str, detail: str) -> None:
    edgetpu(mode)

    assert tried(compiled) == Trial("mismatch", detail)


@pytest.mark.parametrize(
    ("mode", "detail"),
    [
        ("absent", "opening the Edge TPU: no Edge TPU is plugged in"),
        ("fail", "running the model: edgetpu stand-in: this invoke fails"),
        ("abort", "the process that tried it was killed by SIGABRT; its last lines: probe: allocating tensors | "),
    ],
)
def test_trouble_with_the_device_says_nothing_of_the_pair(edgetpu: Use, compiled: str, mode: str, detail: str) -> None:
    edgetpu(mode)

    trial = tried(compiled)

    assert trial.verdict == "trouble"
    assert trial.detail.startswith(detail)


def test_an_operation_that_the_runtime_does_not_know_says_nothing_of_the_pair(edgetpu: Use, tmp_path: Path) -> None:
    path = tmp_path / "m_edgetpu.tflite"
    path.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes(), then=b"TransposeBias"))

    trial = tried(str(path))

    assert trial.verdict == "trouble"
    assert trial.detail.startswith("allocating tensors: Encountered unresolved custom op: TransposeBias.")


def test_a_device_that_hangs_is_given_up(edgetpu: Use, compiled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edgetpu("hang")
    monkeypatch.setattr(runtime_probe, "TRY_DEADLINE", 1.0)

    trial = tried(compiled)

    assert trial.verdict == "trouble"
    assert re.search(
        r"^running the model has taken longer than 1s$|^the process that tried it .* within 1s", trial.detail
    )


@pytest.mark.parametrize(
    ("stage", "late", "hung"),
    [
        ("running the model", True, True),
        ("opening the Edge TPU", True, True),
        ("importing the runtime", True, False),
        ("running the model", False, False),
    ],
)
def test_what_stands_still_with_the_library_at_work_has_hung(
    monkeypatch: pytest.MonkeyPatch, *, stage: str, late: bool, hung: bool
) -> None:
    async def ask(*_: object, **__: object) -> None:
        raise NoAnswerError("did not finish within 1m30s", late=late, errors=f"probe: reading\nprobe: {stage}\n")

    monkeypatch.setattr(runtime_probe, "ask", ask)

    told = f"{stage} has taken longer than 1m30s" if hung else "the process that tried it did not finish within 1m30s"
    assert tried("m.tflite") == Trial("trouble", told, hung=hung)


def test_a_file_that_is_no_model_says_nothing_of_the_pair(edgetpu: Use, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"no model")

    trial = tried(str(tmp_path / "x"))

    assert trial.verdict == "trouble"
    assert trial.detail.startswith("reading the model: ")


def test_a_crash_before_the_library_is_at_work_is_no_mismatch(
    edgetpu: Use, compiled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As tflite-runtime crashes on many files that are cut short.
    crash = "import os\n\ndef Interpreter(model_path=None, **_):\n    model_path and os.kill(os.getpid(), 11)\n"
    (tmp_path / "tflite_runtime").mkdir()
    (tmp_path / "tflite_runtime/__init__.py").touch()
    (tmp_path / "tflite_runtime/interpreter.py").write_text(crash)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    assert tried(compiled, runtime="tflite-runtime") == Trial(
        "trouble",
        "the process that tried it was killed by SIGSEGV; its last lines: "
        "probe: importing the runtime | probe: reading the model",
    )


def test_being_given_up_by_the_asker_ends_the_child(edgetpu: Use, compiled: str, tmp_path: Path) -> None:
    edgetpu("hang", log=tmp_path / "log")

    async def scenario() -> None:
        asking = asyncio.create_task(try_pair(LITERT, compiled, "", {}))
        async with asyncio.timeout(60):
            while not build.read_log(tmp_path / "log"):  # noqa: ASYNC110  a file cannot notify
                await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scenario())
    [created] = build.read_log(tmp_path / "log")
    assert not Path(f"/proc/{created['pid']}").exists()
