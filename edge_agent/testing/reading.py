"""Making sources from options as the admin writes them, and reading them as the worker does."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from edge_agent.inference.checks.source_options import Refused, complete
from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded, build

# As the worker does.
READ_TIMEOUT = 0.5
PATIENCE = 30.0

SourceT = TypeVar("SourceT", bound=Source)


def checked(source: type[Source], options: Mapping[str, Any], *, may_be_absent: bool = False) -> dict[str, object]:
    """Return the options as the worker gets them: checked, complete, paths relative to the working directory absolute.

    Raises AssertionError with what the admin would be told; `may_be_absent`: not of a device that is not there now.
    """
    complete_options: dict[str, object] = {}
    try:
        complete_options, faults = complete(source.__name__, source, options, Path.cwd())
        faults = [] if may_be_absent else faults
    except Refused as refused:
        faults = refused.faults
    told = [f"{'.'.join(map(str, fault.path)) or 'options'}: {fault.message}" for fault in faults]
    assert not told, f"the options are refused: {'; '.join(told)}"  # noqa: S101  failing is what this is for
    return complete_options


def make(source: type[SourceT], options: Mapping[str, Any] | None = None) -> SourceT:
    """Make a source from options as they stand in the file: "200ms", a path as text. Raises AssertionError."""
    return build(source, checked(source, options or {}))


@contextmanager
def opened(source: SourceT, resume: str | None = None) -> Iterator[SourceT]:
    """Open a source for the length of a block."""
    try:
        source.open(resume)
        yield source
    finally:
        source.close()


def collect(source: Source, count: int, *, timeout: float = PATIENCE) -> list[Sample]:
    """Read an open source until it has given `count` samples or is at its end.

    Raises AssertionError when no sample comes within `timeout` seconds, and whatever the source raises.
    """
    samples: list[Sample] = []
    give_up = time.monotonic() + timeout
    try:
        while len(samples) < count:
            sample = source.read(READ_TIMEOUT)
            if sample is not None:
                samples.append(sample)
                give_up = time.monotonic() + timeout
            elif time.monotonic() > give_up:
                raise AssertionError(f"{len(samples)} samples, and then none for {timeout:g} s{_reasons(source)}")
    except SourceEnded:
        pass
    return samples


def _reasons(source: Source) -> str:
    skipped = "; ".join(f"{reason} ({times})" for reason, times in source.problems.items())
    return f"; skipped were {source.skipped}: {skipped}" if source.skipped else ""
