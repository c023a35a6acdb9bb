"""The table of the events, and events."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from tests.cloud.fleet import events_of_all_kinds
from tests.cloud.subscription import Columns

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def columns() -> Columns:
    """The table as config/cloud has it."""
    found: Columns = json.loads((ROOT / "config/cloud/events.schema.json").read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="session")
def bigquery() -> ModuleType:
    """The generator of the table's schema."""
    spec = importlib.util.spec_from_file_location("bigquery", ROOT / "packaging/bigquery.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Real events, of every kind at least one."""
    return events_of_all_kinds(tmp_path_factory.mktemp("fleet"))
