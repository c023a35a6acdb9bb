"""Waiting longer after each failure."""

from edge_agent.telemetry.sending.backoff import Backoff


def test_doubles_up_to_the_cap_and_begins_anew() -> None:
    backoff = Backoff(0.5, 5, chance=lambda: 0.0)

    assert [backoff.next() for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 0.5


def test_full_jitter_takes_anything_from_nothing_to_the_whole() -> None:
    chances = iter([0.0, 0.5, 0.75])
    backoff = Backoff(8, 8, chance=lambda: next(chances))

    assert [backoff.next() for _ in range(3)] == [8, 4, 2]


def test_a_little_jitter() -> None:
    backoff = Backoff(60, 300, jitter=0.2, chance=lambda: 0.5)

    assert backoff.next() == 54
