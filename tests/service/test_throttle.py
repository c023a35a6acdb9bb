from typing import Any

import pytest
import structlog

from edge_agent.service.throttle import EVERY, Throttle


class Hour:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hour:
    return Hour()


@pytest.fixture
def throttle(clock: Hour) -> Throttle:
    return Throttle(clock)


def passes(throttle: Throttle, event: str, level: str = "warning", **values: Any) -> dict[str, Any] | None:
    try:
        return dict(throttle(None, level, {"event": event, "level": level, **values}))
    except structlog.DropEvent:
        return None


def test_a_repeated_warning_is_held_back_and_then_counted(throttle: Throttle, clock: Hour) -> None:
    assert passes(throttle, "no network", url="x") == {"event": "no network", "level": "warning", "url": "x"}
    clock.now = EVERY - 1
    assert [passes(throttle, "no network", url="x") for _ in range(3)] == [None] * 3
    clock.now = EVERY
    again = passes(throttle, "no network", url="x")
    assert again is not None
    assert again["repeated"] == 3
    clock.now = 2 * EVERY
    once_more = passes(throttle, "no network", url="x")
    assert once_more is not None
    assert "repeated" not in once_more


def test_text_tells_lines_apart_and_numbers_do_not(throttle: Throttle) -> None:
    assert passes(throttle, "no network", url="x", count=1)
    assert passes(throttle, "no network", url="y", count=1)
    assert passes(throttle, "no network", "error", url="x", count=1)
    assert passes(throttle, "disk full", url="x", count=1)
    assert not passes(throttle, "no network", url="x", count=2)


def test_information_is_never_held_back_unless_asked(throttle: Throttle) -> None:
    assert passes(throttle, "model ready", "info")
    assert passes(throttle, "model ready", "info")
    assert passes(throttle, "sent", "info", _every=10) == {"event": "sent", "level": "info"}
    assert not passes(throttle, "sent", "info", _every=10)


def test_the_call_chooses_the_window_and_what_is_compared(throttle: Throttle, clock: Hour) -> None:
    assert passes(throttle, "failed", _every=3600, _per="alarm", output="a")
    clock.now = 3599
    assert not passes(throttle, "failed", _every=3600, _per="alarm", output="b")
    assert passes(throttle, "failed", _every=3600, _per="siren", output="b")
    assert passes(throttle, "failed", _every=0, _per="alarm")
    assert passes(throttle, "failed", _every=0, _per="alarm")


def test_what_it_remembers_is_bounded(throttle: Throttle) -> None:
    for n in range(1000):
        assert passes(throttle, f"event {n}")
    assert len(throttle._repeats._shown) == 256
    assert not passes(throttle, "event 999")
    assert passes(throttle, "event 0")
