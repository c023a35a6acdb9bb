"""When a worker is taken for hung."""

import time
from collections.abc import Iterator

import pytest

from edge_agent.inference.progress import ProgressPage, Stage, Track
from edge_agent.inference.supervision.hangs import (
    ANSWER_DEADLINE,
    LOAD_DEADLINE,
    SHUT_DEADLINE,
    WAIT_DEADLINE,
    find_hang,
)
from edge_agent.inference.worker.capture import REOPEN_DELAYS


@pytest.fixture
def page() -> Iterator[ProgressPage]:
    page = ProgressPage.create()
    yield page
    page.close()


def since(page: ProgressPage, track: Track, stage: Stage, seconds: float) -> None:
    page.enter(track, stage)
    page.slots[track * 3 + 1] -= int(seconds * 1e9)


def ago(seconds: float) -> int:
    return time.monotonic_ns() - int(seconds * 1e9)


def test_each_thing_may_take_its_time(page: ProgressPage) -> None:
    since(page, Track.CAPTURE, Stage.READ, 5)
    assert find_hang(page, 10.0) is None
    assert find_hang(page, 4.0) == "hangs: reading the source for 5.0 s"
    since(page, Track.CAPTURE, Stage.SHUT, SHUT_DEADLINE - 1)
    assert find_hang(page, 4.0) is None
    since(page, Track.CAPTURE, Stage.SHUT, SHUT_DEADLINE + 1)
    assert find_hang(page, 4.0) == f"hangs: closing the source for {SHUT_DEADLINE + 1:.1f} s"


def test_while_a_model_is_loaded_all_threads_may_stand_still(page: ProgressPage) -> None:
    since(page, Track.CONTROL, Stage.LOAD, 80)
    since(page, Track.CAPTURE, Stage.WAIT, 80)
    since(page, Track.INFERENCE, Stage.WAIT, 80)
    assert find_hang(page, 1.0) is None
    since(page, Track.INFERENCE, Stage.INVOKE, 80)
    assert find_hang(page, 1.0) is None
    since(page, Track.INFERENCE, Stage.INVOKE, LOAD_DEADLINE + 1)
    assert find_hang(page, 1.0) == f"hangs: running the model for {LOAD_DEADLINE + 1:.1f} s"


def test_a_golden_sample_and_the_shadow_may_take_as_long_as_a_sample(page: ProgressPage) -> None:
    for track, stage in ((Track.CONTROL, Stage.GOLDEN), (Track.INFERENCE, Stage.SHADOW)):
        since(page, track, stage, 5)
        assert find_hang(page, 10.0) is None
        assert find_hang(page, 4.0) == f"hangs: {stage.words} for 5.0 s"
        page.enter(track, Stage.IDLE)


def test_two_threads_that_wait_for_each_other_hang(page: ProgressPage) -> None:
    assert max(REOPEN_DELAYS) < WAIT_DEADLINE
    since(page, Track.CAPTURE, Stage.WAIT, 3 * WAIT_DEADLINE)
    # One has to wait for the other as long as that works.
    since(page, Track.INFERENCE, Stage.WAIT, WAIT_DEADLINE - 1)
    assert find_hang(page, 1.0) is None
    since(page, Track.INFERENCE, Stage.WAIT, WAIT_DEADLINE + 1)
    assert find_hang(page, 1.0) == f"hangs: everything waits for {WAIT_DEADLINE + 1:.1f} s"
    # The source is at its end, or waits for its next sample.
    for stage in (Stage.IDLE, Stage.READ):
        page.enter(Track.CAPTURE, stage)
        assert find_hang(page, 1.0) is None


def test_a_worker_that_does_not_answer_hangs(page: ProgressPage) -> None:
    since(page, Track.CONTROL, Stage.IDLE, 1000)
    assert find_hang(page, 1.0) is None
    assert find_hang(page, 1.0, ago(ANSWER_DEADLINE - 1)) is None
    assert find_hang(page, 1.0, ago(ANSWER_DEADLINE + 1)) == f"hangs: asked for a model {ANSWER_DEADLINE + 1:.1f} s ago"
    # It has just done with another one.
    since(page, Track.CONTROL, Stage.IDLE, 1)
    assert find_hang(page, 1.0, ago(1000)) is None
    since(page, Track.CONTROL, Stage.LOAD, 50)
    assert find_hang(page, 1.0, ago(1000)) is None
