"""What a new model is watched for once it is in use, and when it has to give way to the one before it.

Nothing here knows of workers, files or the time of day: `Record` gathers what a model does, `Watch` compares the record
of a new one with that of its predecessor. Of each batch of results one is looked at, which costs a few microseconds
whatever the rate; only failures are all counted.

Two kinds of signs are told apart. Samples that fail and runs that take longer are the model's doing: it goes back as
soon as they are certain. Input out of the model's range and other predictions may as well come from the input: a
machine breaks, or night falls. They are judged at the end, over the whole trial, and only against what is known of the
predecessor over times of the same length: what it has done itself in any of them in the last day is no sign.
"""

import math
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from edge_agent.latency import SparseHistogram
from edge_agent.records import Accelerator, Result
from edge_agent.settings.trial import TrialSettings
from edge_agent.settings.units import format_duration

SOME = 3
"""Results without which no trial is passed, however long it lasts."""
ENOUGH = 50
"""Results that were looked at, below which nothing is said of times, of the range or of predictions."""
FEWEST_FAILURES = 5
LONGEST_RUN = 3
"""Of failures without a result between them so many count: the others are an outage, of a camera most likely."""
SURE = 3.0
"""Standard deviations. That chance alone goes beyond them happens once in 700 times."""
CHANCE = 1e-6
LONG_AGO = 86_400.0
SHORTEST_WINDOW = 60.0
MAX_LABELS = 50
"""Predictions of a window that are told apart; the others are one."""
OTHERS = "(others)"
NOTHING = "(nothing)"
_NOTICEABLE_NS = 1_000_000


class TrialFigures(msgspec.Struct, frozen=True, kw_only=True):
    """What a trial has come to. `clipped` is the mean share, `latency_ms` what 95 % of the runs did not exceed."""

    samples: int
    failed: int
    clipped: float | None
    latency_ms: float | None


class Verdict(msgspec.Struct, frozen=True):
    """`reason` is why the model has to go, or empty: then the trial is passed."""

    reason: str

    @property
    def passed(self) -> bool:
        """Whether the model stays."""
        return not self.reason


class _Window:
    """What came out in a stretch of time; `looks` results of it were looked at."""

    __slots__ = ("begun", "clipped", "last", "looks", "predictions")

    def __init__(self, now: float) -> None:
        self.begun = self.last = now
        self.looks = 0
        self.clipped = 0.0
        self.predictions: Counter[str] = Counter()

    def note(self, result: Result, now: float) -> None:
        prediction = result.prediction
        label = prediction if isinstance(prediction, str) else NOTHING
        if label not in self.predictions and len(self.predictions) >= MAX_LABELS:
            label = OTHERS
        self.predictions[label] += 1
        self.clipped += result.clipped
        self.looks += 1
        self.last = now

    def add(self, other: "_Window") -> None:
        self.predictions += other.predictions
        self.clipped += other.clipped
        self.looks += other.looks


class Record:
    """What one model has done: all counts since it is in use, windows of `length` seconds over the last day.

    `scattered` are the failures without those of an outage.
    """

    def __init__(self, length: float) -> None:
        self.results = 0
        self.failed = 0
        self.scattered = 0
        self._run = 0
        self.latencies = SparseHistogram()
        self._accelerator: Accelerator | None = None
        self._length = max(SHORTEST_WINDOW, length)
        self._windows: deque[_Window] = deque(maxlen=max(1, round(LONG_AGO / self._length)))

    def note(self, accelerator: Accelerator, results: Sequence[Result], failed: int, now: float) -> None:
        """Take a batch. Times on one accelerator say nothing of those on the other, and are forgotten with it."""
        self.results += len(results)
        self.failed += failed
        if not results:
            self._run += failed
            self.scattered += max(0, min(failed, LONGEST_RUN - self._run + failed))
            return
        self.scattered += failed
        self._run = 0
        if accelerator != self._accelerator:
            self._accelerator, self.latencies = accelerator, SparseHistogram()
        look = results[-1]
        self.latencies.add(look.inference_ns)
        if not self._windows or now - self._windows[-1].begun >= self._length:
            self._windows.append(_Window(now))
        self._windows[-1].note(look, now)

    def comparable(self) -> list[_Window]:
        """The windows that are long enough, and have enough in them, to compare a trial with."""
        shortest = self._length / 2
        return [one for one in self._windows if one.looks >= ENOUGH and one.last - one.begun >= shortest]

    def whole(self) -> _Window:
        """All windows as one."""
        whole = _Window(self._windows[0].begun if self._windows else 0.0)
        for one in self._windows:
            whole.add(one)
            whole.last = one.last
        return whole


class Watch:
    """The trial of a model that took over from another at `begun`; `before` is the record of that one."""

    def __init__(self, settings: TrialSettings, before: Record, begun: float) -> None:
        self.record = Record(settings.time)
        self._settings = settings
        self._before = before
        self._begun = begun
        self._accelerator: Accelerator | None = None
        self._slow = 0
        self._looks = 0
        self._slow_ns = self._latency_limit()

    def note(self, accelerator: Accelerator, results: Sequence[Result], failed: int, now: float) -> None:
        """Take a batch of the model on trial."""
        self.record.note(accelerator, results, failed, now)
        self._accelerator = self._accelerator or accelerator
        # Where the Edge TPU is lost meanwhile, the model is not to blame for the times on the CPU.
        if results and accelerator == self._accelerator:
            self._looks += 1
            self._slow += results[-1].inference_ns > self._slow_ns

    def verdict(self, now: float) -> Verdict | None:
        """Return what has come of it; None: it goes on."""
        if reason := self._too_many_failures() or self._too_slow(0.5):
            return Verdict(reason)
        if not self._is_over(now):
            nothing = self._no_results() if self.rest(now) is None else ""
            return Verdict(nothing) if nothing else None
        return Verdict(self._too_slow(0.05) or self._worse_on_the_whole())

    def rest(self, now: float) -> float | None:
        """Return the seconds until its time is over, or None if it only waits for results."""
        rest = self._begun + self._settings.time - now
        return rest if rest > 0 else None

    def progress(self, now: float) -> str:
        """Tell how far it is: `3m of 10m, 1,200 samples`."""
        so_far = format_duration(round(min(now - self._begun, self._settings.time)))
        of = f" of {self._settings.samples:,}" if self._settings.samples is not None else ""
        return f"{so_far} of {format_duration(self._settings.time)}, {self.record.results:,}{of} samples"

    def figures(self) -> TrialFigures:
        """Return what it has come to."""
        whole = self.record.whole()
        return TrialFigures(
            samples=self.record.results,
            failed=self.record.failed,
            clipped=round(whole.clipped / whole.looks, 4) if whole.looks else None,
            latency_ms=round(self.record.latencies.quantile(0.95) / 1e6, 3) if whole.looks else None,
        )

    def _is_over(self, now: float) -> bool:
        results, samples = self.record.results, self._settings.samples
        if samples is not None and results >= samples:
            return True
        return results >= SOME and self.rest(now) is None

    def _no_results(self) -> str:
        """Whether there is nothing but failures. Perhaps the source is to blame, but going back costs nothing then."""
        new, old = self.record, self._before
        if new.results or new.failed < FEWEST_FAILURES or not old.results:
            return ""
        return f"none of {new.failed:,} samples could be worked on, {old.results:,} before"

    def _too_many_failures(self) -> str:
        new, old = self.record, self._before
        of, of_before = new.results + new.scattered, old.results + old.scattered
        share_before = old.scattered / of_before if of_before else 0.0
        if new.scattered < FEWEST_FAILURES or at_least(new.scattered, of) <= share_before + self._settings.max_failed:
            return ""
        return f"{new.scattered:,} of {of:,} samples failed, {old.scattered:,} of {of_before:,} before"

    def _latency_limit(self) -> float:
        """Above this a run is slow, in ns. What nobody would notice is not."""
        before = self._before.latencies
        if not self._settings.max_latency or before.count < ENOUGH:
            return math.inf
        usual = before.quantile(0.95)
        return max(usual * self._settings.max_latency, usual + _NOTICEABLE_NS)

    def _too_slow(self, share: float) -> str:
        """Whether certainly more than this share of the runs is slow."""
        if self._looks < ENOUGH or at_least(self._slow, self._looks) <= share:
            return ""
        now, before = (record.latencies.quantile(0.95) / 1e6 for record in (self.record, self._before))
        return f"a run of the model takes up to {now:.3g} ms (95 % of {self._looks:,}), {before:.3g} ms before"

    def _worse_on_the_whole(self) -> str:
        new, before = self.record.whole(), self._before.comparable()
        # Against windows that were much longer, what passes quickly would look like a change for good.
        if not before or new.looks < ENOUGH or new.last - new.begun < self._settings.time / 2:
            return ""
        return _clipped_more(new, before, self._settings.max_clipped) or _shifted(new, before, self._settings.max_shift)


def at_least(count: int, of: int) -> float:
    """Return what share is certainly behind `count` of `of`: the lower end of Wilson's interval."""
    if not of:
        return 0.0
    share, z2 = count / of, SURE * SURE
    middle = share + z2 / (2 * of)
    spread = SURE * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    return max(0.0, (middle - spread) / (1 + z2 / of))


def _clipped_more(new: _Window, before: Sequence[_Window], limit: float) -> str:
    now, most = new.clipped / new.looks, max(one.clipped / one.looks for one in before)
    if now <= most + limit:
        return ""
    return f"{now:.0%} of the input is out of its range, {most:.0%} at most before"


def _shifted(new: _Window, before: Sequence[_Window], limit: float) -> str:
    """Whether it says other things than its predecessor ever did in a window, which must have said several things."""
    if limit >= 1 or any(len(one.predictions) == 1 for one in before):
        return ""
    usual = _Window(0.0)
    for one in before:
        usual.add(one)
    if len(new.predictions) == 1:
        [label] = new.predictions
        most = max(one.predictions[label] / one.looks for one in before)
        if most**new.looks < CHANCE:
            return f'it says "{label}" of everything; before: {_shares(usual)}'
    if len(before) == 1:
        return ""
    allowed = limit + max(distance(one, usual) for one in before)
    if min(distance(new, one) for one in (*before, usual)) <= allowed:
        return ""
    return f"its predictions are others: {_shares(new)}; before: {_shares(usual)}"


def distance(one: _Window, other: _Window) -> float:
    """Return the total variation distance of the predictions of two windows, from 0 to 1."""
    labels = one.predictions.keys() | other.predictions.keys()
    apart = (abs(one.predictions[each] / one.looks - other.predictions[each] / other.looks) for each in labels)
    return sum(apart) / 2


def _shares(window: _Window) -> str:
    return ", ".join(f'"{label}" {count / window.looks:.0%}' for label, count in window.predictions.most_common(3))
