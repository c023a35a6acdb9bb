"""The histogram of durations, held against exact figures."""

import math

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import example, given

from edge_agent.latency import Histogram, SparseHistogram, Tally
from edge_agent.records import Quantiles

US, MS, S, HOUR = 1_000, 1_000_000, 1_000_000_000, 3_600_000_000_000
# As many values of each size, not mostly huge ones.
DURATIONS = st.lists(
    st.floats(0, math.log(24 * HOUR)).map(lambda exponent: round(math.exp(exponent))), min_size=1, max_size=200
)


def filled(*durations: int) -> Histogram:
    histogram = Histogram()
    for duration in durations:
        histogram.add(duration)
    return histogram


@given(DURATIONS, st.floats(0, 1))
@example([16], 0.5)
@example([31, 32, 33], 0.0)
@example([2**k for k in range(4, 63)] + [2**k - 1 for k in range(5, 64)], 1.0)
def test_a_quantile_is_within_a_thirtysecond_part_of_the_exact_one(durations: list[int], share: float) -> None:
    exact = sorted(max(16, each) for each in durations)[max(0, math.ceil(share * len(durations)) - 1)]
    assert abs(filled(*durations).quantile(share) - exact) <= exact / 32


@given(DURATIONS)
def test_count_and_longest_are_exact(durations: list[int]) -> None:
    histogram = filled(*durations)
    assert histogram.count == len(durations)
    assert histogram.max_ns == max(16, *durations)
    assert histogram.quantile(1) <= histogram.max_ns


@given(DURATIONS, DURATIONS)
def test_two_histograms_that_are_merged_are_one(ours: list[int], theirs: list[int]) -> None:
    sent = msgspec.msgpack.encode(filled(*theirs).take())
    merged = filled(*ours).merge(msgspec.msgpack.decode(sent, type=Tally))
    assert merged.take() == filled(*ours, *theirs).take()


def test_taking_it_begins_anew() -> None:
    histogram = filled(5 * MS, 7 * S)
    assert sum(histogram.take().counts.values()) == 2
    assert histogram.take() == Tally({}, 0)
    histogram.add(US)
    assert (histogram.count, histogram.max_ns) == (1, US)


@pytest.mark.parametrize("duration", [-5, 0, 15])
def test_what_is_next_to_nothing_counts_all_the_same(duration: int) -> None:
    assert filled(duration).quantile(0.5) == 16


def test_the_summary_is_in_milliseconds() -> None:
    summary = filled(*[MS] * 90, *[20 * MS] * 9, 300 * MS).summary("invoke")
    assert summary is not None
    assert (summary.stage, summary.count, summary.max_ms) == ("invoke", 100, 300.0)
    assert summary.p50_ms == summary.p90_ms == pytest.approx(1.0, rel=1 / 32)
    assert summary.p99_ms == pytest.approx(20.0, rel=1 / 32)


def test_nothing_has_no_summary() -> None:
    assert Histogram().summary("action") is None
    assert Histogram().quantile(0.5) == 0


@given(DURATIONS, DURATIONS, st.floats(0, 1))
def test_a_sparse_histogram_says_the_same(ours: list[int], theirs: list[int], share: float) -> None:
    sparse, other = SparseHistogram(), SparseHistogram()
    for duration in ours:
        sparse.add(duration)
    for duration in theirs:
        other.add(duration)
    sparse.merge(other)
    dense = filled(*ours, *theirs)
    assert (sparse.count, sparse.max_ns, sparse.quantile(share)) == (dense.count, dense.max_ns, dense.quantile(share))


def test_quantiles_are_in_milliseconds() -> None:
    histogram = SparseHistogram()
    assert histogram.quantiles() == Quantiles(0.0, 0.0, 0.0, 0.0)
    for duration in (*[MS] * 90, *[20 * MS] * 8, 300 * MS, 300 * MS):
        histogram.add(duration)
    quantiles = histogram.quantiles()
    assert quantiles.p50_ms == pytest.approx(1.0, rel=1 / 32)
    assert quantiles.p95_ms == pytest.approx(20.0, rel=1 / 32)
    assert quantiles.p99_ms == pytest.approx(300.0, rel=1 / 32)
    assert quantiles.max_ms == 300.0
