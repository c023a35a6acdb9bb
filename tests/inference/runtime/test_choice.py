"""Which runtime is chosen for the Edge TPU, and what is remembered of it.

What a child would answer is scripted, except at the end.
"""

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from edge_agent.inference.accelerators.devices import GET_LIBRARY
from edge_agent.inference.runtime.choice import MAX_PAIRS, Choice, RuntimeChoice
from edge_agent.inference.runtime.probe import Library, Listing, Trial
from edge_agent.inference.runtime.runtimes import RUNTIMES
from tests.inference.conftest import DEMO_MODEL
from tests.standin import build, models, pycoral

LITERT, TFLITE, PYCORAL = RUNTIMES
WORKS = Trial("works")
CRASH = Trial("mismatch", "SIGSEGV while allocating tensors")
UNRESOLVED = Trial("mismatch", "running the model: Encountered an unresolved custom op")
AWAY = Trial("trouble", "opening the Edge TPU: Failed to load delegate from libedgetpu.so.1")


class Machine:
    """A machine with runtimes and a library, and a script of what comes of trying them."""

    def __init__(self, folder: Path, *runtimes: str) -> None:
        self.file = folder / "libedgetpu.so.1.0"
        self.file.write_bytes(b"16.0")
        self.memory = folder / "runtimes.json"
        self.runtimes = runtimes
        self.numpy = "2.4.6"
        self.script: list[Trial] = []
        self.tried: list[str] = []
        self.listed: list[str] = []
        self.choice = self.restart()

    def restart(self) -> RuntimeChoice:
        """Begin anew with what the file remembers."""
        self.choice = RuntimeChoice(self.memory, listing=self._list, trying=self._try)
        return self.choice

    async def _list(self, name: str) -> Listing:
        self.listed.append(name)
        if name not in self.runtimes:
            return Listing(name, problem=f"{name} is not installed")
        library, problem = None, "libedgetpu.so.1: cannot open shared object file"
        if self.file.exists():
            found = self.file.stat()
            library = Library(str(self.file), found.st_size, found.st_mtime_ns, "libedgetpu1-std 16.0")
        return Listing(name, "1.0", self.numpy, library=library, library_problem="" if library else problem)

    async def _try(self, runtime: str, model_path: str, device: str, options: Mapping[str, str]) -> Trial:
        assert (model_path, device, options) == ("m.tflite", "usb:0", {"Performance": "Low"})
        self.tried.append(runtime)
        return self.script.pop(0)

    def choose(self, *script: Trial, wanted: str = "auto") -> Choice:
        """What is chosen when trying goes like this; all of the script has to be used up."""
        self.script, self.tried = list(script), []
        choice = asyncio.run(self.choice.choose(wanted, "m.tflite", "usb:0", {"Performance": "Low"}))
        assert self.script == []
        return choice

    @property
    def library(self) -> str:
        return f"libedgetpu1-std 16.0 at {self.file}"


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, LITERT, TFLITE)


# ------------------------------------------------------------------------------------------ which one


def test_the_first_runtime_that_works_is_taken(machine: Machine) -> None:
    assert machine.choose(WORKS) == Choice(LITERT)
    assert machine.tried == [LITERT]
    assert machine.listed == [LITERT]


def test_one_that_does_not_fit_is_tried_twice_and_passed_over(machine: Machine) -> None:
    with capture_logs() as logs:
        assert machine.choose(CRASH, UNRESOLVED, WORKS) == Choice(TFLITE)
    assert machine.tried == [LITERT, LITERT, TFLITE]
    assert {
        "event": "runtime does not fit the Edge TPU's library",
        "log_level": "warning",
        "runtime": f"{LITERT} 1.0",
        "reason": UNRESOLVED.detail,
        "instead": f"{TFLITE} 1.0",
    } in logs


def test_what_happens_once_is_not_believed(machine: Machine) -> None:
    assert machine.choose(CRASH, WORKS) == Choice(LITERT)
    assert machine.choose() == Choice(LITERT)


def test_where_none_fits_the_edge_tpu_is_not_touched(machine: Machine) -> None:
    assert machine.choose(CRASH, CRASH, UNRESOLVED, UNRESOLVED) == Choice(
        LITERT,
        problem=(
            f"{LITERT} 1.0 ({CRASH.detail}) and {TFLITE} 1.0 ({UNRESOLVED.detail}) "
            f"do not get along with {machine.library}; {GET_LIBRARY}"
        ),
    )


def test_a_runtime_that_was_asked_for_is_tried_and_not_replaced(machine: Machine) -> None:
    assert machine.choose(CRASH, CRASH, wanted=TFLITE) == Choice(
        TFLITE, problem=f"{TFLITE} 1.0 ({CRASH.detail}) does not get along with {machine.library}; {GET_LIBRARY}"
    )
    assert machine.tried == [TFLITE, TFLITE]
    assert machine.choose(WORKS, wanted=LITERT) == Choice(LITERT)


def test_what_is_not_installed_is_passed_over_or_named(tmp_path: Path) -> None:
    machine = Machine(tmp_path, PYCORAL)
    assert machine.choose(WORKS) == Choice(PYCORAL)
    assert machine.choose(wanted=TFLITE) == Choice(
        TFLITE, problem=f"[inference].runtime is {TFLITE!r}, but {TFLITE} is not installed"
    )
    machine.runtimes = ()
    machine.restart()
    assert machine.choose() == Choice(
        "auto",
        problem="no TensorFlow Lite runtime can be used: "
        + "; ".join(f"{name} is not installed" for name in (LITERT, TFLITE, PYCORAL)),
    )


def test_without_the_library_there_is_nothing_to_try(machine: Machine) -> None:
    machine.file.unlink()
    missing = "the Edge TPU's library cannot be loaded (libedgetpu.so.1: cannot open shared object file)"
    assert machine.choose() == Choice(LITERT, problem=f"{missing}; {GET_LIBRARY}")
    machine.file.write_bytes(b"16.0")
    assert machine.choose(WORKS) == Choice(LITERT)


# ------------------------------------------------------------------------------------------ what is remembered


def test_where_nothing_may_be_tried_only_what_is_known_counts(machine: Machine) -> None:
    asked = ("auto", "m.tflite", "", dict[str, str]())
    assert asyncio.run(machine.choice.choose(*asked, may_try=False)) == Choice(LITERT, trouble="it was not tried")
    assert machine.tried == []
    machine.choose(CRASH, CRASH, WORKS)
    assert asyncio.run(machine.choice.choose(*asked, may_try=False)) == Choice(TFLITE)


def test_a_verdict_outlives_the_process(machine: Machine) -> None:
    machine.choose(CRASH, CRASH, WORKS)
    machine.restart()
    assert machine.choose() == Choice(TFLITE)
    assert "SIGSEGV while allocating tensors" in machine.choose(wanted=LITERT).problem


def test_trouble_with_the_device_is_not_remembered(machine: Machine) -> None:
    assert machine.choose(AWAY) == Choice(LITERT, trouble=AWAY.detail)
    assert not machine.memory.exists()
    assert machine.choose(WORKS) == Choice(LITERT)


def test_a_device_that_hangs_as_it_is_tried_is_told(machine: Machine) -> None:
    hung = Trial("trouble", "running the model has taken longer than 1m30s", hung=True)
    assert machine.choose(hung) == Choice(LITERT, trouble=hung.detail, hung=True)
    assert not machine.memory.exists()


def test_a_crash_counts_although_the_device_was_away_after_it(machine: Machine) -> None:
    assert machine.choose(CRASH, AWAY) == Choice(LITERT, trouble=AWAY.detail)
    assert machine.choose(CRASH, WORKS) == Choice(TFLITE)


@pytest.mark.parametrize("change", ["size", "time", "numpy"])
def test_what_is_installed_anew_is_tried_anew(machine: Machine, change: str) -> None:
    machine.choose(CRASH, CRASH, wanted=LITERT)
    before = machine.file.stat()
    if change == "size":
        machine.file.write_bytes(b"16.0TF2.17.1")
        os.utime(machine.file, ns=(0, before.st_mtime_ns))
    elif change == "time":
        os.utime(machine.file, ns=(0, before.st_mtime_ns + 1))
    else:
        machine.numpy = "1.26.4"
        machine.restart()
    assert machine.choose(WORKS, wanted=LITERT) == Choice(LITERT)


def test_a_reload_tries_again_what_did_not_fit_and_only_that(machine: Machine) -> None:
    machine.choose(CRASH, CRASH, WORKS)
    machine.listed.clear()
    asyncio.run(machine.choice.forget())
    assert machine.choose(CRASH, CRASH) == Choice(TFLITE)
    assert machine.listed == [LITERT, TFLITE]


def test_the_oldest_verdicts_go(machine: Machine) -> None:
    for number in range(MAX_PAIRS + 1):
        machine.numpy = str(number)
        machine.restart()
        machine.choose(WORKS)
    kept = msgspec.json.decode(machine.memory.read_bytes())
    assert [verdict["pair"]["numpy"] for verdict in kept] == [str(number) for number in range(1, MAX_PAIRS + 1)]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[", b"{}", b'[{"pair": 1}]'])
def test_a_damaged_memory_is_an_empty_one(machine: Machine, content: bytes) -> None:
    machine.memory.write_bytes(content)
    with capture_logs() as logs:
        assert machine.choose(WORKS) == Choice(LITERT)
    assert [line["file"] for line in logs if line["event"] == "what was known of runtimes cannot be read"] == [
        str(machine.memory)
    ]
    machine.restart()
    assert machine.choose() == Choice(LITERT)


def test_a_memory_that_cannot_be_written_lasts_as_long_as_the_process(machine: Machine, tmp_path: Path) -> None:
    machine.memory = tmp_path / "nowhere/runtimes.json"
    machine.restart()
    with capture_logs() as logs:
        assert machine.choose(WORKS) == Choice(LITERT)
    assert "what is known of runtimes cannot be kept" in [line["event"] for line in logs]
    assert machine.choose() == Choice(LITERT)


# ------------------------------------------------------------------------------------------ with real children


def test_real_runtimes_are_tried_on_the_library(
    edgetpu_standin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled, log = tmp_path / "compiled.tflite", tmp_path / "log"
    compiled.write_bytes(models.edgetpu_model(DEMO_MODEL.read_bytes()))
    for name, value in build.environment(edgetpu_standin, "mismatch_segv", log=log).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", str(pycoral.googles(tmp_path / "site")))

    async def scenario() -> None:
        choice = RuntimeChoice(tmp_path / "runtimes.json")
        found = await choice.choose("auto", str(compiled), "usb", {})
        assert found.runtime == LITERT
        assert f"do not get along with {edgetpu_standin / 'libedgetpu.so.1'}; {GET_LIBRARY}" in found.problem
        assert found.problem.count("SIGSEGV while allocating tensors") == 2
        monkeypatch.setenv("EDGETPU_STANDIN_MODE", "ok")
        assert await choice.choose("auto", str(compiled), "usb", {}) == found
        await choice.forget()
        assert await choice.choose(PYCORAL, str(compiled), "usb", {}) == Choice(PYCORAL)
        assert await choice.choose("auto", str(compiled), "usb", {}) == Choice(LITERT)

    asyncio.run(scenario())
    assert [event["event"] for event in build.read_log(log)] == ["create"] * 4 + ["create", "release", "destroy"] * 2
