"""New models on trial, from a real server onto a real disk: how they stay, how they go, and what is left at a start."""

import asyncio
import os
import threading
from typing import Any

import pytest

from edge_agent.models.rollout.rollout import Rollout
from edge_agent.records import ModelFile, Terms
from edge_agent.settings.location import Location
from edge_agent.settings.trial import TrialSettings
from tests.models.rollout.rollout_kit import (
    GOOD,
    HOUR,
    NO_MODEL,
    NO_WORKER,
    Clock,
    Device,
    committed,
    first_pause,
    result,
    until,
)

TEN_MINUTES = 600.0


@pytest.fixture
def tried(device: Device) -> Device:
    """A device with v1 committed, where v2 is out and new models are watched for ten minutes."""
    committed(device, "v1")
    device.trial = TrialSettings(time=TEN_MINUTES)
    device.upload("v2")
    return device


def _results(device: Device, rollout: Rollout, count: int = 10, *, failed: int = 0, **more: Any) -> None:
    """What the worker makes of some samples, with the model that it runs."""
    assert device.worker.current is not None
    for number in range(count):
        rollout.take(device.worker.current, "edgetpu", [result(**more)], int(number < failed))


async def _on_trial(device: Device, rollout: Rollout, clock: Clock) -> None:
    assert await clock.pause() == TEN_MINUTES
    assert (rollout.status.state, rollout.status.version) == ("on trial", "v2")


def _trial_states(device: Device) -> list[str]:
    return [one.state for one in device.changes]


def test_a_trial_that_is_passed_is_committed(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        assert tried.slots.committed is not None
        assert tried.slots.trial is not None
        assert (tried.slots.committed.version, tried.slots.trial.begun) == ("v1", 1)
        _results(tried, rollout, 1200)
        assert rollout.status.trial == "0s of 10m, 1,200 samples"
        assert rollout.status.waiting is None
        assert await clock.tick() == HOUR - TEN_MINUTES
        await until(lambda: len(tried.changes) == 2)
        assert (rollout.status.version, rollout.status.trial) == ("v2", "")

    tried.live(story)
    assert tried.changed() == [("trial", "v2", "v1"), ("committed", "v2", "v1")]
    assert tried.worker.told == ["keep"]
    figures = tried.changes[1].trial
    assert figures is not None
    assert (figures.samples, figures.failed, figures.clipped) == (1200, 0, 0.0)
    assert (tried.slots.trial, tried.slots.candidate) == (None, None)
    tried.live(first_pause)
    assert tried.worker.loaded[-1] == "v2"


def test_the_first_model_is_not_on_trial(device: Device) -> None:
    device.trial = TrialSettings(time=TEN_MINUTES)
    device.upload("v1")
    device.live(first_pause)
    assert device.changed() == [("committed", "v1", None)]
    assert [terms.trial for terms in device.worker.terms] == [False]


def test_what_worked_before_is_loaded_without_terms(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)

    tried.worker.terms.clear()
    tried.live(story)
    assert tried.worker.terms == [Terms(), Terms(trial=True)]


def test_a_trial_goes_on_as_long_as_there_are_no_results(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        assert await clock.tick() == HOUR - TEN_MINUTES
        assert rollout.status.state == "on trial"
        _results(tried, rollout, 2)
        await clock.tick()
        assert rollout.status.state == "on trial"
        _results(tried, rollout, 1)
        await until(lambda: len(tried.changes) == 2)

    tried.live(story)
    assert _trial_states(tried) == ["trial", "committed"]


def test_so_many_samples_end_it_at_once(tried: Device) -> None:
    tried.trial = TrialSettings(time=TEN_MINUTES, samples=100)

    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        _results(tried, rollout, 100)
        await until(lambda: len(tried.changes) == 2)

    tried.live(story)
    assert _trial_states(tried) == ["trial", "committed"]


def test_a_worse_model_goes_and_is_not_tried_again(tried: Device, log: list[Any]) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        _results(tried, rollout, 188, failed=12)
        await until(lambda: len(tried.changes) == 2)
        assert (rollout.status.state, rollout.status.version) == ("running", "v1")
        await clock.tick()
        await clock.tick()
        assert "v2 was rejected: 12 of 200 samples failed, 0 of 0 before" in rollout.status.last_poll

    for _ in range(2):
        tried.live(story if not tried.changes else first_pause)
    assert tried.changed() == [("trial", "v2", "v1"), ("rolled_back", "v2", "v1")]
    assert tried.changes[1].reason == "12 of 200 samples failed, 0 of 0 before"
    assert tried.worker.told == ["revert: 12 of 200 samples failed, 0 of 0 before"]
    assert tried.worker.loaded == ["v1", "v2", "v1"]
    assert [one["reason"] for one in log if one["event"].startswith("the new model was worse")] == [
        "12 of 200 samples failed, 0 of 0 before"
    ]


def test_the_worker_goes_back_by_itself(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        tried.worker.go_back("it cannot divide by 0")
        await until(lambda: len(tried.changes) == 2)
        assert rollout.status.version == "v1"
        assert rollout.status.rejected == "v2: it cannot divide by 0"

    tried.live(story)
    assert tried.changed() == [("trial", "v2", "v1"), ("rolled_back", "v2", "v1")]
    assert tried.worker.told == []


def test_the_worker_goes_back_before_anybody_knows_that_it_has_switched(tried: Device) -> None:
    load = tried.worker.load

    async def load_and_go_back(model: ModelFile, terms: Terms) -> Any:
        report = await load(model, terms)
        if terms.trial:
            tried.worker.go_back("it fails")
        return report

    tried.worker.load = load_and_go_back  # type: ignore[method-assign]

    async def story(rollout: Rollout, _: Clock) -> None:
        await until(lambda: len(tried.changes) == 2)
        assert rollout.status.version == "v1"

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back"]


def test_a_worker_that_goes_back_after_the_trial_is_brought_back(tried: Device) -> None:
    tried.trial = TrialSettings(time=TEN_MINUTES, samples=3)

    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        _results(tried, rollout, 3)
        await until(lambda: len(tried.changes) == 2)
        tried.worker.on_revert("a late word")
        await until(lambda: len(tried.worker.loaded) == 3)

    tried.live(story)
    assert tried.worker.loaded == ["v1", "v2", "v2"]


def test_what_the_one_before_does_is_what_it_is_compared_with(tried: Device) -> None:
    tried.worker.answers["v2"] = [NO_WORKER, GOOD]

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == 5
        _results(tried, rollout, 1000, ms=3.0)
        assert await clock.tick() == TEN_MINUTES
        _results(tried, rollout, 100, ms=60.0)
        await until(lambda: len(tried.changes) == 2)

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back"]
    assert tried.changes[1].reason.startswith("a run of the model takes up to ")


def test_results_of_another_model_count_for_nothing(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        rollout.take(ModelFile("elsewhere", "m", "v0"), "cpu", [result()] * 5000, 5000)
        assert rollout.status.trial == "0s of 10m, 0 samples"

    tried.live(story)


def test_a_trial_that_ends_with_the_agent_begins_anew(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        _results(tried, rollout, 100)

    for _ in range(5):
        tried.live(story)
        assert tried.slots.trial is None
    assert tried.worker.loaded == ["v1", "v2"] * 5
    assert tried.downloads() == 2


async def _killed(rollout: Rollout, clock: Clock) -> None:
    """The process ends in the middle of the trial, and nobody can say goodbye."""
    assert await clock.pause() == TEN_MINUTES
    rollout._in_use._slots._begun = ""


def test_a_release_that_ends_the_process_is_tried_three_times(tried: Device) -> None:
    for begun in (1, 2, 3):
        tried.live(_killed)
        assert tried.slots.trial is not None
        assert tried.slots.trial.begun == begun
    tried.live(first_pause)
    assert tried.worker.loaded == ["v1", "v2"] * 3 + ["v1"]
    assert tried.changed()[3:] == [("rejected", "v2", "v1")]
    assert tried.changes[3].reason == "its trial was interrupted 3 times"
    tried.live(first_pause)
    assert tried.worker.loaded[-1] == "v1"
    assert (tried.downloads(), len(tried.changes)) == (2, 4)


def test_bad_luck_counts_once_per_process(tried: Device) -> None:
    tried.worker.answers["v2"] = [NO_WORKER] * 5 + [GOOD]

    async def story(_: Rollout, clock: Clock) -> None:
        await clock.pause()
        for _again in range(5):
            await clock.tick()
        assert tried.slots.trial is not None
        assert tried.slots.trial.begun == 1

    tried.live(story)
    assert _trial_states(tried) == ["trial"]


def test_a_model_that_is_refused_beforehand_was_never_on_trial(tried: Device) -> None:
    tried.worker.answers["v2"] = [NO_MODEL]
    tried.live(first_pause)
    assert tried.changed() == [("rejected", "v2", "v1")]
    assert tried.slots.trial is None


def test_another_release_ends_the_trial_of_one_that_nobody_wants_any_more(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        tried.upload("v3")
        rollout.poll_now()
        assert await clock.pause() == TEN_MINUTES
        assert rollout.status.version == "v3"
        _results(tried, rollout, 3)
        await clock.tick()
        await until(lambda: len(tried.changes) == 4)

    tried.live(story)
    assert tried.changed() == [
        ("trial", "v2", "v1"),
        ("rolled_back", "v2", "v1"),
        ("trial", "v3", "v1"),
        ("committed", "v3", "v1"),
    ]
    assert tried.slots.last_rejected is None


def test_a_release_that_is_taken_back_during_its_trial_goes(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        tried.upload("v1")
        rollout.poll_now()
        assert await clock.pause() == HOUR
        assert (rollout.status.state, rollout.status.version) == ("running", "v1")

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back"]
    assert (tried.slots.candidate, tried.slots.last_rejected) == (None, None)


def test_polls_during_a_trial_leave_it_alone(tried: Device) -> None:
    tried.trial = TrialSettings(time=3 * HOUR)

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == HOUR
        tried.server.fault("status", times=1)
        assert await clock.tick() == 5
        assert await clock.tick() == HOUR
        assert (rollout.status.state, rollout.status.last_poll) == ("on trial", "v2 is offered")

    tried.live(story)
    assert _trial_states(tried) == ["trial"]
    assert tried.worker.loaded == ["v1", "v2"]


def test_a_verdict_does_not_wait_for_the_network(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        tried.server.fault("stall", "metadata", at=1)
        rollout.poll_now()
        assert await asyncio.to_thread(tried.server.stalled.wait, 30)
        _results(tried, rollout, 100, failed=50)
        await until(lambda: len(tried.changes) == 2)
        assert tried.worker.current is not None
        assert tried.worker.current.version == "v1"

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back"]


@pytest.mark.parametrize("failed", [0, 50])
def test_a_full_disk_at_the_end_of_a_trial_is_made_good_later(
    tried: Device, monkeypatch: pytest.MonkeyPatch, failed: int
) -> None:
    tried.trial = TrialSettings(time=TEN_MINUTES, samples=100)
    sync = os.fsync

    def full(handle: int) -> None:
        raise OSError(28, os.strerror(28))

    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        monkeypatch.setattr(os, "fsync", full)
        _results(tried, rollout, 100, failed=failed)
        assert await clock.pause() == 10
        assert "No space left" in rollout.status.last_poll
        assert len(tried.changes) == 1
        monkeypatch.setattr(os, "fsync", sync)
        assert await clock.tick() == HOUR
        assert rollout.status.version == ("v1" if failed else "v2")

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back" if failed else "committed"]
    assert tried.worker.loaded == ["v1", "v2"]


def test_a_twin_is_on_trial_too_and_gone_back_from(tried: Device) -> None:
    tried.upload("v1")

    async def story(rollout: Rollout, clock: Clock) -> None:
        assert await clock.pause() == TEN_MINUTES
        assert (rollout.status.version, rollout.status.twin) == ("v1", True)
        tried.worker.go_back("it fails")
        await until(lambda: len(tried.changes) == 2)
        assert (rollout.status.version, rollout.status.twin) == ("v1", False)
        rollout.poll_now()
        assert await clock.pause() == 5
        assert "the model for the CPU: " in rollout.status.last_poll
        assert "was rejected: it fails" in rollout.status.last_poll

    tried.cpu_url = Location("gs", "bucket", "twin")
    tried.server.upload("bucket", "twin", b"model twin", {"version": "v1"})
    tried.live(story)
    assert [(one.state, one.part) for one in tried.changes] == [("trial", "twin"), ("rolled_back", "twin")]
    assert tried.slots.committed is not None
    assert (tried.slots.committed.version, tried.slots.committed.cpu) == ("v1", None)


def test_a_new_model_with_a_twin_is_rejected_with_and_without_it(tried: Device) -> None:
    tried.cpu_url = Location("gs", "bucket", "twin")
    tried.server.upload("bucket", "twin", b"model twin", {"version": "v2"})

    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        assert rollout.status.twin
        tried.worker.go_back("it fails")
        await until(lambda: len(tried.changes) == 2)
        await clock.tick()
        await clock.tick()

    tried.live(story)
    tried.live(first_pause)
    assert tried.worker.loaded == ["v1", "v2", "v1"]
    assert _trial_states(tried) == ["trial", "rolled_back"]


def test_other_settings_go_on_with_the_trial(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        rollout.configure(poll_interval=HOUR, hold=True, trial=TrialSettings(time=60))
        assert await clock.pause() == TEN_MINUTES
        assert (rollout.status.state, rollout.status.hold) == ("on trial", True)
        _results(tried, rollout, 3)
        await clock.tick()
        await until(lambda: len(tried.changes) == 2)

    tried.live(story)
    assert _trial_states(tried) == ["trial", "committed"]


@pytest.mark.parametrize("failed", [0, 50])
def test_an_end_amid_the_writing_of_the_outcome_tells_of_it(
    tried: Device, monkeypatch: pytest.MonkeyPatch, failed: int
) -> None:
    tried.trial = TrialSettings(time=TEN_MINUTES, samples=100)
    writing, go_on = threading.Event(), threading.Event()
    sync = os.fsync

    def slow(handle: int) -> None:
        writing.set()
        assert go_on.wait(30)
        sync(handle)

    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        monkeypatch.setattr(os, "fsync", slow)
        _results(tried, rollout, 100, failed=failed)
        assert await asyncio.to_thread(writing.wait, 30)
        stopping = asyncio.create_task(rollout.stop())
        await until(lambda: rollout.status.state == "stopped")
        go_on.set()
        await stopping

    tried.live(story)
    assert _trial_states(tried) == ["trial", "rolled_back" if failed else "committed"]


def test_stopping_twice_is_no_harm(tried: Device) -> None:
    async def story(rollout: Rollout, clock: Clock) -> None:
        await _on_trial(tried, rollout, clock)
        await rollout.stop()
        await rollout.stop()

    tried.live(story)
    assert tried.slots.trial is None
    assert _trial_states(tried) == ["trial"]
