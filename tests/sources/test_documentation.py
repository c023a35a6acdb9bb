"""The example of docs/sources.md, installed and run."""

import dataclasses
import re
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest

from edge_agent.settings.units import format_duration
from edge_agent.sources.base import Source, SourceError, build

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the examples of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Source]:
    """The class of the example, found by its entry point."""
    (code,) = blocks("python")
    project, settings = (tomllib.loads(text) for text in blocks("toml"))
    ((group, entries),) = project["project"]["entry-points"].items()
    ((name, target),) = entries.items()
    assert settings["source"]["plugin"] == name
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(code)
    metadata = tmp_path / "edge_temperature-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: edge-temperature\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    monkeypatch.syspath_prepend(tmp_path)
    (entry_point,) = entry_points(group=group, name=name)
    loaded: type[Source] = entry_point.load()
    return loaded


def test_the_example_reads_a_sensor(example: type[Source], tmp_path: Path) -> None:
    sensor = tmp_path / "temp"
    sensor.write_text("48312\n")
    source = build(example, {"path": str(sensor), "every": 60})
    source.open(None)
    sample = source.read(0.5)
    assert sample is not None
    assert sample.data.dtype == np.float32
    assert sample.data == pytest.approx([48.312])
    assert source.read(0) is None
    assert source.live
    source.close()


def test_the_example_reports_trouble(example: type[Source], tmp_path: Path) -> None:
    source = build(example, {"path": str(tmp_path / "none")})
    with pytest.raises(SourceError, match=r"cannot be read: .*; check the sensor's driver"):
        source.read(0.5)


@pytest.mark.parametrize("entry_point", entry_points(group="edge_agent.sources"), ids=lambda found: found.name)
def test_every_built_in_option_stands_on_the_page(entry_point: EntryPoint) -> None:
    name, plugin = entry_point.name, entry_point.load()
    (row,) = re.findall(rf"^\| `{name}` \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    told = re.findall(r"`(\w+)`(?: \(([^)]*)\))?", row)
    fields = {field.name: field for field in dataclasses.fields(plugin.Options)}
    assert [option for option, _ in told] == list(fields)
    for option, default in told:
        assert default in written(fields[option].default), option


def written(default: object) -> tuple[str, ...]:
    """Return how the page may write a default."""
    if default is dataclasses.MISSING:
        return ("",)
    if default is None:
        return ("random", "none")
    if isinstance(default, bool):
        return (str(default).lower(),)
    if isinstance(default, str):
        return (f'"{default}"',)
    assert isinstance(default, int | float)
    return (f"{default:g}", f'"{format_duration(default)}"')
