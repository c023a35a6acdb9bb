"""`config/edge-agent.toml`, which the package installs: it shows every setting once, with the default of the code."""

import dataclasses
import re
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from edge_agent import plugins
from edge_agent.settings.faults import NotSetUp
from edge_agent.settings.loading import load
from edge_agent.settings.schema import ActionSettings, Settings, description, keys, tables
from edge_agent.settings.units import parse_duration

FILE = Path(__file__).parents[2] / "config" / "edge-agent.toml"
COMMENTED = re.compile(r"^# (?=\w+ = |\[)", re.MULTILINE)
# What has no default, and what is off by default and shown by an example.
EXAMPLES = {
    "device.id": "edge-001",
    "device.labels": {"site": "lyon", "line": "3"},
    "source.plugin": "vibration",
    "model.url": "gs://your-model-bucket/edge-models/vibration-classifier/latest/model_quant_edgetpu.tflite",
    "model.name": "vibration-classifier",
    "inference.labels": ["normal", "warning", "failure"],
    "telemetry.sink": "pubsub://your-project/inference-results",
    "actions.name": "alarm",
    "actions.when.label": "failure",
    "actions.when.min_confidence": 0.8,
    "actions.run": ["/usr/local/bin/trigger-alarm"],
}


@pytest.fixture(scope="module")
def uncommented() -> str:
    return COMMENTED.sub("", FILE.read_text(encoding="utf-8"))


@pytest.fixture
def shown(uncommented: str) -> dict[str, Any]:
    """All values of the file by their dotted key; those of the one action without its number."""
    document = tomllib.loads(uncommented)
    [document["actions"]] = document["actions"]
    return flat(document)


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" != "device.labels"
        found |= flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def defaults(owner: type = Settings, prefix: str = "") -> dict[str, Any]:
    """All keys of the schema with the default, which is `...` where there is none."""
    found: dict[str, Any] = {}
    for field in dataclasses.fields(owner):
        inner = tables().get(tuple(f"{prefix}{field.name}".split(".")))
        if inner:
            found |= defaults(inner, f"{prefix}{field.name}.")
        elif field.name in keys(owner):
            found[f"{prefix}{field.name}"] = default_of(field)
    return found


def default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return ... if field.default is dataclasses.MISSING else field.default


def test_the_installed_file_as_it_is_only_waits_for_what_is_missing() -> None:
    with pytest.raises(NotSetUp) as caught:
        load(FILE, {})
    assert caught.value.missing == ["[source].plugin", "[model].url", "[telemetry].sink"]


def test_the_three_lines_that_it_asks_for_are_enough(settings_file: Callable[[str], Path]) -> None:
    text = FILE.read_text(encoding="utf-8")
    for key in ("plugin", "url", "sink"):
        text, count = re.subn(rf"^# (?={key} = )", "", text, flags=re.MULTILINE)
        assert count == 1
    assert load(settings_file(text), {}).source.plugin == "vibration"


def test_the_installed_file_asks_for_the_three_values_that_are_needed(
    faults: Callable[..., list[str]],
) -> None:
    text = FILE.read_text(encoding="utf-8")
    lines = text.splitlines()
    assert faults(text) == [
        (
            f"edge-agent.toml:{lines.index('[source]') + 1}: [source].plugin: "
            "is missing (name of the plugin that reads the samples)"
        ),
        (
            f"edge-agent.toml:{lines.index('[model]') + 1}: [model].url: "
            "is missing (where the model is fetched from: gs://BUCKET/OBJECT, file:///PATH or a path)"
        ),
        (
            f"edge-agent.toml:{lines.index('[telemetry]') + 1}: [telemetry].sink: "
            "is missing (where events go: pubsub://PROJECT/TOPIC, file:///PATH or a path)"
        ),
    ]


def test_without_its_comment_signs_it_loads(settings_file: Callable[[str], Path], uncommented: str) -> None:
    settings = load(settings_file(uncommented), {})
    assert [action.name for action in settings.actions] == ["alarm"]


def test_it_shows_every_setting_and_no_other(shown: dict[str, Any]) -> None:
    assert set(shown) == set(defaults())


def test_it_shows_every_setting_once(uncommented: str) -> None:
    # A key that stood twice in one table would not load; this finds one in the prose between.
    keys = Counter(re.findall(r"^(\w+) = ", uncommented, re.MULTILINE))
    twice = {key for key, count in keys.items() if count > 1}
    assert twice == {"labels", "name"}  # of [device] and [inference], and of [model] and [[actions]]


def test_every_default_is_the_one_of_the_code(shown: dict[str, Any]) -> None:
    real = defaults()
    for key, value in shown.items():
        if key not in EXAMPLES:
            *table, name = key.split(".")
            hint = keys(tables()[tuple(table)])[name]
            assert TypeAdapter(hint).validate_python(value) == real[key], key
            assert type(value) in {str, type(real[key])}, key


def test_the_examples_are_those_without_a_default(shown: dict[str, Any]) -> None:
    assert {key: shown[key] for key in EXAMPLES} == EXAMPLES
    without = {key for key, default in defaults().items() if default in (..., None)}
    assert without <= set(EXAMPLES)


def test_times_and_sizes_are_written_as_people_write_them(shown: dict[str, Any]) -> None:
    written = {key for key, value in shown.items() if isinstance(value, str) and value[:1].isdigit()}
    assert {"model.poll_interval", "telemetry.queue.max_size", "actions.timeout"} <= written


def test_every_setting_has_a_description_of_one_sentence() -> None:
    for path, owner in tables().items():
        for name, hint in keys(owner).items():
            if (*path, name) not in tables() or path == ("actions",):
                assert re.fullmatch(r"[A-Z][^.]*(\.[^.\s][^.]*)*\.", description(hint)), (path, name)


def test_the_action_of_the_file_is_valid(shown: dict[str, Any]) -> None:
    action = tomllib.loads(COMMENTED.sub("", FILE.read_text(encoding="utf-8")))["actions"][0]
    assert TypeAdapter(ActionSettings).validate_python(action).when.hold == 0


@pytest.mark.parametrize("name", ["vibration", "recording", "images", "command", "iio"])
def test_the_options_of_the_built_in_sources_are_shown_with_their_defaults(name: str) -> None:
    options = plugins.load(plugins.find(plugins.SOURCES, name)).Options
    text = shown_options(name)
    real = {field.name: field.default for field in dataclasses.fields(options)}
    assert set(text) == set(real)
    for key, default in real.items():
        if default is not dataclasses.MISSING and default is not None:
            value = tomllib.loads(f"value = {text[key]}")["value"]
            assert (parse_duration(value) if isinstance(default, float) else value) == default, key


def shown_options(name: str) -> dict[str, str]:
    text = FILE.read_text(encoding="utf-8")
    [block] = re.findall(rf"^#   {name} .*\n(?:#    +.*\n)*", text, re.MULTILINE)
    return dict(re.findall(r'(\w+) = ("[^"]*"|\[[^]]*\]|[\w.]+)', block))
