"""What makes a new model go back, and what does not; time passes only where a test says so."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.models.rollout.trial import MAX_LABELS, Record, Verdict, Watch, at_least
from edge_agent.records import Accelerator, Result
from edge_agent.settings.trial import TrialSettings
from tests.models.rollout.rollout_kit import result

MINUTES = TrialSettings(time=600.0)
PHASES = ["normal"] * 4 + ["warning"] * 2 + ["failure"]


class Machine:
    """A model before, and one on trial, of which each result comes a second after the one before it."""

    def __init__(self, settings: TrialSettings = MINUTES) -> None:
        self.settings = settings
        self.now = 0.0
        self.before = Record(settings.time)
        self.watch: Watch | None = None

    def run(self, results: Sequence[Result], *, failed: int = 0, on: Accelerator = "cpu", step: float = 1.0) -> None:
        """Every sample is a batch of its own; `failed` of them come scattered between the results."""
        into = self.watch or self.before
        every = max(1, len(results) // failed) if failed else 0
        for number, one in enumerate(results):
            self.now += step
            lost = int(bool(every) and number % every == 0 and number // every < failed)
            into.note(on, [one], lost, self.now)

    def switch(self) -> Watch:
        self.watch = Watch(self.settings, self.before, self.now)
        return self.watch

    def verdict(self) -> Verdict | None:
        assert self.watch is not None
        return self.watch.verdict(self.now)


def _said(labels: Sequence[str], count: int, **more: float) -> list[Result]:
    return [result(label, **more) for label in islice(cycle(labels), count)]


def _reason(machine: Machine) -> str:
    verdict = machine.verdict()
    assert verdict is not None
    return verdict.reason


def test_a_model_that_does_as_the_one_before_stays_when_its_time_is_over() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 2000), failed=3)
    machine.switch()
    machine.run(_said(PHASES, 599), failed=1)
    assert machine.verdict() is None
    machine.run(_said(PHASES, 1))
    assert machine.verdict() == Verdict("")
    assert machine.watch is not None
    figures = machine.watch.figures()
    assert (figures.samples, figures.failed, figures.clipped) == (600, 1, 0.0)
    assert figures.latency_ms == pytest.approx(1.0, rel=0.04)


def test_no_trial_is_passed_without_results() -> None:
    machine = Machine()
    watch = machine.switch()
    machine.now += 10_000
    assert (machine.verdict(), watch.rest(machine.now)) == (None, None)
    machine.run(_said(PHASES, 2))
    assert machine.verdict() is None
    machine.run(_said(PHASES, 1))
    assert machine.verdict() == Verdict("")


def test_a_number_of_samples_ends_it_too() -> None:
    machine = Machine(replace(MINUTES, samples=50))
    watch = machine.switch()
    machine.run(_said(PHASES, 49))
    assert machine.verdict() is None
    assert watch.rest(machine.now) == 551
    assert watch.progress(machine.now) == "49s of 10m, 49 of 50 samples"
    machine.run(_said(PHASES, 1))
    assert machine.verdict() == Verdict("")


def test_the_status_says_how_far_it_is() -> None:
    machine = Machine()
    watch = machine.switch()
    watch.note("cpu", _said(PHASES, 1200), 0, machine.now + 180)
    assert watch.progress(machine.now + 180) == "3m of 10m, 1,200 samples"


def test_samples_that_fail_are_told_with_those_of_before() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1000))
    machine.switch()
    machine.run(_said(PHASES, 188), failed=12)
    assert _reason(machine) == "12 of 200 samples failed, 0 of 1,000 before"


@pytest.mark.parametrize(("results", "failed"), [(2, 1), (1, 2), (0, 3), (4, 4), (200, 5)])
def test_a_few_failures_say_nothing(results: int, failed: int) -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1000))
    watch = machine.switch()
    watch.note("cpu", _said(PHASES, results), failed, 1.0)
    assert machine.verdict() is None


def test_samples_of_which_as_many_failed_before_are_to_blame_themselves() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1000), failed=100)
    machine.switch()
    machine.run(_said(PHASES, 600), failed=62)
    assert machine.verdict() == Verdict("")


def test_an_outage_of_the_source_is_no_fault_of_the_model() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1000))
    watch = machine.switch()
    machine.run(_said(PHASES, 300))
    for _ in range(120):
        machine.now += 1
        watch.note("cpu", [], 100, machine.now)
    assert machine.verdict() is None
    machine.run(_said(PHASES, 180))
    assert machine.verdict() == Verdict("")
    assert watch.figures().failed == 12_000


def test_a_model_that_fails_on_everything_goes_when_its_time_is_over() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1000))
    watch = machine.switch()
    watch.note("cpu", [], 500, machine.now)
    assert machine.verdict() is None
    machine.now += 600
    assert _reason(machine) == "none of 500 samples could be worked on, 1,000 before"


def test_a_model_that_is_slower_goes_before_its_time_is_over() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 200, ms=3))
    machine.switch()
    machine.run(_said(PHASES, 49, ms=30))
    assert machine.verdict() is None
    machine.run(_said(PHASES, 1, ms=30))
    assert _reason(machine) == "a run of the model takes up to 29.9 ms (95 % of 50), 2.95 ms before"


def test_a_model_that_is_often_slower_goes_at_the_end() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 200, ms=3))
    machine.switch()
    machine.run([result(ms=30 if number % 5 == 0 else 3) for number in range(599)])
    assert machine.verdict() is None
    machine.run(_said(PHASES, 1, ms=3))
    assert _reason(machine).startswith("a run of the model takes up to ")


@pytest.mark.parametrize(("before", "now"), [(3.0, 8.0), (0.02, 0.9)])
def test_what_is_a_little_slower_stays(before: float, now: float) -> None:
    machine = Machine()
    machine.run(_said(PHASES, 200, ms=before))
    machine.switch()
    machine.run(_said(PHASES, 600, ms=now))
    assert machine.verdict() == Verdict("")


def test_the_times_on_the_cpu_are_no_fault_of_a_model_whose_device_is_lost() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 200, ms=3), on="edgetpu")
    machine.switch()
    machine.run(_said(PHASES, 60, ms=3), on="edgetpu")
    machine.run(_said(PHASES, 540, ms=90), on="cpu")
    assert machine.verdict() == Verdict("")


def test_a_model_that_is_not_made_for_the_device_is_slower() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 200, ms=3), on="edgetpu")
    machine.switch()
    machine.run(_said(PHASES, 60, ms=90), on="cpu")
    assert "takes up to" in _reason(machine)


def test_a_model_that_was_calibrated_on_other_data_goes_at_the_end() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1300, clipped=0.01))
    machine.switch()
    machine.run(_said(PHASES, 599, clipped=0.4))
    assert machine.verdict() is None
    machine.run(_said(PHASES, 1, clipped=0.4))
    assert _reason(machine) == "40% of the input is out of its range, 1% at most before"


def test_input_that_was_out_of_range_before_is_no_fault_of_the_model() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 700))
    machine.run(_said(PHASES, 600, clipped=0.4))
    machine.run(_said(PHASES, 1300))
    machine.switch()
    machine.run(_said(PHASES, 600, clipped=0.4))
    assert machine.verdict() == Verdict("")


def test_a_model_that_says_the_same_of_everything_goes() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1400))
    machine.switch()
    machine.run(_said(["normal"], 600))
    assert _reason(machine) == ('it says "normal" of everything; before: "normal" 57%, "warning" 28%, "failure" 14%')


def test_a_model_that_says_other_things_goes() -> None:
    machine = Machine()
    machine.run(_said(PHASES, 1400))
    machine.switch()
    machine.run(_said(["failure"] * 9 + ["normal"], 600))
    assert _reason(machine).startswith('its predictions are others: "failure" 90%, "normal" 10%; before: "normal" 57%')


def test_a_machine_that_stood_still_before_may_break() -> None:
    """What the one before has said was always the same: nobody can tell a new model from a new scene."""
    machine = Machine()
    machine.run(_said(["normal"], 5000))
    machine.switch()
    machine.run(_said(["failure"], 600))
    assert machine.verdict() == Verdict("")


def test_night_that_was_seen_before_is_no_fault_of_the_model() -> None:
    machine = Machine()
    machine.run(_said(["car", "person"], 1300))
    machine.run(_said(["nothing"] * 19 + ["car"], 1300))
    machine.run(_said(["car", "person"], 1300))
    machine.switch()
    machine.run(_said(["nothing"] * 19 + ["car"], 600))
    assert machine.verdict() == Verdict("")


def test_scenes_that_have_always_changed_may_change_again() -> None:
    machine = Machine()
    for number in range(6):
        machine.run(_said([f"thing {number}", f"thing {number + 1}"], 601))
    machine.switch()
    machine.run(_said(["thing 10", "thing 11"], 600))
    assert machine.verdict() == Verdict("")


def test_a_trial_that_was_much_shorter_says_nothing_of_predictions() -> None:
    machine = Machine(replace(MINUTES, samples=200))
    machine.run(_said(PHASES, 1400))
    machine.switch()
    machine.run(_said(["normal"], 200, clipped=0.9))
    assert machine.verdict() == Verdict("")


@pytest.mark.parametrize("looks", [0, 10, 49])
def test_without_enough_of_the_one_before_only_failures_count(looks: int) -> None:
    machine = Machine()
    machine.run(_said(PHASES, looks))
    machine.switch()
    machine.run(_said(["normal"], 600, ms=500, clipped=0.9))
    assert machine.verdict() == Verdict("")


def test_each_criterion_can_be_switched_off() -> None:
    machine = Machine(TrialSettings(max_failed=1, max_latency=0, max_clipped=1, max_shift=1))
    machine.run(_said(PHASES, 1400))
    machine.switch()
    machine.run(_said(["normal"], 600, ms=500, clipped=0.9), failed=300)
    assert machine.verdict() == Verdict("")


def test_of_a_batch_all_failures_count_and_one_result_is_looked_at() -> None:
    record = Record(600)
    record.note("cpu", [*_said(["a"], 289), result("b")], 7, 1.0)
    assert (record.results, record.failed, record.latencies.count) == (290, 7, 1)
    assert record.whole().predictions == {"b": 1}


def test_a_day_of_many_labels_stays_small() -> None:
    record = Record(60)
    for number in range(20_000):
        record.note("cpu", [result(str(number))], 0, float(number))
    assert len(record.whole().predictions) <= 334 * (MAX_LABELS + 1)
    for number in range(3000):
        record.note("cpu", [], 0, 1e6 + 60.0 * number)
        record.note("cpu", [result()] * 2, 0, 1e6 + 60.0 * number)
    assert len(record.whole().predictions) == 1


@given(st.integers(0, 1000), st.integers(0, 1000))
def test_the_certain_share_is_never_above_the_one_that_was_seen(count: int, more: int) -> None:
    of = count + more
    assert 0 <= at_least(count, of) <= (count / of if of else 0) + 1e-9


def test_the_certain_share_comes_near_the_one_that_was_seen() -> None:
    certain = [at_least(each, 10 * each) for each in (1, 10, 100, 1000, 10_000)]
    assert certain == pytest.approx([0.0092, 0.0407, 0.075, 0.0916, 0.0972], abs=5e-4)
