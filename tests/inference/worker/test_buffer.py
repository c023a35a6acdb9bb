"""The hand-over between the two threads."""

import threading

import numpy as np
import pytest

from edge_agent.inference.worker.buffer import CAPACITY, LIVE_AGE_NS, LIVE_LEAST, SampleBuffer
from edge_agent.records import Sample


def sample(number: int, size: int = 4) -> Sample:
    return Sample(np.zeros(size, np.uint8), number)


def numbers(buffer: SampleBuffer) -> list[int]:
    return [taken.captured_ns for taken in buffer.take(0)]


def test_a_live_source_keeps_the_newest_and_counts_the_rest() -> None:
    buffer = SampleBuffer(live=True)
    for number in range(CAPACITY + 5):
        buffer.put(sample(number))
    assert numbers(buffer) == list(range(5, CAPACITY + 5))
    assert (buffer.take_dropped(), buffer.take_dropped()) == (5, 0)


@pytest.mark.parametrize(
    ("hertz", "kept"), [(1, LIVE_LEAST), (50, 26), (1000, CAPACITY)], ids=["slow", "half a second", "fast"]
)
def test_a_live_source_bridges_half_a_second(hertz: int, kept: int) -> None:
    buffer = SampleBuffer(live=True)
    times = [number * 1_000_000_000 // hertz for number in range(200)]
    for time_ns in times:
        buffer.put(sample(time_ns))
    assert numbers(buffer) == times[-kept:]
    assert buffer.take_dropped() == len(times) - kept
    assert kept <= LIVE_LEAST or times[-1] - times[-kept] <= LIVE_AGE_NS


def test_large_samples_are_bounded_by_their_bytes() -> None:
    buffer = SampleBuffer(live=True)
    for number in range(4):
        buffer.put(sample(number, 4 * 1024 * 1024))
    assert numbers(buffer) == [2, 3]


def test_of_live_pictures_only_the_newest_is_kept() -> None:
    buffer = SampleBuffer(live=True)
    for number in range(4):
        buffer.put(Sample(np.zeros((4, 6, 3), np.uint8), number))
    assert numbers(buffer) == [3]
    assert buffer.take_dropped() == 3
    # Three axes of a sensor over time are no picture.
    for number in range(4):
        buffer.put(Sample(np.zeros((4, 6, 3), np.float32), number))
    assert numbers(buffer) == [0, 1, 2, 3]


def test_nobody_waits_for_a_buffer_that_is_closed() -> None:
    buffer = SampleBuffer(live=False)

    def produce() -> None:
        for number in range(CAPACITY * 2):
            buffer.put(sample(number))

    thread = threading.Thread(target=produce)
    thread.start()
    buffer.close()
    thread.join(60)
    assert not thread.is_alive()


def test_a_recorded_source_waits_and_loses_nothing() -> None:
    buffer = SampleBuffer(live=False)
    total = CAPACITY * 3 + 7

    def produce() -> None:
        for number in range(total):
            buffer.put(sample(number))

    thread = threading.Thread(target=produce)
    thread.start()
    got: list[int] = []
    while len(got) < total:
        taken = buffer.take(10)
        assert 0 < len(taken) <= CAPACITY
        got += [each.captured_ns for each in taken]
    thread.join(10)
    assert got == list(range(total))
    assert buffer.take_dropped() == 0


def test_waking_ends_the_wait_without_samples() -> None:
    buffer = SampleBuffer(live=True)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(len(buffer.take(None))))
    thread.start()
    buffer.wake()
    thread.join(10)
    assert got == [0]


def test_a_wake_before_the_wait_is_not_forgotten() -> None:
    buffer = SampleBuffer(live=True)
    buffer.wake()
    assert not buffer.take(None)
