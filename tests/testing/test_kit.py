"""The kit for authors of sources: what it lets pass, and every fault it is there to find."""

import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import pytest
from annotated_types import Ge

from edge_agent.records import Sample
from edge_agent.settings.units import Duration
from edge_agent.sources.base import Pacer, Source, SourceEnded, SourceError
from edge_agent.testing import Clock, WorkerDied, check_source, collect, contract, make, opened, run_in_worker
from tests.plugins.faulty import Aborting, Faulty


class Good(Source):
    """Counts to `total`; what its subclasses do differently is what the kit has to find."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        total: int = 5
        every: Annotated[Duration, Ge(0)] = 0.0
        device: str = ""

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.live = False
        self.options = options
        self.number = 0

    def open(self, resume: str | None) -> None:
        if self.options.device:
            raise SourceError(f"{self.options.device}: no such device", "plug it in")
        self.number = int(resume) if resume and resume.isdecimal() else 0

    def pass_over(self) -> None:
        self.number += 1
        self.skip_deadly(str(self.number))

    def read(self, timeout: float) -> Sample | None:
        if self.number == self.options.total:
            raise SourceEnded("all were read")
        self.number += 1
        return self.sample(np.full(3, self.number, np.float32))

    def sample(self, data: Any) -> Sample:
        return Sample(data, time.monotonic_ns(), str(self.number))


def test_a_good_source_passes() -> None:
    samples = check_source(Good, {"every": "10ms"}, count=3, broken={"device": "/dev/none"})
    assert [sample.data.tolist() for sample in samples] == [[n] * 3 for n in (1, 2, 3)]
    assert len(check_source(Good, {"total": 1})) == 1


def fault(source: type[Source], options: Mapping[str, Any] | None = None, **more: Any) -> str:
    with pytest.raises(AssertionError) as caught:
        check_source(source, options, **more)
    return str(caught.value)


def test_options_are_checked_as_the_admins_are() -> None:
    assert fault(Good, {"every": "soon"}).startswith("the options are refused: every: ")
    assert fault(Good, {"totl": 1}) == "the options are refused: totl: unknown key (did you mean 'total'?)"


def test_a_class_of_options_that_may_be_changed() -> None:
    class Loose(Good):
        @dataclass(kw_only=True)
        class Options:
            total: int = 5

    assert fault(Loose) == "Options must be frozen: @dataclass(frozen=True, kw_only=True)"


def test_options_by_position() -> None:
    class Positional(Good):
        @dataclass(frozen=True)
        class Options:
            total: int = 5

    assert fault(Positional) == "Options must be keyword-only (kw_only=True), total is not"


def test_live_has_to_be_set() -> None:
    class Undecided(Good):
        def __init__(self, options: Good.Options) -> None:
            super().__init__(options)
            del self.live

    assert fault(Undecided) == "__init__ must set self.live to True or False"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([1.0], "data must be a NumPy array, not list"),
        (np.zeros(3), "data must be float32, or uint8 for an image, not float64"),
        (np.zeros((4, 4), np.uint8), "uint8 is for images of shape (height, width, 3), not (4, 4)"),
        (np.zeros(0, np.float32), "data must not be empty"),
        (np.float32(1) + np.zeros((), np.float32), "data must be a NumPy array, not float32"),
    ],
    ids=["list", "float64", "grey image", "empty", "scalar"],
)
def test_data_of_a_wrong_kind(data: Any, message: str) -> None:
    class Strange(Good):
        def sample(self, _: Any) -> Sample:
            return super().sample(data)

    assert fault(Strange) == message


def test_an_image_passes() -> None:
    class Camera(Good):
        def sample(self, _: Any) -> Sample:
            return super().sample(np.full((4, 6, 3), self.number, np.uint8))

    assert check_source(Camera)[0].data.shape == (4, 6, 3)


def test_the_time_of_another_clock() -> None:
    class Wall(Good):
        def sample(self, data: Any) -> Sample:
            return Sample(data, time.time_ns(), str(self.number))

    assert fault(Wall).startswith("captured_ns must be time.monotonic_ns() of the capture, not ")


def test_an_array_that_is_used_again() -> None:
    class Reusing(Good):
        buffer = np.zeros(3, np.float32)

        def sample(self, _: Any) -> Sample:
            self.buffer[:] = self.number
            return super().sample(self.buffer)

    assert fault(Reusing) == "the array of sample 0 was changed after it was returned; copy it"


def test_a_recorded_source_without_positions() -> None:
    class Lost(Good):
        def sample(self, data: Any) -> Sample:
            return Sample(data, time.monotonic_ns())

    assert fault(Lost) == "a source with live = False must give each sample a position"


def test_a_source_that_does_not_go_on() -> None:
    class Forgetful(Good):
        def open(self, resume: str | None) -> None:
            super().open(None)

    assert fault(Forgetful) == "after open('1') the next sample must be the one behind it"


def test_a_position_that_it_cannot_use() -> None:
    class Strict(Good):
        def open(self, resume: str | None) -> None:
            self.number = int(resume or 0)

    with pytest.raises(ValueError, match="no position of this source"):
        check_source(Strict)


def test_passing_over_has_to_be_counted_and_to_go_one_further() -> None:
    class Silent(Good):
        def pass_over(self) -> None:
            self.number += 1

    class Stuck(Good):
        def pass_over(self) -> None:
            self.skip_deadly("0")

    assert fault(Silent) == "pass_over must count what it leaves out, with skip_deadly"
    assert fault(Stuck) == "after pass_over the next sample must be the second"


def test_a_source_that_cannot_be_opened_twice() -> None:
    class Once(Good):
        def open(self, resume: str | None) -> None:
            if self.number:
                raise RuntimeError("the port is open already")

    with pytest.raises(RuntimeError, match="the port is open already"):
        check_source(Once)


def test_a_close_that_needs_an_open() -> None:
    class Careless(Good):
        def open(self, resume: str | None) -> None:
            super().open(resume)
            self.port = threading.Lock()

        def close(self) -> None:
            del self.port

    with pytest.raises(AttributeError, match="port"):
        check_source(Careless)


def test_what_is_left_behind() -> None:
    class Leaking(Good):
        kept: ClassVar[list[Any]] = []

        def open(self, resume: str | None) -> None:
            super().open(resume)
            self.kept.append(os.memfd_create("leak"))

    class Threaded(Leaking):
        stop = threading.Event()

        def open(self, resume: str | None) -> None:
            Good.open(self, resume)
            thread = threading.Thread(target=self.stop.wait, name="reader", daemon=True)
            thread.start()
            self.kept.append(thread)

    class Forking(Leaking):
        def open(self, resume: str | None) -> None:
            Good.open(self, resume)
            self.kept.append(subprocess.Popen(["sleep", "600"]))

    assert fault(Leaking).startswith("close left files open: /memfd:leak")
    for descriptor in Leaking.kept:
        os.close(descriptor)
    Leaking.kept.clear()
    patience, contract.LEAK_PATIENCE = contract.LEAK_PATIENCE, 0.1
    try:
        assert fault(Threaded).startswith("close left threads behind: reader")
    finally:
        contract.LEAK_PATIENCE = patience
        Threaded.stop.set()
        for thread in Leaking.kept:
            thread.join()
        Leaking.kept.clear()
    assert fault(Forking).startswith("close left processes behind: ")
    for process in Leaking.kept:
        process.kill()
        process.wait()


def test_a_read_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    class Hanging(Good):
        def open(self, resume: str | None) -> None:
            # Opening itself has all the time it needs.
            monkeypatch.setattr(contract, "DEADLINE", 0.05)

        def read(self, timeout: float) -> Sample | None:
            release.wait()
            return None

    try:
        assert fault(Hanging) == "read did not come back within 0.1 s"
    finally:
        release.set()


def test_broken_options_must_break_it() -> None:
    assert fault(Good, broken={"total": 5}) == "with the broken options it raised no SourceError"
    assert fault(Good, broken={"total": 0}) == "with the broken options it raised no SourceError"


# -- the smaller tools


def test_collecting_ends_with_the_source() -> None:
    with opened(make(Good, {"total": 2}), resume="1") as source:
        assert [sample.position for sample in collect(source, 5)] == ["2"]


def test_collecting_from_a_source_that_gives_nothing() -> None:
    class Empty(Good):
        def read(self, timeout: float) -> Sample | None:
            self.skip("no light")
            return None

    with opened(make(Empty)) as source, pytest.raises(AssertionError, match=r"0 samples, and then none .*no light"):
        collect(source, 1, timeout=0.0)


def test_a_source_is_closed_after_a_failed_open() -> None:
    closed = []

    class Closing(Good):
        def close(self) -> None:
            closed.append(True)

    with pytest.raises(SourceError, match="plug it in"), opened(make(Closing, {"device": "x"})):
        pass
    assert closed


def test_the_clock_moves_only_when_somebody_sleeps() -> None:
    clock = Clock()
    pacer = Pacer(2, clock=clock, sleep=clock.sleep)
    assert pacer.wait(0)
    pacer.step()
    assert not pacer.wait(0.2)
    assert pacer.wait(1)
    assert clock.naps == pytest.approx([0.2, 0.3])
    assert clock() == pytest.approx(1000.5)


# -- in the real worker


def test_a_source_in_the_worker() -> None:
    run = run_in_worker(Faulty, {"total": 5, "at": 0}, resume="2")
    assert [result.position for result in run.results] == ["3", "4", "5"]
    assert {result.scores[0].label for result in run.results} == {"normal"}
    assert run.states == ["open", "ended: all samples were read"]
    assert run.ended


def test_samples_that_do_not_fit_the_model() -> None:
    run = run_in_worker(Faulty, {"values": 3, "at": 0}, count=4)
    assert run.failed >= 4
    assert run.failure == "the model takes 128 values (uint8 of shape 1x128), the source gives 3"


def test_a_source_that_brings_the_worker_down() -> None:
    with pytest.raises(WorkerDied) as caught:
        run_in_worker(Faulty, {"what": "abort"}, count=1000)
    assert str(caught.value).startswith("killed by SIGABRT while reading the source")
    assert "F driver.cc:42] USB transfer error" in str(caught.value)


def test_a_source_that_brings_the_worker_down_when_it_is_closed() -> None:
    with pytest.raises(WorkerDied, match=r"^killed by SIGABRT while .*closing the source"):
        run_in_worker(Aborting, {"at": 0}, count=2)


def test_a_model_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="the model is refused: "):
        run_in_worker(Faulty, model=tmp_path / "none.tflite")


def test_a_source_without_samples(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"no news from the worker for .* s: 0 results"):
        run_in_worker(Faulty, {"at": 1, "what": "hang"}, timeout=1.5)
