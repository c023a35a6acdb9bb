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
from edge_agent.settings.schema import ActionSettings, Limits, Settings, description, keys, tables
from edge_agent.settings.units import parse_duration
from edge_agent.settings.when import When

FILE = Path(__file__).parents[2] / "config" / "edge-agent.toml"
COMMENTED = re.compile(r"^# (?=\w+ = |\[)", re.MULTILINE)
# Other values of a key, one to a line; they stand below the one that is active without its comment sign.
ALTERNATIVE = re.compile(r"^#   (when = \{.*?\})(?: +\(.*\))?$", re.MULTILINE)
# A table of its own, shown on one line, that another task has than the one that the file names.
LIMITS = re.compile(r"^#   (limits = \{.*\})$", re.MULTILINE)
# What has no default, and what is off by default and shown by an example.
EXAMPLES = {
    "device.id": "edge-001",
    "device.labels": {"site": "lyon", "line": "3"},
    "source.plugin": "vibration",
    "model.url": "gs://your-model-bucket/edge-models/vibration-classifier/latest/model_quant_edgetpu.tflite",
    "model.name": "vibration-classifier",
    "model.cpu_url": "gs://your-model-bucket/edge-models/vibration-classifier/latest/model_quant.tflite",
    "model.keys": ["/etc/edge-agent/release.pub.pem"],
    "model.download.bandwidth": "1MB",
    "model.download.window": "01:00-05:00",
    "model.pin": "v1.2",
    "model.trial.samples": 10000,
    "inference.labels": ["normal", "warning", "failure"],
    "inference.limits.low": 10.0,
    "inference.limits.high": 90.0,
    "inference.threshold": 0.4,
    "inference.image_mean": 127.5,
    "inference.image_std": 127.5,
    "telemetry.sink": "pubsub://your-project/inference-results",
    "telemetry.bandwidth": "16kB",
    "telemetry.daily_budget": "20MB",
    "telemetry.raw_data.images": "gs://your-data-bucket/retraining",
    "telemetry.raw_data.max_confidence": 0.6,
    "telemetry.raw_data.max_margin": 0.1,
    "telemetry.raw_data.min_clipped": 0.05,
    "telemetry.raw_data.one_in": 1000,
    "actions.name": "alarm",
    "actions.when.label": "failure",
    "actions.when.min_confidence": 0.8,
    "actions.when.min_count": 4,
    "actions.when.max_count": 0,
    "actions.when.above": 80.0,
    "actions.when.below": 10.0,
    "actions.run": ["/usr/local/bin/trigger-alarm"],
}


@pytest.fixture(scope="module")
def uncommented() -> str:
    return COMMENTED.sub("", FILE.read_text(encoding="utf-8"))


@pytest.fixture
def shown(uncommented: str) -> dict[str, Any]:
    """All values of the file by their dotted key; those of the one action without its number.

    A key of `when` that the active one does not have is that of its alternatives.
    """
    document = tomllib.loads(uncommented)
    [action] = document["actions"]
    more = {key: value for alternative in alternatives() for key, value in alternative.items()}
    [limits] = LIMITS.findall(uncommented)
    inference = document["inference"] | tomllib.loads(limits)
    return flat(document | {"inference": inference, "actions": action | {"when": more | action["when"]}})


def alternatives() -> list[dict[str, Any]]:
    return [tomllib.loads(line)["when"] for line in ALTERNATIVE.findall(FILE.read_text(encoding="utf-8"))]


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in table.items():
        inner = isinstance(value, dict) and f"{prefix}{key}" not in {"device.labels", "inference.device_options"}
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
    # Of [device] and [inference], of [model] and [[actions]], and twice of [telemetry] and a table with limits.
    assert twice == {"labels", "name", "daily_budget", "bandwidth"}


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


def test_each_key_of_when_that_the_action_does_not_have_is_shown_by_one_alternative(uncommented: str) -> None:
    [action] = tomllib.loads(uncommented)["actions"]
    new = Counter(key for alternative in alternatives() for key in alternative if key not in action["when"])
    assert new == Counter(keys(When).keys() - action["when"].keys())


def test_the_alternatives_are_good_with_the_tasks_that_the_file_names(
    settings_file: Callable[[str], Path], uncommented: str
) -> None:
    for line in ALTERNATIVE.findall(uncommented):
        task, top_k = ("detection", 4) if "_count" in line else ("regression", 3)
        text = re.sub(r"^when = .*", line, uncommented, flags=re.MULTILINE)
        text = text.replace('task = "classification"', f'task = "{task}"').replace("top_k = 3", f"top_k = {top_k}")
        text = re.sub(r"^max_(?:confidence|margin) = .*", "", text, flags=re.MULTILINE)  # rules of other tasks
        if task == "regression":
            text = LIMITS.sub(r"\1", re.sub(r"^threshold = .*", "", text, flags=re.MULTILINE))
        settings = load(settings_file(text), {})
        [action] = settings.actions
        assert action.when != When(label="failure", min_confidence=0.8)
        assert settings.inference.limits == (Limits(low=10.0, high=90.0) if task == "regression" else Limits())


@pytest.mark.parametrize("name", ["vibration", "recording", "images", "command", "iio", "camera"])
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
