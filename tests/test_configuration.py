"""The whole settings file, checked as `edge-agent check-config` does, with every class of mistake."""

import asyncio
from pathlib import Path

import pytest

from edge_agent.configuration import load_configuration
from edge_agent.settings.faults import SettingsError


def checked(file: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        asyncio.run(load_configuration(file, environ or {}))
    return str(caught.value).replace(f"{file.parent}/", "").splitlines()


def test_a_good_file_gives_settings_and_options(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    (tmp_path / "samples.csv").write_text("1,2\n3,4\n")
    file.write_text(
        '[source]\nplugin = "recording"\npath = "samples.csv"\nrate = 10\n'
        '[model]\nurl = "m.tflite"\n[telemetry]\nsink = "e.jsonl"\n'
    )
    loaded = asyncio.run(load_configuration(file, {"EDGE_AGENT_SOURCE__REPEAT": "true"}))
    assert loaded.settings.source.plugin == "recording"
    assert loaded.labels is None
    assert loaded.options == {"path": f"{tmp_path}/samples.csv", "rate": 10.0, "repeat": True}


def test_faults_of_the_source_stand_among_the_others(tmp_path: Path) -> None:
    text = '[source]\nrate = "fast"\nplugin = "vibration"\nsed = 1\n[model]\nurl = 5\n[telemetry]\nsink = "e.jsonl"\n'
    assert checked(tmp_path / "x.toml", text, {"EDGE_AGENT_SOURCE__NORMAL": "10 parsecs"}) == [
        'x.toml:2: [source].rate: expected a number, not "fast"',
        "x.toml:4: [source].sed: unknown key (did you mean 'seed'?)",
        "x.toml:6: [model].url: expected gs://BUCKET/OBJECT or a path in quotes, not 5",
        (
            "environment variable EDGE_AGENT_SOURCE__NORMAL: [source].normal: "
            '"10 parsecs" is no duration; write for instance "200ms", "10s" or "1h30m"'
        ),
    ]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ('plugin = "vibratoin"', "x.toml:2: [source].plugin: no such plugin (did you mean 'vibration'?)"),
        ('\nplugin = "recording"\npath = "none.csv"', "x.toml:1: [source]: none.csv: no such file or directory"),
        ('plugin = "recording"', "x.toml:1: [source].path: is missing"),
        ("plugin = 5", "x.toml:2: [source].plugin: expected text in quotes, not 5"),
        ('plugin = ""', "x.toml:2: [source].plugin: must not be empty"),
    ],
)
def test_one_fault_of_the_source(tmp_path: Path, source: str, message: str) -> None:
    text = f'[source]\n{source}\n[model]\nurl = "m.tflite"\n[telemetry]\nsink = "e.jsonl"\n'
    assert checked(tmp_path / "x.toml", text) == [message]


def test_labels_are_read_with_the_settings(tmp_path: Path) -> None:
    rest = '[source]\nplugin = "vibration"\n[model]\nurl = "m.tflite"\n[telemetry]\nsink = "e.jsonl"\n[inference]\n'
    file = tmp_path / "x.toml"
    (tmp_path / "labels.txt").write_text("0 normal\n1 failure\n")
    file.write_text(rest + 'labels = "labels.txt"\n')
    assert asyncio.run(load_configuration(file, {})).labels == ["normal", "failure"]
    file.write_text(rest + 'labels = ["normal", "failure"]\n')
    assert asyncio.run(load_configuration(file, {})).labels == ["normal", "failure"]
    (tmp_path / "labels.txt").write_text("normal\n\nfailure\n")
    assert checked(file, rest + 'labels = "labels.txt"\n') == [
        "x.toml:8: [inference].labels: labels.txt:2: an empty line between labels"
    ]
    assert checked(file, rest + 'labels = "none.txt"\n') == [
        "x.toml:8: [inference].labels: none.txt: No such file or directory"
    ]
