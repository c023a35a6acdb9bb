"""From a file and an environment to settings, or to messages that say what to mend."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent.settings.faults import NotSetUp, SettingsError
from edge_agent.settings.loading import load
from edge_agent.settings.location import Destination, Location
from edge_agent.settings.publish import Publish
from edge_agent.settings.schema import InferenceSettings, Limits
from edge_agent.settings.when import When

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
cpu_url = "gs://your-model-bucket/edge-models/vibration-classifier/latest/model_quant.tflite"
poll_interval = "5m"
[inference]
labels = ["normal", "warning", "failure"]
device = "usb:1-1.3"
device_options = { Performance = "Max" }
runtime = "tflite-runtime"
task = "detection"
threshold = 0.25
iou_threshold = 0.4
fit = "letterbox"
[telemetry]
health_interval = "1m"
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
    assert settings.model.cpu_url is not None
    assert settings.model.cpu_url.path == "edge-models/vibration-classifier/latest/model_quant.tflite"
    assert settings.inference == InferenceSettings(
        labels=["normal", "warning", "failure"],
        device="usb:1-1.3",
        device_options={"Performance": "Max"},
        runtime="tflite-runtime",
        task="detection",
        threshold=0.25,
        iou_threshold=0.4,
        fit="letterbox",
    )
    assert settings.telemetry.health_interval == 60
    assert settings.telemetry.sink == Destination("pubsub", "your-project", "inference-results")
    assert settings.telemetry.queue.max_size == 2**30
    assert settings.telemetry.queue.commit_interval == 1
    assert settings.actions[0].when == When(label="failure", min_confidence=0.8, hold=2)
    assert settings.actions[0].run == ["/usr/local/bin/trigger-alarm", "-v"]
    assert settings.actions[0].cooldown == 60


@pytest.mark.parametrize(
    ("text", "publish"),
    [
        ("", Publish("all")),
        ('publish = "all"', Publish("all")),
        ('publish = "change"', Publish("change")),
        ("publish = { one_in = 30 }", Publish("one_in", one_in=30)),
        ('publish = { summary = "90s" }', Publish("summary", window=90.0)),
        ("publish = { summary = 60 }", Publish("summary", window=60.0)),
        ("[telemetry.publish]\none_in = 1", Publish("one_in", one_in=1)),
        ('publish = "change"\n[inference]\ntask = "regression"\nlimits = { high = 5.0 }', Publish("change")),
    ],
)
def test_which_results_are_published(settings_file: Write, complete: str, text: str, publish: Publish) -> None:
    assert load(settings_file(complete + text + "\n"), {}).telemetry.publish == publish


@pytest.mark.parametrize("publish", [Publish(), Publish("change"), Publish("one_in", 7), Publish("summary", 1, 90.0)])
def test_which_results_are_published_can_be_written_as_it_is_shown(
    settings_file: Write, complete: str, publish: Publish
) -> None:
    assert load(settings_file(f"{complete}publish = {publish}\n"), {}).telemetry.publish == publish


@pytest.mark.parametrize(("text", "mode"), [("change", "change"), ('{"one_in": 30}', "one_in")])
def test_which_results_are_published_from_the_environment(
    settings_file: Write, complete: str, text: str, mode: str
) -> None:
    settings = load(settings_file(complete), {"EDGE_AGENT_TELEMETRY__PUBLISH": text})
    assert settings.telemetry.publish.mode == mode


def test_the_same_file_gives_equal_settings(settings_file: Write) -> None:
    file = settings_file(FULL)
    assert load(file, {}) == load(file, {})
    assert load(file, {}) != load(file, {"EDGE_AGENT_LOG__LEVEL": "debug"})


def test_relative_paths_start_from_the_folder_of_the_file(
    settings_file: Write, complete: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = 'url = "model.tflite"\ncpu_url = "cpu/model.tflite"'
    text = complete.replace('url = "model.tflite"', twin) + '[inference]\nlabels = "labels.txt"\n'
    file = settings_file(text)
    monkeypatch.chdir(file.parent.parent)
    settings = load(Path(file.parent.name, file.name), {})
    assert settings.model.url == Location("file", "", f"{file.parent}/model.tflite")
    assert settings.model.cpu_url == Location("file", "", f"{file.parent}/cpu/model.tflite")
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
        f"{tmp_path}/none.toml: there is no such file; write it, or name another one"
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
            "timeout = 10s\n",
            (
                "edge-agent.toml:1: no valid TOML, column 13: "
                'there must be only one key = value on a line; what is not only a number needs quotes, as in "10s"'
            ),
        ),
        (
            'when = {\n  label = "failure"\n}\n',
            (
                "edge-agent.toml:1: no valid TOML, column 9: a key is missing here; "
                'a table in braces must stand on one line, without a "," behind its last value'
            ),
        ),
        ('id = "a\n', "edge-agent.toml:1: no valid TOML, column 8: the closing quote of a text is missing"),
        (
            "id = 'a\n",
            "edge-agent.toml:1: no valid TOML, at the end of the file: the closing quote of a text is missing",
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
        ("options = 5",
         (":9: [telemetry].options: unknown key; known here: bandwidth, daily_budget, health_interval, linger, "
          "publish, queue, raw_data, sink")),
        ("[inference]\nimage_std = 0", ":10: [inference].image_std: must be more than 0, not 0"),
        ("[inference]\ndevice = 0", ":10: [inference].device: expected text in quotes, not 0"),
        ('[inference]\naccelerator = "gpu"',
         ':10: [inference].accelerator: expected "auto", "edgetpu" or "cpu", not "gpu"'),
        ('[inference]\ntask = "segmentation"', (':10: [inference].task: expected "classification", "detection", '
         '"regression", "anomaly" or "raw", not "segmentation"')),
        ('[inference]\nruntime = "onnx"', (':10: [inference].runtime: expected "auto", "ai-edge-litert", '
         '"tflite-runtime" or "pycoral", not "onnx"')),
        ('[inference]\nfit = "crop"', ':10: [inference].fit: expected "stretch" or "letterbox", not "crop"'),
        ("[inference]\ndevice_options = { Usb = 5 }",
         ":10: [inference].device_options.Usb: expected text in quotes, not 5"),
        ('[inference]\ndevice_options = "max"', ':10: [inference].device_options: expected a table, not "max"'),
        ("[inference]\nthreshold = -0.1", ":10: [inference].threshold: must be at least 0, not -0.1"),
        ("[inference]\nthreshold = 50", ":10: [inference].threshold: must be at most 1, not 50"),
        ("[inference]\niou_threshold = 0", ":10: [inference].iou_threshold: must be more than 0, not 0"),
        ("[inference]\niou_threshold = 1.5", ":10: [inference].iou_threshold: must be at most 1, not 1.5"),
        ('[inference.limits]\nlow = "cold"', ':10: [inference.limits].low: expected a number, not "cold"'),
        ("[inference.limits]\n\nhigh = inf", ":11: [inference.limits].high: expected a finite number, not Infinity"),
        ("[inference.limits]\nlow = 5\nhigh = 5", ":9: [inference.limits]: low 5 must be less than high 5"),
        ("[inference.limits]\nmax = 5", ":10: [inference.limits].max: unknown key; known here: high, low"),
        ('publish = "changes"', (':9: [telemetry].publish: expected "all", "change", { one_in = 30 } or '
         '{ summary = "1m" }, not "changes"')),
        ("publish = { one_in = 30, summary = 5 }", (':9: [telemetry].publish: expected "all", "change", '
         '{ one_in = 30 } or { summary = "1m" }, not {"one_in": 30, "summary": 5}')),
        ("publish = { one_in = 0 }",
         ":9: [telemetry].publish: one_in must be a whole number from 1 to 1000000, not 0"),
        ("publish = { one_in = true }",
         ":9: [telemetry].publish: one_in must be a whole number from 1 to 1000000, not true"),
        ('[telemetry.publish]\nsummary = "10 parsecs"', (':9: [telemetry].publish: "10 parsecs" is no duration; '
         'write for instance "200ms", "10s" or "1h30m"')),
        ('publish = { summary = "500ms" }',
         ':9: [telemetry].publish: summary must be from "1s" to "1d", not "500ms"'),
        ('publish = "change"\n[inference]\ntask = "raw"', (":9: [telemetry].publish: the task raw has no prediction "
         'that could change; write { one_in = 30 } or { summary = "1m" }')),
        ('publish = "change"\n[inference]\ntask = "anomaly"', (":9: [telemetry].publish: without [inference.limits] a "
         'value has no prediction that could change; set one, or write { one_in = 30 } or { summary = "1m" }')),
        ('health_interval = "9s"', ':9: [telemetry].health_interval: must be at least 10s, not "9s"'),
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
        ("[actions]\nname = 'a'",
         ":9: [[actions]]: there may be several of them, so each begins with two brackets: [[actions]]"),
        ('[[actions]]\nname = "a"\nlabel = "b"\nrun = ["c"]\nwhen = { label = "b" }',
         ":11: [[actions]] \"a\".label: unknown key here; it belongs in [actions.when]"),
        ("[model.trial]\nhold = true",
         ":10: [model.trial].hold: unknown key here; it belongs in [model] or [actions.when]"),
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
        "edge-agent.toml:19: [[actions]] number 2.when.labl: unknown key (did you mean 'label'?)",
    ]


def test_an_action_must_rest(faults: Faults, complete: str) -> None:
    action = '[[actions]]\nname = "alarm"\nwhen = { label = "x" }\nrun = ["beep"]\ncooldown = "0s"\n'
    assert faults(complete + action) == [
        'edge-agent.toml:13: [[actions]] "alarm".cooldown: must be at least 100ms, not "0s"'
    ]


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("", "names no condition; it needs one of label, min_confidence, min_count, max_count, above, below"),
        ('hold = "5s", hysteresis = 0.1',
         "names no condition; it needs one of label, min_confidence, min_count, max_count, above, below"),
        ("min_count = 3, max_count = 2", "no number is at least 3 (min_count) and at most 2 (max_count)"),
        ("above = 5, below = 5", "no value is above 5 and below 5; for values outside a range write two actions"),
        ("min_count = 1, above = 5", "above and min_count do not go together: no task gives both values and scores"),
        ("below = 5, min_confidence = 0.5",
         "below and min_confidence do not go together: no task gives both values and scores"),
        ('label = "x", hysteresis = 0.1',
         "hysteresis 0.1 must be less than min_confidence 0, or no score would end the condition"),
        ("min_confidence = 0.5, hysteresis = 0.5",
         "hysteresis 0.5 must be less than min_confidence 0.5, or no score would end the condition"),
        ("max_count = 0, min_confidence = 0.8, hysteresis = 0.3",
         "min_confidence 0.8 and hysteresis 0.3 come to more than 1, so no score would end the condition"),
    ],
)  # fmt: skip
def test_an_action_whose_conditions_make_no_sense(faults: Faults, complete: str, when: str, message: str) -> None:
    action = f'[[actions]]\nname = "alarm"\nrun = ["beep"]\nwhen = {{ {when} }}\n'
    assert faults(complete + action) == [f'edge-agent.toml:12: [[actions]] "alarm".when: {message}']


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("label = []", ".label: expected a name or a list of names, not []"),
        ('label = ["x", 5]', '.label: expected a name or a list of names, not ["x", 5]'),
        ('label = ""', '.label: expected a name or a list of names, not ""'),
        ("min_count = 0", ".min_count: must be at least 1, not 0"),
        ("max_count = -1", ".max_count: must be at least 0, not -1"),
        ("max_count = 1.5", ".max_count: expected a whole number, not 1.5"),
        ("above = true", ".above: expected a number, not true"),
        ("below = nan", ".below: expected a finite number, not NaN"),
        ("above = 5, hysteresis = -1", ".hysteresis: must be at least 0, not -1"),
    ],
)
def test_a_wrong_value_in_a_condition(faults: Faults, complete: str, when: str, message: str) -> None:
    action = f'[[actions]]\nname = "alarm"\nrun = ["beep"]\nwhen = {{ {when} }}\n'
    assert faults(complete + action) == [f'edge-agent.toml:12: [[actions]] "alarm".when{message}']


@pytest.mark.parametrize(
    ("inference", "when", "message"),
    [
        ('task = "classification"', "min_count = 1",
         'min_count: needs [inference].task "detection", not "classification"'),
        ('task = "regression"', "max_count = 0", 'max_count: needs [inference].task "detection", not "regression"'),
        ('task = "detection"', "above = 5",
         'above: needs [inference].task "regression" or "anomaly", not "detection"'),
        ('task = "anomaly"', "min_confidence = 0.5",
         'min_confidence: needs [inference].task "classification" or "detection", not "anomaly"'),
        ('task = "raw"', 'label = "x"',
         'label: needs [inference].task "classification", "detection", "regression" or "anomaly", not "raw"'),
        ('task = "detection"', "min_count = 4",
         "min_count: 4 objects are never found: an event has at most 3 ([inference].top_k)"),
        ('task = "detection"\ntop_k = 5', "max_count = 5",
         "max_count: more than 5 objects are never found: an event has at most 5 ([inference].top_k)"),
        ('task = "detection"', "min_confidence = 0.3",
         "min_confidence: no score from 0.3 to 0.4 is ever seen: [inference].threshold leaves it out; set that to 0.3"),
        ('task = "detection"', "min_confidence = 0.3, max_count = 0, hysteresis = 0.2",
         "min_confidence: no score from 0.3 to 0.4 is ever seen: [inference].threshold leaves it out; set that to 0.3"),
        ('task = "detection"\nthreshold = 0.5', "min_confidence = 0.5, hysteresis = 0.2",
         ("min_confidence: no score from 0.3 (less hysteresis 0.2) to 0.5 is ever seen: [inference].threshold leaves "
          "it out; set that to 0.3")),
        ('task = "classification"\nthreshold = 0.8', "min_confidence = 0.5",
         "min_confidence: no score from 0.5 to 0.8 is ever seen: [inference].threshold leaves it out; set that to 0.5"),
    ],
)  # fmt: skip
def test_an_action_that_does_not_fit_the_model(
    faults: Faults, complete: str, inference: str, when: str, message: str
) -> None:
    actions = f'[[actions]]\nname = "alarm"\nrun = ["beep"]\nwhen = {{ {when} }}\n'
    line = 13 + inference.count("\n") + 1
    assert faults(f"{complete}[inference]\n{inference}\n{actions}") == [
        f'edge-agent.toml:{line}: [[actions]] "alarm".when.{message}'
    ]


@pytest.mark.parametrize(
    ("inference", "message"),
    [
        ("limits = { high = 5.0 }",
         'limits.high: needs [inference].task "regression" or "anomaly", not "classification"'),
        ('task = "detection"\nlimits = { low = 5 }',
         'limits.low: needs [inference].task "regression" or "anomaly", not "detection"'),
        ("iou_threshold = 0.6", 'iou_threshold: needs [inference].task "detection", not "classification"'),
        ('task = "regression"\ntop_k = 1',
         'top_k: needs [inference].task "classification" or "detection", not "regression"'),
        ('task = "anomaly"\nthreshold = 0.0',
         'threshold: needs [inference].task "classification" or "detection", not "anomaly"'),
        ('task = "raw"\nlabels = ["a"]',
         'labels: needs [inference].task "classification", "detection", "regression" or "anomaly", not "raw"'),
    ],
)  # fmt: skip
def test_a_key_that_has_no_effect_with_the_task(faults: Faults, complete: str, inference: str, message: str) -> None:
    line = 10 + inference.count("\n")
    key, _, why = message.partition(": ")
    shown = f"[inference.limits].{key.partition('.')[2]}" if "." in key else f"[inference].{key}"
    assert faults(f"{complete}[inference]\n{inference}\n") == [f"edge-agent.toml:{line}: {shown}: {why}"]


def test_a_table_of_limits_for_another_task_is_told_by_its_keys(faults: Faults, complete: str) -> None:
    assert faults(f"{complete}[inference.limits]\nlow = 1\nhigh = 2\n") == [
        f'edge-agent.toml:{line}: [inference.limits].{key}: needs [inference].task "regression" or "anomaly", not '
        '"classification"'
        for line, key in ((10, "low"), (11, "high"))
    ]


def test_conditions_that_make_sense(settings_file: Write, complete: str) -> None:
    detection = """
[inference]
task = "detection"
top_k = 10
[[actions]]
name = "crowd"
when = { label = ["person", "child"], min_confidence = 0.5, min_count = 4, hysteresis = 0.1 }
run = ["beep"]
[[actions]]
name = "one or two"
when = { min_count = 1, max_count = 2 }
run = ["beep"]
[[actions]]
name = "nobody"
when = { label = "person", max_count = 0, hysteresis = 0.5, hold = "10s" }
run = ["beep"]
[[actions]]
name = "sure of anything"
when = { min_confidence = 0.9 }
run = ["beep"]
"""
    crowd, few, nobody, _ = load(settings_file(complete + detection), {}).actions
    assert crowd.when == When(label=["person", "child"], min_confidence=0.5, min_count=4, hysteresis=0.1)
    assert few.when == When(min_count=1, max_count=2)
    assert nobody.when == When(label="person", max_count=0, hysteresis=0.5, hold=10)
    regression = """
[inference]
task = "regression"
limits = { low = -5 }
[[actions]]
name = "hot"
when = { above = 80, hysteresis = 100 }
run = ["beep"]
[[actions]]
name = "within"
when = { label = "low", above = -10, below = -5.5 }
run = ["beep"]
"""
    settings = load(settings_file(complete + regression), {})
    assert settings.inference.limits == Limits(low=-5)
    hot, within = settings.actions
    assert hot.when == When(above=80, hysteresis=100)
    assert within.when == When(label="low", above=-10, below=-5.5)


@pytest.mark.parametrize(
    "name", ["", ":0", "usb", "usb:0", "pci:12", "usb:1-1", "usb:1-1.3.4", "pci:01:00.0", "pci:0000:0a:00.7"]
)
def test_the_names_of_an_edge_tpu(settings_file: Write, complete: str, name: str) -> None:
    text = f'{complete}[inference]\ndevice = "{name}"\n'
    assert load(settings_file(text), {}).inference.device == name


@pytest.mark.parametrize(
    "name", ["0", "usb:", "usb:1-", "usb:1.3", "pci:1234", "usb:1-1\\n", "USB:0", "/dev/apex_0", "pci:0000:01:00"]
)
def test_what_names_no_edge_tpu(faults: Faults, complete: str, name: str) -> None:
    assert faults(f'{complete}[inference]\ndevice = "{name}"\n') == [
        (
            f'edge-agent.toml:10: [inference].device: "{name}" names no Edge TPU; '
            'write for instance "usb:1-1.3", "pci:0000:01:00.0", "usb:0"'
        )
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
