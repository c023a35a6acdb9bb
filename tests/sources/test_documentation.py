"""The examples of docs/sources.md, installed and run."""

import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import numpy as np
import pytest

from edge_agent.settings.units import format_duration
from edge_agent.sources.base import Source, SourceError, build
from edge_agent.sources.command import Command
from edge_agent.testing import collect, make, opened

PAGE = (Path(__file__).parents[2] / "docs" / "sources.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    """Return the examples of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[Source]:
    """The class of the example, found by its entry point."""
    code, _ = blocks("python")
    _, project, settings = (tomllib.loads(text) for text in blocks("toml"))
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


@pytest.mark.system
def test_the_tests_of_the_example_pass(example: type[Source], tmp_path: Path) -> None:
    _, code = blocks("python")
    (tmp_path / "test_temperature.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_temperature.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert f"{code.count('def test_')} passed" in done.stdout


def test_three_lines_of_shell_make_a_sensor(tmp_path: Path) -> None:
    (script,), (settings, *_) = blocks("sh")[:1], blocks("toml")
    (source,) = tomllib.loads(settings).values()
    program = tmp_path / Path(source["run"][0]).name
    program.write_text(script)
    program.chmod(0o755)
    with opened(make(Command, {"run": [str(program)]})) as sensor:
        [sample] = collect(sensor, 1)
    assert sample.data.shape == (3,)


@pytest.mark.parametrize("entry_point", entry_points(group="edge_agent.sources"), ids=lambda found: found.name)
def test_every_built_in_option_stands_on_the_page(entry_point: EntryPoint) -> None:
    name, plugin = entry_point.name, entry_point.load()
    (row,) = re.findall(rf"^\| `{name}` \|.*\| (.*) \|$", PAGE, re.MULTILINE)
    told = re.findall(r"`(\w+)`(?: \(([^)]*)\))?", row)
    fields = {field.name: field for field in dataclasses.fields(plugin.Options)}
    assert [option for option, _ in told] == list(fields)
    for option, default in told:
        field = fields[option]
        made = field.default_factory
        assert default in written(field.default if made is dataclasses.MISSING else made()), option


def written(default: object) -> tuple[str, ...]:
    """Return how the page may write a default."""
    if default is dataclasses.MISSING:
        return ("",)
    if default is None:
        return ("random", "never", "none", "as set", "= window")
    if default == []:
        return ("all",)
    if isinstance(default, bool):
        return (str(default).lower(),)
    if isinstance(default, str):
        return (f'"{default}"',)
    assert isinstance(default, int | float)
    return (f"{default:g}", f'"{format_duration(default)}"')
