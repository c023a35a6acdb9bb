"""From a file and an environment to settings, or to messages that say what to mend."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.settings.faults import NotSetUp, SettingsError
from edge_agent.settings.loading import load
from edge_agent.settings.location import Destination, Location
from edge_agent.settings.schema import When

Write = Callable[[str], Path]
Faults = Callable[..., list[str]]

FULL = """\
[device]
id = "edge-001"
labels = { site = "lyon" }
[source]
plugin = "recording"
path = "samples.csv"
rate = 10
[model]
url = "gs://your-model-bucket/edge-models/vibration-classifier/latest/model_quant_edgetpu.tflite"
poll_interval = "5m"
[inference]
labels = ["normal", "warning", "failure"]
[telemetry]
sink = "pubsub://your-project/inference-results"
[telemetry.queue]
max_size = "1GiB"
[[actions]]
name = "alarm"
when = { label = "failure", min_confidence = 0.8, hold = "2s" }
run = ["/usr/local/bin/trigger-alarm", "-v"]
"""


def test_a_full_file(settings_file: Write) -> None:
    settings = load(settings_file(FULL), {})
    assert settings.device.id == "edge-001"
    assert settings.device.labels == {"site": "lyon"}
    assert settings.source.plugin == "recording"
    assert settings.source.options == {"path": "samples.csv", "rate": 10}
    assert settings.model.url.bucket == "your-model-bucket"
    assert settings.model.model_name == "vibration-classifier"
    assert settings.model.poll_interval == 300
    assert settings.inference.labels == ["normal", "warning", "failure"]
    assert settings.telemetry.sink == Destination("pubsub", "your-project", "inference-results")
    assert settings.telemetry.queue.max_size == 2**30
    assert settings.telemetry.queue.commit_interval == 1
    assert settings.actions[0].when == When(label="failure", min_confidence=0.8, hold=2)
    assert settings.actions[0].run == ["/usr/local/bin/trigger-alarm", "-v"]
    assert settings.actions[0].cooldown == 60


def test_the_same_file_gives_equal_settings(settings_file: Write) -> None:
    file = settings_file(FULL)
    assert load(file, {}) == load(file, {})
    assert load(file, {}) != load(file, {"EDGE_AGENT_LOG__LEVEL": "debug"})


def test_relative_paths_start_from_the_folder_of_the_file(
    settings_file: Write, complete: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = settings_file(complete + '[inference]\nlabels = "labels.txt"\n')
    monkeypatch.chdir(file.parent.parent)
    settings = load(Path(file.parent.name, file.name), {})
    assert settings.model.url == Location("file", "", f"{file.parent}/model.tflite")
    assert settings.telemetry.sink == Destination("file", path=f"{file.parent}/events.jsonl")
    assert settings.inference.labels == f"{file.parent}/labels.txt"


def test_a_byte_order_mark_is_no_fault(settings_file: Write, complete: str) -> None:
    assert load(settings_file("\ufeff" + complete), {}).source.plugin == "vibration"


# ------------------------------------------------------------------------------------------ the environment


def test_the_environment_wins_over_the_file(settings_file: Write, complete: str) -> None:
    environ = {
        "EDGE_AGENT_TELEMETRY__SINK": "pubsub://project/topic",
        "EDGE_AGENT_TELEMETRY__QUEUE__MAX_SIZE": "2MB",
        "EDGE_AGENT_SOURCE__RATE": "5",
        "EDGE_AGENT_SOURCE__SHAPE": "[1, 2]",
        "EDGE_AGENT_SOURCE__PATTERN": "[ab]*",
        "EDGE_AGENT_INFERENCE__LABELS": '["a", "b"]',
        "EDGE_AGENT_INFERENCE__TOP_K": "2",
        "EDGE_AGENT_DEVICE__LABELS__SITE": "lyon",
        "EDGE_AGENT_ACTIONS": '[{"name": "x", "when": {"label": "y"}, "run": ["z"]}]',
        "EDGE_AGENT_CONFIG": "/etc/edge-agent.toml",
        "EDGE_AGENT_STATE_DIR": "/var/lib/edge-agent",
        "OTHER__SINK": "x",
    }
    settings = load(settings_file(complete), environ)
    assert settings.telemetry.sink == Destination("pubsub", "project", "topic")
    assert settings.telemetry.queue.max_size == 2_000_000
    assert settings.source.options == {"rate": "5", "shape": [1, 2], "pattern": "[ab]*"}
    assert settings.inference.labels == ["a", "b"]
    assert settings.inference.top_k == 2
    assert settings.device.labels == {"site": "lyon"}
    assert settings.actions[0].name == "x"


def test_a_path_from_the_environment_starts_from_the_same_folder(settings_file: Write, complete: str) -> None:
    file = settings_file(complete)
    settings = load(file, {"EDGE_AGENT_MODEL__URL": "new.tflite", "EDGE_AGENT_INFERENCE__LABELS": "l.txt"})
    assert settings.model.url.path == f"{file.parent}/new.tflite"
    assert settings.inference.labels == f"{file.parent}/l.txt"


def test_the_environment_of_this_process_is_read_by_default(
    settings_file: Write, complete: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGE_AGENT_LOG__LEVEL", "debug")
    assert load(settings_file(complete)).log.level == "debug"


def test_a_bad_value_in_the_environment_names_the_variable(faults: Faults, complete: str) -> None:
    environ = {
        "EDGE_AGENT_TELEMETRY__LINGER": "10 parsecs",
        "EDGE_AGENT_TELEMETRY__QUEUE": "big",
        "EDGE_AGENT_ACTIONS": "alarm",
        "EDGE_AGENT_INFERENCE__LABELS": '["a", 5]',
    }
    assert faults(complete, environ) == [
        'environment variable EDGE_AGENT_ACTIONS: [[actions]]: expected a list, not "alarm", written as JSON',
        (
            "environment variable EDGE_AGENT_INFERENCE__LABELS: [inference].labels: "
            'expected a list of names or the path of a file, not ["a", 5]'
        ),
        (
            "environment variable EDGE_AGENT_TELEMETRY__LINGER: [telemetry].linger: "
            '"10 parsecs" is no duration; write for instance "200ms", "10s" or "1h30m"'
        ),
        (
            "environment variable EDGE_AGENT_TELEMETRY__QUEUE: [telemetry.queue]: "
            'expected a table, not "big", written as JSON'
        ),
    ]


def test_a_wrong_name_in_the_environment_is_a_fault(faults: Faults, complete: str) -> None:
    environ = {
        "EDGE_AGENT_TELEMETRY__SINKK": "x",
        "EDGE_AGENT_TELEMETRI__SINK": "x",
        "EDGE_AGENT_MODEL_URL": "x",
        "EDGE_AGENT_ACTIONS__0__NAME": "x",
    }
    assert faults(complete, environ) == [
        "environment variable EDGE_AGENT_ACTIONS__0__NAME: there is no such setting (did you mean EDGE_AGENT_ACTIONS?)",
        "environment variable EDGE_AGENT_MODEL_URL: there is no such setting (did you mean EDGE_AGENT_MODEL__URL?)",
        (
            "environment variable EDGE_AGENT_TELEMETRI__SINK: "
            "there is no such setting (did you mean EDGE_AGENT_TELEMETRY__SINK?)"
        ),
        (
            "environment variable EDGE_AGENT_TELEMETRY__SINKK: "
            "there is no such setting (did you mean EDGE_AGENT_TELEMETRY__SINK?)"
        ),
    ]


# ------------------------------------------------------------------------------------------ files that cannot be read


def test_no_file(tmp_path: Path) -> None:
    assert message_of(tmp_path / "none.toml") == (
        f"{tmp_path}/none.toml: there is no such file; write it, or name another one with --config FILE"
    )


def test_a_folder(tmp_path: Path) -> None:
    assert message_of(tmp_path) == f"{tmp_path}: this is a folder; name the file in it"


@pytest.fixture
def nobody() -> Iterator[int]:
    """Be an ordinary user for a moment, as root may read everything."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield os.geteuid()
    os.seteuid(user)


def test_no_permission(settings_file: Write, complete: str, request: pytest.FixtureRequest) -> None:
    file = settings_file(complete)
    file.chmod(0)
    user = request.getfixturevalue("nobody")
    assert (
        message_of(file) == f"{file}: user {user} may not read it; give that user the right to, as root does with chmod"
    )


def test_another_trouble_of_the_system(tmp_path: Path) -> None:
    file = tmp_path / "loop.toml"
    file.symlink_to(file)
    assert message_of(file) == f"{file}: cannot be read: Too many levels of symbolic links"


def test_another_encoding(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes('[device]\n\nid = "caf\xe9"\n'.encode("latin-1"))
    assert message_of(file) == f"{file}:3: this is not UTF-8; save the file as UTF-8 text"


def message_of(file: Path) -> str:
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    return str(caught.value)


# ------------------------------------------------------------------------------------------ files that are no TOML


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = " + "[" * 9999 + "]" * 9999, "edge-agent.toml: no valid TOML: "),
        ("a = " + "9" * 9999, "edge-agent.toml: no valid TOML: "),
    ],
)
def test_what_is_too_much_for_the_parser(faults: Faults, text: str, message: str) -> None:
    [fault] = faults(text)
    assert fault.startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[source]\nplugin = vibration\n",
            (
                "edge-agent.toml:2: no valid TOML, column 10: "
                'the value is not understood; text needs quotes, as in plugin = "vibration"'
            ),
        ),
        ("[source]\nplugin\n", 'edge-agent.toml:2: no valid TOML, column 7: there must be a "=" after the key'),
        (
            "a = 1 b = 2\n",
            "edge-agent.toml:1: no valid TOML, column 7: there must be only one key = value on a line",
        ),
        (
            "[source\n",
            'edge-agent.toml:1: no valid TOML, column 8: the "]" after the name of the table is missing',
        ),
        ("= 1\n", "edge-agent.toml:1: no valid TOML, column 1: this is neither a [table] nor key = value"),
        (
            'run = ["a" "b"]\n',
            'edge-agent.toml:1: no valid TOML, column 12: a "," or the closing "]" of a list is missing',
        ),
        (
            "when = { a = 1 b = 2 }\n",
            'edge-agent.toml:1: no valid TOML, column 16: a "," or the closing "}" is missing',
        ),
        (
            '\n[source]\nplugin = """x\n\n',
            "edge-agent.toml:3: no valid TOML, at the end of the file: the closing quote of a text is missing",
        ),
        (
            'path = "C:\\data"\n',
            (
                "edge-agent.toml:1: no valid TOML, column 13: "
                "a backslash in double quotes must be doubled; or use single quotes"
            ),
        ),
        (
            "[telemetry.queue]\n[source]\n[telemetry.queue]\n",
            "edge-agent.toml:3: no valid TOML, column 17: the table [telemetry.queue] stands twice",
        ),
        (
            "[log]\n[log]\n",
            "edge-agent.toml:2: no valid TOML, column 5: the table [log] stands twice",
        ),
        (
            "[source]\nrate = 1\nrate = 2\n[log]\n",
            "edge-agent.toml:3: no valid TOML, column 9: a key stands twice in the same table",
        ),
    ],
)
def test_syntax_errors(faults: Faults, text: str, message: str) -> None:
    assert faults(text) == [message]


# ------------------------------------------------------------------------------------------ values that are wrong


def test_what_is_missing_is_told_apart_from_what_is_wrong(settings_file: Write, complete: str) -> None:
    without_url = complete.replace('url = "model.tflite"', "")
    with pytest.raises(NotSetUp) as caught:
        load(settings_file(without_url), {})
    assert caught.value.missing == ["[model].url"]
    for wrong in ("[log]\nlevel = 5\n", "[xyz]\n", '[[actions]]\nname = "a"\nwhen = { label = "b" }\n'):
        with pytest.raises(SettingsError) as caught_too:
            load(settings_file(without_url + wrong), {})
        assert not isinstance(caught_too.value, NotSetUp)
    with pytest.raises(SettingsError) as caught_too:
        load(settings_file(without_url), {"EDGE_AGENT_LOG_LEVEL": "debug"})
    assert not isinstance(caught_too.value, NotSetUp)


def test_a_missing_action_line_alone_is_a_fault(settings_file: Write, complete: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(settings_file(complete + '[[actions]]\nname = "a"\nwhen = { label = "b" }\n'), {})
    assert not isinstance(caught.value, NotSetUp)


def test_an_empty_file_tells_what_is_needed(faults: Faults) -> None:
    assert faults("") == [
        "edge-agent.toml: [source].plugin: is missing (name of the plugin that reads the samples)",
        (
            "edge-agent.toml: [model].url: is missing "
            "(where the model is fetched from: gs://BUCKET/OBJECT, file:///PATH or a path)"
        ),
        (
            "edge-agent.toml: [telemetry].sink: is missing "
            "(where events go: pubsub://PROJECT/TOPIC, file:///PATH or a path)"
        ),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[inference]\ntopk = 3', ":10: [inference].topk: unknown key (did you mean 'top_k'?)"),
        ("[log]\nxyz = 3", ":10: [log].xyz: unknown key; known here: format, level"),
        ('max_size = "1MB"', ":9: [telemetry].max_size: unknown key here; it belongs in [telemetry.queue]"),
        ("[telemetri]\nraw_data = 3", ":9: [telemetri]: unknown table (did you mean 'telemetry'?)"),
        ("[[action]]\nname = 'a'", ":9: [[action]]: unknown table (did you mean 'actions'?)"),
        ("[telemetry.queu]\nx = 3", ":9: [telemetry].queu: unknown key (did you mean 'queue'?)"),
        ('[inference]\ntop_k = "fast"', ':10: [inference].top_k: expected a whole number, not "fast"'),
        ("[inference]\ntop_k = 1.5", ":10: [inference].top_k: expected a whole number, not 1.5"),
        ("[inference]\ntop_k = true", ":10: [inference].top_k: expected a number, not true"),
        ("[inference]\ntop_k = 0", ":10: [inference].top_k: must be at least 1, not 0"),
        ("[inference]\nimage_mean = []", ":10: [inference].image_mean: expected a number, not []"),
        ("[inference]\nimage_mean = nan", ":10: [inference].image_mean: expected a finite number, not NaN"),
        ("[inference]\nimage_mean = true", ":10: [inference].image_mean: expected a number, not true"),
        ('[device]\nid = ""', ':10: [device].id: may hold 1 to 128 letters, digits and . _ ~ % + - only, not ""'),
        ("options = 5", ":9: [telemetry].options: unknown key; known here: linger, queue, raw_data, sink"),
        ("[inference]\nimage_std = 0", ":10: [inference].image_std: must be more than 0, not 0"),
        ("[inference]\ndevice = 0", ":10: [inference].device: expected text in quotes, not 0"),
        ('[inference]\naccelerator = "gpu"',
         ':10: [inference].accelerator: expected "auto", "edgetpu" or "cpu", not "gpu"'),
        ('[inference]\ntask = "detection"', ':10: [inference].task: expected "classification", not "detection"'),
        ("[inference]\nlabels = []", ":10: [inference].labels: expected a list of names or the path of a file, not []"),
        ('[inference]\ndeadline = "10 parsecs"', (':10: [inference].deadline: "10 parsecs" is no duration; '
         'write for instance "200ms", "10s" or "1h30m"')),
        ('[inference]\ndeadline = "100ms"', ':10: [inference].deadline: must be at least 1s, not "100ms"'),
        ('[telemetry.queue]\nmax_size = "9kB"', ':10: [telemetry.queue].max_size: must be at least 1MB, not "9kB"'),
        ('[telemetry.queue]\nmax_size = "3 buckets"', (':10: [telemetry.queue].max_size: "3 buckets" is no size; '
         'write for instance "500kB", "256MB" or "1GiB"')),
        ('[telemetry.queue]\ncommit_interval = "2m"',
         ':10: [telemetry.queue].commit_interval: must be at most 1m, not "2m"'),
        ('[device]\nid = "a/b"', ':10: [device].id: may hold 1 to 128 letters, digits and . _ ~ % + - only, not "a/b"'),
        ("[device]\nlabels = { site = 5 }", ":10: [device].labels.site: expected text in quotes, not 5"),
        ("[device.labels]\n\nsite = 5", ":11: [device].labels.site: expected text in quotes, not 5"),
        ("[log]\nlevel = 'warn'", ':10: [log].level: expected "debug", "info", "warning" or "error", not "warn"'),
        ("[actions]\nname = 'a'", ':9: [[actions]]: expected a list, not {"name": "a"}'),
    ],
)  # fmt: skip
def test_a_fault_in_one_line(faults: Faults, complete: str, text: str, message: str) -> None:
    assert faults(complete + text + "\n") == [f"edge-agent.toml{message}"]


def test_a_table_that_is_no_table(faults: Faults, complete: str) -> None:
    assert faults("log = 5\n" + complete) == ["edge-agent.toml:1: [log]: expected a table, not 5"]


def test_a_key_before_the_first_table(faults: Faults, complete: str) -> None:
    assert faults('accelerator = "cpu"\nx = 1\n' + complete) == [
        "edge-agent.toml:1: accelerator: unknown key here; it belongs in [inference]",
        "edge-agent.toml:2: x: unknown key; known here: actions, device, inference, log, model, source, telemetry",
    ]


def test_faults_of_actions_name_the_action(faults: Faults, complete: str) -> None:
    actions = """
[[actions]]
name = "alarm"
when = { label = "failure", min_confidence = 2 }
run = ["beep", 5]
colldown = "1m"

[[actions]]
run = []
[actions.when]
labl = "x"
"""
    assert faults(complete + actions) == [
        'edge-agent.toml:12: [[actions]] "alarm".when.min_confidence: must be at most 1, not 2',
        'edge-agent.toml:13: [[actions]] "alarm".run: item 2: expected text in quotes, not 5',
        "edge-agent.toml:14: [[actions]] \"alarm\".colldown: unknown key (did you mean 'cooldown'?)",
        "edge-agent.toml:16: [[actions]] number 2.name: is missing (name of the rule in events and log lines)",
        "edge-agent.toml:17: [[actions]] number 2.run: must not be empty",
        "edge-agent.toml:18: [[actions]] number 2.when.label: is missing (the best class of the result)",
        "edge-agent.toml:19: [[actions]] number 2.when.labl: unknown key (did you mean 'label'?)",
    ]


def test_an_action_must_rest(faults: Faults, complete: str) -> None:
    action = '[[actions]]\nname = "alarm"\nwhen = { label = "x" }\nrun = ["beep"]\ncooldown = "0s"\n'
    assert faults(complete + action) == [
        'edge-agent.toml:13: [[actions]] "alarm".cooldown: must be at least 100ms, not "0s"'
    ]


def test_two_actions_of_one_name(faults: Faults, complete: str) -> None:
    action = '[[actions]]\nname = "alarm"\nwhen = { label = "x" }\nrun = ["beep"]\n'
    assert faults(complete + action + action) == [
        'edge-agent.toml:9: [[actions]]: the name "alarm" stands twice; each action needs its own'
    ]


def test_all_faults_at_once_in_the_order_of_the_file(faults: Faults) -> None:
    text = '[log]\nlevel = "loud"\n[model]\nurl = 5\n[sauce]\n[telemetry]\nsink = "x/"\nlinger = -1\n'
    assert faults(text, {"EDGE_AGENT_LOG__FORMAT": "pink"}) == [
        "edge-agent.toml: [source].plugin: is missing (name of the plugin that reads the samples)",
        'edge-agent.toml:2: [log].level: expected "debug", "info", "warning" or "error", not "loud"',
        "edge-agent.toml:4: [model].url: expected gs://BUCKET/OBJECT or a path in quotes, not 5",
        "edge-agent.toml:5: [sauce]: unknown table (did you mean 'source'?)",
        'edge-agent.toml:7: [telemetry].sink: "x/" names a folder; name the file in it',
        'edge-agent.toml:8: [telemetry].linger: -1 is no duration; write for instance "200ms", "10s" or "1h30m"',
        (
            "environment variable EDGE_AGENT_LOG__FORMAT: [log].format: "
            'expected "auto", "console" or "journal", not "pink"'
        ),
    ]


def test_a_secret_is_not_shown(faults: Faults, complete: str) -> None:
    key = "-----BEGIN PRIVATE KEY-----\\nMIIEvQIBADANBgkqh\\n-----END PRIVATE KEY-----\\n"
    assert faults(complete + f'[inference]\ntop_k = "{key}"\n') == [
        (
            "edge-agent.toml:10: [inference].top_k: "
            "expected a whole number, not (a value that looks secret and is not shown)"
        )
    ]
