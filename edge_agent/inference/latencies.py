"""How long samples take on their way through the model, by stage: counted in the worker, summed up in the agent."""

from collections import defaultdict

from edge_agent.latency import Histogram, Tally
from edge_agent.records import Latency


class StageLatencies:
    """The worker's side. Belongs to the thread that runs the model."""

    def __init__(self) -> None:
        self._stages = {stage: Histogram() for stage in ("capture", "preprocess", "invoke", "decode")}
        self._add = tuple(histogram.add for histogram in self._stages.values())

    def add(self, captured: int, begun: int, prepared: int, invoked: int, decoded: int) -> None:
        """Count one sample: the moments, in ns of CLOCK_MONOTONIC, at which it was captured and each stage was over."""
        capture, preprocess, invoke, decode = self._add
        capture(begun - captured)
        preprocess(prepared - begun)
        invoke(invoked - prepared)
        decode(decoded - invoked)

    def take(self) -> dict[str, Tally]:
        """Return what has been counted, and begin at nothing."""
        return {stage: histogram.take() for stage, histogram in self._stages.items()}


class LatencySums:
    """The agent's side: all that workers have sent since the last `take`."""

    def __init__(self) -> None:
        self._stages: defaultdict[str, Histogram] = defaultdict(Histogram)

    def merge(self, tallies: dict[str, Tally]) -> None:
        """Count what a worker has sent."""
        for stage, tally in tallies.items():
            self._stages[stage].merge(tally)

    def sum_up(self) -> list[Latency]:
        """Return the figures so far. Stages without a sample are left out."""
        summaries = [histogram.summary(stage) for stage, histogram in self._stages.items()]
        return [summary for summary in summaries if summary is not None]

    def take(self) -> list[Latency]:
        """Sum up, and begin at nothing."""
        summaries = self.sum_up()
        self._stages.clear()
        return summaries
