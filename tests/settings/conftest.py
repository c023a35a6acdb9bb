"""What the tests of the settings share: a file in a folder of its own, and the faults of it as text."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.settings.faults import SettingsError
from edge_agent.settings.loading import load

COMPLETE = """\
[source]
plugin = "vibration"

[model]
url = "model.tflite"

[telemetry]
sink = "events.jsonl"
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> Callable[[str], Path]:
    """Write a settings file and return its path."""

    def write(text: str) -> Path:
        file = tmp_path / "edge-agent.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write


@pytest.fixture
def faults(settings_file: Callable[[str], Path]) -> Callable[..., list[str]]:
    """Load a text and return the lines of the error, with the folder of the file taken away."""

    def run(text: str, environ: dict[str, str] | None = None) -> list[str]:
        file = settings_file(text)
        with pytest.raises(SettingsError) as caught:
            load(file, environ or {})
        return str(caught.value).replace(f"{file.parent}/", "").splitlines()

    return run


@pytest.fixture
def complete() -> str:
    """The shortest file that loads; it has eight lines."""
    return COMPLETE
