"""Any program that prints one sample per line, as CSV or JSON: three lines of shell make a sensor.

The program starts when the source is opened and is ended with it. When it ends by itself, that is trouble, or the end
of a recording, or, with `restart`, the pause until it is started again.
"""

import errno
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, MinLen, doc

import edge_agent
from edge_agent.programs import why_not_started, without_secrets
from edge_agent.records import Sample
from edge_agent.settings.units import Duration
from edge_agent.sources.base import Source, SourceEnded, SourceError
from edge_agent.sources.dialect import Dialect
from edge_agent.sources.printer import Ended, Printer


class Command(Source):
    """Lines of a program as float32 arrays. Live, unless `live` is false.

    A position is the number of the line: going on means running the program again and leaving out as many lines.
    """

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        run: Annotated[
            list[Annotated[str, MinLen(1)]], MinLen(1), doc("The program and its arguments; no shell is involved.")
        ]
        live: Annotated[
            bool,
            doc("Whether only the newest samples matter; false: each waits for the model, and the end is no trouble."),
        ] = True
        restart: Annotated[
            Annotated[Duration, Ge(0.01)] | None,
            doc("How long after it has ended with exit status 0 the program is started again."),
        ] = None

        def check(self) -> None:
            """Look for the program. Raises FileNotFoundError: it may be on a disk that comes later."""
            if shutil.which(self.run[0]) is None and not Path(self.run[0]).exists():
                raise FileNotFoundError(errno.ENOENT, "there is no such program", self.run[0])

    def __init__(
        self,
        options: Options,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(options)
        self.live = options.live
        self._run = options.run
        self._restart = options.restart
        self._clock = clock
        self._sleep = sleep
        self._printer: Printer | None = None
        self._next_start = 0.0

    def open(self, resume: str | None) -> None:
        """Start the program, and leave out what was worked on before if it is no live source."""
        self.close()
        self._start()
        if not self.live and resume and resume.isdecimal():
            self._known_lines = int(resume)

    def read(self, timeout: float) -> Sample | None:
        """Return the sample of the next line that has one."""
        give_up = self._clock() + timeout
        while (line := self._next_line(give_up)) is not None:
            self._line += 1
            text = line.decode("utf-8", "replace").rstrip("\r").removeprefix("\ufeff")
            sample = self._sample(text) if text.strip() else None
            if sample is not None:
                return sample
            if self._clock() >= give_up:
                return None
        return None

    def close(self) -> None:
        """End the program."""
        if self._printer is not None:
            self._printer.close()
            self._printer = None

    def _start(self) -> None:
        environ = _environment()
        try:
            self._printer = Printer(self._run, environ, clock=self._clock)
        except (OSError, ValueError) as error:
            problem, advice = why_not_started(error, self._run[0], environ)
            raise SourceError(f"{self._run[0]}: {problem}", advice) from error
        self._dialect = Dialect()
        self._line = 0
        self._known_lines = 0

    def _next_line(self, give_up: float) -> bytes | None:
        while True:
            if self._printer is None:
                if not self._wait(give_up):
                    return None
                self._start()
                continue
            try:
                return self._printer.next_line(max(0.0, give_up - self._clock()))
            except Ended as ended:
                self._take_end(ended)
            except ValueError as error:
                reason = f"{self._run[0]}: {error}{self._printer.last_lines()}"
                raise SourceError(reason, "have it print one sample per line") from error

    def _wait(self, give_up: float) -> bool:
        """Wait until the program is to be started again."""
        remaining = self._next_start - self._clock()
        patience = max(0.0, give_up - self._clock())
        self._sleep(max(0.0, min(remaining, patience)))
        return remaining <= patience

    def _take_end(self, ended: Ended) -> None:
        program = self._run[0]
        if ended.status:
            raise SourceError(f"{program}: {ended}", "try it by hand: sudo -u edge-agent, and what stands in run")
        if self._restart is not None:
            self.close()
            self._next_start = self._clock() + self._restart
        elif self.live:
            advice = "have it print on and on; or set restart, to run it again and again; or live = false"
            raise SourceError(f"{program}: {ended}", advice)
        else:
            raise SourceEnded(f"{program} has printed all its samples")

    def _sample(self, text: str) -> Sample | None:
        if self._line <= self._known_lines:
            with suppress(ValueError):  # it was counted when it came for the first time
                self._dialect.values(text)
            return None
        try:
            values = self._dialect.values(text)
        except ValueError as error:
            self.skip(f"line {self._line} of {self._run[0]}: {error}")
            return None
        if values is None or self._printer is None:
            return None
        return Sample(values, self._printer.arrived_ns, None if self.live else str(self._line))


def _environment() -> dict[str, str]:
    """Return the environment for the program: without secrets, and without what leads to this program's packages."""
    environ = without_secrets(os.environ)
    home = str(Path(edge_agent.__file__).parents[1])
    rest = [folder for folder in environ.pop("PYTHONPATH", "").split(os.pathsep) if folder not in ("", home)]
    return environ | ({"PYTHONPATH": os.pathsep.join(rest)} if rest else {})
