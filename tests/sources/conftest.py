"""What the tests of the sources share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded
from edge_agent.testing import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file into the test's folder."""

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def read_all() -> Callable[[Source], list[Sample]]:
    """Read a source to its end."""

    def read_all(source: Source) -> list[Sample]:
        samples = []
        try:
            while True:
                sample = source.read(10)
                assert sample is not None
                samples.append(sample)
        except SourceEnded:
            return samples

    return read_all
