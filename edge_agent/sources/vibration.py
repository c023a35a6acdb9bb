"""A simulated machine for demonstrations and tests: its bearing wears out again and again.

Each sample holds readings of an accelerometer, normally distributed. A cycle has three phases with the same
distributions as the training data of the demo model: normal, warning, failure.

Sample number N depends on the seed and on N alone, so a restarted worker goes on with the very same numbers.
"""

import secrets
import time
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le, doc

from edge_agent.records import Sample
from edge_agent.settings.units import Duration
from edge_agent.sources.base import Pacer, Source

LEVELS = np.array([0.5, 1.2, 2.5], dtype=np.float32)
SPREADS = np.array([0.1, 0.3, 0.8], dtype=np.float32)

# With rate = 0 a second has no length; the phases are then counted at this rate.
UNPACED_RATE = 10.0
# One call of the generator makes about this many values: its fixed cost is spread over many samples.
BLOCK_VALUES = 8192


class Vibration(Source):
    """Readings of a simulated machine: float32 arrays of shape (values,). Live, unless `rate` is 0."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        rate: Annotated[float, Ge(0), Le(100_000), doc("Samples per second; 0: as fast as possible.")] = 10.0
        seed: Annotated[Annotated[int, Ge(0)] | None, doc("With a seed, each start gives the very same samples.")] = (
            None
        )
        normal: Annotated[Duration, doc("How long the machine is well, in each cycle.")] = 20.0
        warning: Annotated[Duration, doc("How long it then wears out.")] = 10.0
        failure: Annotated[Duration, doc("How long it then fails.")] = 5.0
        values: Annotated[int, Ge(1), Le(1_000_000), doc("How many values a sample has.")] = 128

        def phase_ends(self) -> list[int]:
            """Return the sample numbers at which the phases of the first cycle end."""
            rate = self.rate or UNPACED_RATE
            seconds = (self.normal, self.normal + self.warning, self.normal + self.warning + self.failure)
            return [round(end * rate) for end in seconds]

        def check(self) -> None:
            """Refuse a cycle that has no samples. Raises ValueError."""
            if self.phase_ends()[-1] == 0:
                raise ValueError("normal, warning and failure together are shorter than one sample; make one longer")

    def __init__(self, options: Options, *, pacer: Pacer | None = None) -> None:
        super().__init__(options)
        options.check()
        self.live = options.rate > 0
        self._values = options.values
        self._ends = np.array(options.phase_ends())
        self._seed = secrets.randbits(64) if options.seed is None else options.seed
        self._pacer = pacer or Pacer(options.rate)
        self._rows = max(1, BLOCK_VALUES // options.values)
        self._next = 0
        self._block: tuple[int, npt.NDArray[np.float32]] | None = None

    def open(self, resume: str | None) -> None:
        """Go on after the sample with the number `resume`, or start with number 0."""
        self._next = int(resume) + 1 if resume and resume.isdecimal() else 0

    def read(self, timeout: float) -> Sample | None:
        """Return the next sample. The machine never fails to answer."""
        if not self._pacer.wait(timeout):
            return None
        self._pacer.step()
        number = self._next
        self._next += 1
        block, row = divmod(number, self._rows)
        if self._block is None or self._block[0] != block:
            self._block = (block, self._generate(block))
        return Sample(self._block[1][row], time.monotonic_ns(), str(number))

    def _generate(self, block: int) -> npt.NDArray[np.float32]:
        numbers = np.arange(block * self._rows, (block + 1) * self._rows)
        phases = np.searchsorted(self._ends, numbers % self._ends[-1], side="right")
        readings = np.random.default_rng((self._seed, block)).standard_normal(
            (self._rows, self._values), dtype=np.float32
        )
        readings *= SPREADS[phases, np.newaxis]
        readings += LEVELS[phases, np.newaxis]
        return readings
