"""How a worker died, over what, and which samples are to be left out for it."""

from collections import Counter
from dataclasses import dataclass

from edge_agent.inference.progress import ProgressPage, Stage, Track
from edge_agent.inference.supervision.hangs import SAMPLE_STAGES

# One death over a sample may be the device's fault, or the memory killer's.
MAX_SAMPLE_DEATHS = 2
# So many samples are remembered: a source with more than that has another problem.
MAX_SET_ASIDE = 100


@dataclass(frozen=True)
class LastMoment:
    """What a worker left on its progress page.

    `working_on` is the key of the sample in the model, `read_after` that of the last sample before the one that
    was being read; None where samples have no position, or nothing of the kind went on. `in_model` is what was done
    with the model in use, `in_shadow` with its shadow, each as the stage's words, or empty for nothing.
    """

    doing: str
    loading: bool
    on_sample: bool
    working_on: str | None
    read_after: str | None
    in_model: str = ""
    in_shadow: str = ""

    @classmethod
    def of(cls, page: ProgressPage) -> "LastMoment":
        """Read the page."""
        stage = page.stage(Track.INFERENCE)
        on_sample = stage in {*SAMPLE_STAGES, Stage.BOTH_FAIL}
        reading = page.stage(Track.CAPTURE) is Stage.READ
        return cls(
            doing=page.last_words(),
            loading=page.stage(Track.CONTROL) in {Stage.LOAD, Stage.GOLDEN},
            on_sample=on_sample or stage is Stage.CLOSE,
            working_on=page.position(Track.INFERENCE) if on_sample else None,
            read_after=page.position(Track.CAPTURE) if reading else None,
            # What both models fail on is not the doing of either.
            in_model=stage.words if stage in {*SAMPLE_STAGES, Stage.CLOSE} else "",
            in_shadow=stage.words if stage is Stage.SHADOW else "",
        )


@dataclass(frozen=True)
class Death:
    """The end of a worker that nobody had told to end. `cause` is a sentence that holds the other two.

    `exit_status` is in words. `outside` says that neither the worker nor the agent did it: somebody sent SIGKILL, the
    memory killer for instance. `hung`: it was killed for standing still. `of_trial`: it was the model on trial, and not
    the device or a sample.
    """

    cause: str
    exit_status: str
    last: LastMoment
    outside: bool = False
    hung: bool = False
    of_trial: bool = False

    @property
    def over_model(self) -> bool:
        """Whether the model in use may have done it, and neither one that was being loaded nor somebody outside."""
        return not (self.outside or self.last.loading) and self._came_of(self.last.in_model)

    @property
    def over_shadow(self) -> bool:
        """Whether the shadow may have done it: also by the memory that it takes."""
        return self.outside or self._came_of(self.last.in_shadow)

    def _came_of(self, stage: str) -> bool:
        # Of a hang it is known which thread it was.
        return bool(stage) and (not self.hung or self.cause.startswith(f"hangs: {stage}"))

    @classmethod
    def unborn(cls, reason: str) -> "Death":
        """One that did not even come to life."""
        nothing = LastMoment("starting", loading=False, on_sample=False, working_on=None, read_after=None)
        return cls(f"it {reason}", reason, nothing)


class Suspects:
    """Counts deaths by the sample they happened over. A sample that has killed two workers is set aside.

    `avoid` are the keys of samples that the model must not get, `pass_over` those of samples behind which the next
    one must not even be read; a key that stands there twice means the next two.
    """

    def __init__(self) -> None:
        self.avoid: list[str] = []
        self.pass_over: list[str] = []
        self._deaths: Counter[tuple[str, str]] = Counter()

    def blame(self, last: LastMoment) -> str | None:
        """Note a death; returns what is set aside because of it, if anything.

        Two threads may have been busy, each with a sample of its own, and either may be to blame. The innocent one will
        be at another sample next time. If both are at the same one again, the model's goes first.
        """
        if len(self._deaths) > MAX_SET_ASIDE:
            self._deaths.clear()
        in_model = last.working_on not in {"", *self.avoid} and self._is_enough("model", last.working_on)
        in_source = self._is_enough("source", last.read_after)
        if in_model:
            return self._set_aside(self.avoid, last.working_on, f"the sample at {last.working_on}")
        if in_source:
            what = f"the sample after {last.read_after}" if last.read_after else "the first sample"
            return self._set_aside(self.pass_over, last.read_after, what)
        return None

    def _is_enough(self, where: str, position: str | None) -> bool:
        if position is None:
            return False
        self._deaths[where, position] += 1
        return self._deaths[where, position] >= MAX_SAMPLE_DEATHS

    def _set_aside(self, where: list[str], position: str | None, what: str) -> str:
        where.append(position or "")
        del where[:-MAX_SET_ASIDE]
        return what
