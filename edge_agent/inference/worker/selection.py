"""Chooses samples whose input is kept for retraining, within a daily budget.

A picture becomes a JPEG file in the hand-over folder before its result goes out, so whoever sees the reference can rely
on the file. That folder is in memory (a tmpfs) wherever the service has a runtime directory: no disk holds up the
model. The agent takes the files away; as long as it does not, no more are written.
"""

import contextlib
import json
import os
import random
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import msgspec

from edge_agent.inference.interpreter.model import first_values
from edge_agent.inference.protocol import RawDataOptions
from edge_agent.inference.worker.budget import Budget
from edge_agent.picture_names import SUFFIX, file_name, object_url
from edge_agent.records import Chosen, Result, Sample

_QUALITY = 90
_PICTURE_RANK = 3
# What may wait for the agent, which takes a file within moments; more means that it cannot.
MAX_FILES, MAX_BYTES = 32, 16_000_000
# Beside the hand-over folder.
BUDGET_FILE = "budget.json"
_SURE = 2.0


class Counts(msgspec.Struct, frozen=True):
    """Chosen samples that were not kept: beyond the budget, or because the picture could not be written."""

    over_budget: int = 0
    failed: int = 0
    failure: str = ""


class HandoverFull(Exception):
    """The agent does not take the pictures away."""


class Selection:
    """Looks at each result. Belongs to the thread that runs the model.

    `task` is that of the model. `chance` returns a number in [0, 1), `wall_ns` and `monotonic_ns` are clocks.
    """

    def __init__(
        self,
        options: RawDataOptions,
        task: str,
        *,
        chance: Callable[[], float] = random.random,
        wall_ns: Callable[[], int] = time.time_ns,
        monotonic_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._options = options
        self._confidence, self._margin = options.max_confidence, options.max_margin
        self._clipped, self._one_in = options.min_clipped, options.one_in
        # No class above the threshold means a model that is unsure; no object, most likely that there is none.
        self._nothing = 0.0 if task == "classification" else _SURE
        self._chance = chance
        self._wall_ns, self._monotonic_ns = wall_ns, monotonic_ns
        self._handover = Path(options.handover)
        # Only pictures can cost a day's budget at one stroke; what values have cost need not outlive the process.
        file = self._handover.with_name(BUDGET_FILE) if options.images else None
        self._budget = Budget(options.daily_budget, file)
        self._over_budget = self._failed = 0
        self._failure = ""

    def look(self, sample: Sample, result: Result) -> Result:
        """Return the result, with what is kept of the input if the sample is chosen."""
        rule = self._rule(result)
        if rule is None:
            return result
        if not self._budget.open:
            self._over_budget += 1
            return result
        return self._keep(rule, sample, result)

    def take_counts(self) -> Counts:
        """Return what was not kept since the last call."""
        counts = Counts(self._over_budget, self._failed, self._failure)
        self._over_budget = self._failed = 0
        self._failure = ""
        return counts

    def _rule(self, result: Result) -> str | None:
        """Return the first rule that the result meets."""
        scores = result.scores
        if self._confidence is not None:
            best = scores[0].score if scores else self._nothing
            if best <= self._confidence:
                return "max_confidence"
        if self._margin is not None and len(scores) > 1 and _apart(scores[0].score, scores[1].score) <= self._margin:
            return "max_margin"
        if self._clipped is not None and result.clipped >= self._clipped:
            return "min_clipped"
        if self._one_in is not None and self._chance() * self._one_in < 1:
            return "one_in"
        return None

    def _keep(self, rule: str, sample: Sample, result: Result) -> Result:
        values, url, size = None, None, 0
        if self._options.values:
            values = first_values(sample.data, self._options.values)
            size = len(json.dumps(values))
        if self._options.images and sample.data.ndim == _PICTURE_RANK and sample.data.itemsize == 1:
            try:
                url, written = self._keep_picture(sample)
                size += written
            except (OSError, HandoverFull) as error:
                self._failed += 1
                self._failure = f"a picture cannot be kept: {error}"
        if not size:
            return result
        self._budget.spend(size)
        return msgspec.structs.replace(result, raw_data=values, chosen=Chosen(rule, url))

    def _keep_picture(self, sample: Sample) -> tuple[str, int]:
        """Write the picture; returns its future URL and its size in bytes. Raises OSError, HandoverFull."""
        from PIL import Image  # noqa: PLC0415  5 MiB that a worker on a sensor need not carry

        self._handover.mkdir(parents=True, exist_ok=True)
        self._check_room()
        buffer = BytesIO()
        Image.fromarray(sample.data).save(buffer, "JPEG", quality=_QUALITY)
        captured = sample.captured_ns
        name = file_name(self._options.device, captured, self._wall_ns() - self._monotonic_ns() + captured)
        new = self._handover / f"{name}.new"
        new.write_bytes(buffer.getbuffer())
        new.rename(self._handover / name)
        return object_url(self._options.images, name), buffer.tell()

    def _check_room(self) -> None:
        sizes = []
        with os.scandir(self._handover) as entries:
            for entry in entries:
                # The agent may take it away at this very moment.
                with contextlib.suppress(FileNotFoundError):
                    if entry.name.endswith(SUFFIX):
                        sizes.append(entry.stat().st_size)
        if len(sizes) >= MAX_FILES or sum(sizes) >= MAX_BYTES:
            raise HandoverFull(f"{len(sizes)} pictures in {self._handover} have not been taken away")


def _apart(best: float, second: float) -> float:
    # Scores are dequantised: 0.55 - 0.45 must not be more than 0.1.
    return round(best - second, 6)
