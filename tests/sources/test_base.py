import dataclasses
import errno
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import pytest
from annotated_types import Ge
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from edge_agent.records import Sample
from edge_agent.settings.units import Duration, Size
from edge_agent.sources.base import MAX_PROBLEMS, Pacer, Source, SourceError, build, describe, printable
from edge_agent.testing import Clock


class Probe(Source):
    @dataclass(frozen=True, kw_only=True)
    class Options:
        path: Path
        every: Annotated[Duration, Ge(0.1)] = 1.0
        limit: Size = 1000
        seed: int | None = None

    def __init__(self, options: Options) -> None:
        super().__init__(options)
        self.options = options
        self.live = False

    def read(self, timeout: float) -> Sample | None:
        return None


def test_build_takes_what_pydantic_has_checked() -> None:
    given_by_admin = {"path": "/data/a.csv", "every": "200ms", "limit": "2kB"}
    checked = TypeAdapter(Probe.Options).validate_python(given_by_admin)
    as_json = msgspec.json.decode(msgspec.json.encode(dataclasses.asdict(checked), enc_hook=str))

    source = build(Probe, as_json)

    assert source.options == Probe.Options(path=Path("/data/a.csv"), every=0.2, limit=2000)


def test_build_refuses_what_it_cannot_make() -> None:
    with pytest.raises(msgspec.ValidationError, match=r"cannot make Path from int - at `\$\.path`"):
        build(Probe, {"path": 3})
    with pytest.raises(msgspec.ValidationError, match=r"\$\.seed"):
        build(Probe, {"path": "/data", "seed": "x"})


def test_open_and_close_are_optional() -> None:
    source = build(Probe, {"path": "/data"})
    source.open(None)
    source.close()
    assert source.read(0) is None


def test_problems_are_counted_and_the_latest_kept() -> None:
    source = build(Probe, {"path": "/data"})
    for number in range(30):
        source.skip(f"row {number}")
    source.skip("row 15")

    assert source.skipped == 31
    assert len(source.problems) == MAX_PROBLEMS
    assert list(source.problems.items())[-2:] == [("row 29", 1), ("row 15", 2)]


def test_what_is_no_text_can_still_be_reported() -> None:
    source = build(Probe, {"path": "/data"})
    source.skip("caf\udce9.jpg: damaged")
    assert msgspec.json.encode(source.problems) == b'{"caf\\\\udce9.jpg: damaged":1}'
    assert str(SourceError("caf\udce9", "rename it")) == "caf\\udce9; rename it"
    assert printable("café") == "café"


def test_error_has_reason_and_remedy() -> None:
    error = SourceError("camera is gone", "plug it in")
    assert (error.reason, error.remedy, str(error)) == ("camera is gone", "plug it in", "camera is gone; plug it in")


def test_describe_says_what_and_where(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        (tmp_path / "none.csv").read_text()
    assert describe(caught.value) == f"{tmp_path}/none.csv: no such file or directory"
    assert describe(OSError("strange")) == "strange"


def pacer(rate: float, clock: Clock) -> Pacer:
    return Pacer(rate, clock=clock, sleep=clock.sleep)


def beats(rate: float, clock: Clock, count: int, work: Callable[[int], float] = lambda _: 0.0) -> list[float]:
    """Return when each sample was taken, in seconds since the start."""
    beat, start = pacer(rate, clock), clock.now
    taken: list[float] = []
    while len(taken) < count:
        if beat.wait(10):
            taken.append(clock.now - start)
            beat.step()
            clock.now += work(len(taken))
    return taken


def test_pacer_without_rate_never_waits(clock: Clock) -> None:
    assert beats(0, clock, 5) == [0.0] * 5
    assert clock.naps == []


def test_pacer_keeps_an_absolute_grid(clock: Clock) -> None:
    # Work takes part of each period; a pacer that sleeps one period after the work would drift by 3 ms each time.
    taken = beats(10, clock, 1001, lambda _: 0.003)
    assert taken[-1] == pytest.approx(100.0, abs=1e-6)
    assert taken == pytest.approx([n / 10 for n in range(1001)], abs=1e-6)


def test_pacer_does_not_burst_after_being_late(clock: Clock) -> None:
    taken = beats(10, clock, 6, lambda n: 0.57 if n == 3 else 0.0)
    assert taken == pytest.approx([0.0, 0.1, 0.2, 0.77, 0.8, 0.9])


def test_pacer_gives_one_sample_when_late_by_whole_periods(clock: Clock) -> None:
    taken = beats(10, clock, 4, lambda n: 0.3 if n == 1 else 0.0)
    assert taken == pytest.approx([0.0, 0.3, 0.4, 0.5])


def test_pacer_waits_at_most_the_timeout(clock: Clock) -> None:
    beat = pacer(0.1, clock)
    assert beat.wait(0.5)
    beat.step()
    assert not beat.wait(0.5)
    assert clock.naps == [0.5]
    assert not beat.wait(-1)
    assert clock.naps == [0.5, 0.0]


def test_pacer_keeps_a_beat_that_had_no_sample(clock: Clock) -> None:
    beat = pacer(1, clock)
    assert beat.wait(0)
    clock.now += 0.4
    assert beat.wait(0)
    beat.step()
    assert beat.wait(5)
    assert clock.naps == [pytest.approx(0.6)]


@given(
    rate=st.floats(0.01, 10_000),
    work=st.lists(st.floats(0, 5), min_size=1, max_size=20),
)
def test_pacer_is_on_the_grid_and_at_most_once_per_beat(rate: float, work: list[float]) -> None:
    now = [50.0]
    beat = Pacer(rate, clock=lambda: now[0], sleep=lambda seconds: now.__setitem__(0, now[0] + seconds))
    numbers = []
    for seconds in work:
        while not beat.wait(1000):
            pass
        numbers.append(math.floor((now[0] - 50.0) * rate + 1e-6))
        beat.step()
        now[0] += seconds
    assert len(set(numbers)) == len(numbers)


def test_words_of_ours_stay_as_they_are_written() -> None:
    assert describe(FileNotFoundError("No device ADXL345 there")) == "no device ADXL345 there"
    assert describe(PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/x")) == "/x: permission denied"
