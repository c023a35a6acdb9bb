import itertools

import numpy as np
import pytest

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, build
from edge_agent.sources.vibration import Vibration
from edge_agent.testing import Clock


def take(source: Vibration, count: int, resume: str | None = None) -> list[Sample]:
    source.open(resume)
    samples = [source.read(1) for _ in range(count)]
    source.close()
    assert all(samples)
    return [sample for sample in samples if sample]


def vibration(**options: object) -> Vibration:
    return build(Vibration, {"rate": 0, "seed": 7} | options)


def test_samples_are_float32_rows() -> None:
    samples = take(vibration(), 200)
    assert {(sample.data.shape, sample.data.dtype.name) for sample in samples} == {((128,), "float32")}
    assert [sample.position for sample in samples] == [str(n) for n in range(200)]
    times = [sample.captured_ns for sample in samples]
    assert times == sorted(times)


def test_phases_have_the_distributions_of_the_training_data() -> None:
    samples = np.array([sample.data for sample in take(vibration(), 3500)])
    number = np.arange(3500) % 350
    for first, end, mean, spread in [(0, 200, 0.5, 0.1), (200, 300, 1.2, 0.3), (300, 350, 2.5, 0.8)]:
        values = samples[(number >= first) & (number < end)]
        assert values.mean() == pytest.approx(mean, abs=0.01)
        assert values.std() == pytest.approx(spread, abs=0.01)
        # Normally distributed: 68.3 % within one standard deviation, 99.7 % within three.
        distance = np.abs(values - mean) / spread
        assert (distance < 1).mean() == pytest.approx(0.6827, abs=0.005)
        assert (distance < 3).mean() == pytest.approx(0.9973, abs=0.001)
        # Neighbouring values know nothing of each other.
        assert np.corrcoef(values[:, :-1].ravel(), values[:, 1:].ravel())[0, 1] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("options", "lengths"),
    [
        ({"rate": 0}, [200, 100, 50]),
        ({"rate": 2}, [40, 20, 10]),
        ({"normal": 0.3, "warning": 0.1, "failure": 0.2}, [3, 1, 2]),
        ({"warning": 0}, [200, 50]),
    ],
)
def test_phases_last_as_long_as_asked(options: dict[str, object], lengths: list[int], clock: Clock) -> None:
    settings = Vibration.Options(**({"rate": 0, "seed": 7} | options))  # type: ignore[arg-type]  # mixed on purpose
    source = Vibration(settings, pacer=Pacer(settings.rate, clock=clock, sleep=clock.sleep))
    levels = [np.mean(sample.data) for sample in take(source, 2 * sum(lengths))]
    phases = [0 if level < 0.9 else 1 if level < 1.9 else 2 for level in levels]
    assert [len(list(group)) for _, group in itertools.groupby(phases)] == lengths * 2


def test_same_seed_same_numbers() -> None:
    one, two = take(vibration(), 500), take(vibration(), 500)
    assert all(np.array_equal(a.data, b.data) for a, b in zip(one, two, strict=True))
    assert not np.array_equal(one[0].data, take(vibration(seed=8), 1)[0].data)
    assert not np.array_equal(one[0].data, one[64].data)


def test_without_seed_each_run_is_new() -> None:
    one, two = take(vibration(seed=None), 1), take(vibration(seed=None), 1)
    assert not np.array_equal(one[0].data, two[0].data)


@pytest.mark.parametrize("last", [0, 62, 63, 64, 349, 350])
def test_goes_on_with_the_same_numbers_after_a_restart(last: int) -> None:
    uninterrupted = take(vibration(), last + 10)
    resumed = take(vibration(), 5, resume=str(last))
    assert [sample.position for sample in resumed] == [str(last + n) for n in range(1, 6)]
    for a, b in zip(uninterrupted[last + 1 :], resumed, strict=False):
        assert np.array_equal(a.data, b.data)


def test_a_position_of_another_source_means_the_start() -> None:
    assert take(vibration(), 1, resume="0:17:200")[0].position == "0"


def test_other_numbers_of_values() -> None:
    assert take(vibration(values=1), 3)[2].data.shape == (1,)
    assert take(vibration(values=100_000), 2)[1].data.shape == (100_000,)


def test_live_and_paced_with_a_rate(clock: Clock) -> None:
    source = Vibration(Vibration.Options(rate=4), pacer=Pacer(4, clock=clock, sleep=clock.sleep))
    start = clock.now
    take(source, 41)
    assert clock.now - start == pytest.approx(10.0)
    assert source.live
    assert not vibration(rate=0).live


def test_nothing_yet_within_the_timeout(clock: Clock) -> None:
    source = Vibration(Vibration.Options(rate=0.5), pacer=Pacer(0.5, clock=clock, sleep=clock.sleep))
    source.open(None)
    assert source.read(1) is not None
    assert source.read(1.5) is None
    assert source.read(1.5) is not None


def test_a_cycle_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="normal, warning and failure together are shorter than one sample"):
        Vibration.Options(normal=0, warning=0, failure=0.01).check()
