"""Fixtures for tests of Edge TPUs."""

from pathlib import Path

import pytest

from tests.standin.sysfs import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine without any Edge TPU yet."""
    return Machine(tmp_path / "root")
