"""The whole settings file, checked as `edge-agent check-config` does, with every class of mistake."""

import asyncio
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.configuration import CHECK_DEADLINE, Configuration, load_configuration
from edge_agent.inference.protocol import RawDataOptions
from edge_agent.settings.faults import NotSetUp, SettingsError
from edge_agent.settings.loading import load
from tests.settings.distributions import install

ROOT = Path(__file__).parents[1]
LEAST = '[source]\nplugin = "vibration"\n[model]\nurl = "m.tflite"\n[telemetry]\nsink = "e.jsonl"\n'


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
    assert loaded.settings.source.options == {"path": f"{tmp_path}/samples.csv", "rate": 10.0, "repeat": True}
    assert loaded.source == "edge_agent.sources.recording:Recording"
    worker = loaded.worker("edge-001", tmp_path)
    assert (worker.plugin, worker.options) == (loaded.source, loaded.settings.source.options)
    assert (worker.model.raw_data, worker.raw_data) == (0, None)


def test_without_a_rule_the_model_gives_values_of_every_sample_and_with_one_the_worker_chooses(tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    start = '[source]\nplugin = "vibration"\n[model]\nurl = "m.tflite"\n[telemetry]\nsink = "e.jsonl"\n'
    file.write_text(f"{start}raw_data = 5\n")
    worker = asyncio.run(load_configuration(file, {})).worker("edge-001", tmp_path)
    assert (worker.model.raw_data, worker.raw_data) == (5, None)
    file.write_text(f'{start}[telemetry.raw_data]\nvalues = 5\none_in = 7\nimages = "pictures/"\n')
    worker = asyncio.run(load_configuration(file, {})).worker("edge-001", tmp_path)
    assert worker.model.raw_data == 0
    assert worker.raw_data == RawDataOptions(
        device="edge-001",
        handover=str(tmp_path),
        daily_budget=5_000_000,
        values=5,
        images=(tmp_path / "pictures").as_uri(),
        one_in=7,
    )


def test_all_settings_arrive_as_they_were_checked(tmp_path: Path) -> None:
    file = tmp_path / "config" / "edge-agent.toml"
    file.parent.mkdir()
    file.write_text(
        '[device]\nid = "edge-001"\nlabels = { site = "lyon" }\n[source]\nplugin = "vibration"\n'
        '[model]\nurl = "gs://b/pumps/model.tflite"\npoll_interval = "5m"\n'
        '[inference]\nlabels = ["ä", "b"]\nimage_std = 1\n[telemetry]\nsink = "../events.jsonl"\n'
        '[telemetry.queue]\nmax_size = "1GiB"\n'
        '[[actions]]\nname = "a"\nwhen = { label = "x", hold = "2s" }\nrun = ["beep", "-v"]\n'
        '[[actions]]\nname = "b"\nwhen = { label = "y" }\nrun = ["boop"]\ncooldown = "100ms"\n'
    )
    loaded = asyncio.run(load_configuration(file, {})).settings
    source = loaded.source
    assert source.options.keys() == {"rate", "seed", "normal", "warning", "failure", "values"}
    source.options.clear()
    assert loaded == load(file, {})
    assert loaded.telemetry.sink.path == f"{tmp_path}/events.jsonl"


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
        ('\nplugin = "recording"\npath = "none.csv"', "x.toml:4: [source].path: none.csv: no such file or directory"),
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


def test_only_the_given_environment_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.toml"
    file.write_text(LEAST)
    monkeypatch.setenv("EDGE_AGENT_LOG__LEVEL", "debug")
    assert asyncio.run(load_configuration(file)).settings.log.level == "debug"
    assert asyncio.run(load_configuration(file, {})).settings.log.level == "info"
    assert asyncio.run(load_configuration(file, {"EDGE_AGENT_LOG__LEVEL": "error"})).settings.log.level == "error"


def test_a_file_with_a_name_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.toml")
    assert checked(file, LEAST + "[log]\nlevel = 5\n") == [
        f'{file.name}:8: [log].level: expected "debug", "info", "warning" or "error", not 5'
    ]


# ------------------------------------------------------------------------------------------ a source out of reach


ABSENT = LEAST.replace('"vibration"', '"recording"\npath = "none.csv"')
ABSENT_TOLD = "x.toml:3: [source].path: none.csv: no such file or directory"


def test_a_source_out_of_reach_is_a_fault_only_if_it_has_to_be_there(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    assert checked(file, ABSENT) == [ABSENT_TOLD]
    loaded = asyncio.run(load_configuration(file, {}, source_must_be_there=False))
    assert loaded.source == "edge_agent.sources.recording:Recording"
    assert loaded.settings.source.options["path"] == f"{tmp_path}/none.csv"


def test_a_wrong_setting_is_a_fault_even_if_the_source_need_not_be_there(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    for wrong in (LEAST.replace('"vibration"', '"vibration"\nrate = "x"'), ABSENT + "[log]\nlevel = 5\n"):
        file.write_text(wrong)
        with pytest.raises(SettingsError):
            asyncio.run(load_configuration(file, {}, source_must_be_there=False))


def test_a_source_out_of_reach_is_told_among_the_other_faults(tmp_path: Path) -> None:
    assert checked(tmp_path / "x.toml", ABSENT + "[log]\nlevel = 5\n") == [
        ABSENT_TOLD,
        'x.toml:9: [log].level: expected "debug", "info", "warning" or "error", not 5',
    ]


# ------------------------------------------------------------------------------------------ what is not set up yet


SHIPPED = ROOT / "config/edge-agent.toml"


def missing(file: Path, text: str, environ: dict[str, str] | None = None) -> list[str]:
    """What is still to be given, according to the exception that says that nothing is wrong."""
    file.write_text(text)
    with pytest.raises(NotSetUp) as caught:
        asyncio.run(load_configuration(file, environ or {}))
    return caught.value.missing


def is_not_set_up(file: Path, text: str, environ: dict[str, str] | None = None) -> bool:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        asyncio.run(load_configuration(file, environ or {}))
    return isinstance(caught.value, NotSetUp)


def test_the_shipped_file_is_right_but_not_set_up(tmp_path: Path) -> None:
    everything = ["[source].plugin", "[model].url", "[telemetry].sink"]
    assert missing(tmp_path / "x.toml", SHIPPED.read_text()) == everything
    assert missing(tmp_path / "x.toml", "") == everything


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("[source].plugin", 'plugin = "vibration"\n'),
        ("[model].url", 'url = "m.tflite"\n'),
        ("[telemetry].sink", 'sink = "e.jsonl"\n'),
    ],
)
def test_each_of_the_three_may_be_the_one_that_is_missing(tmp_path: Path, key: str, line: str) -> None:
    assert line in LEAST
    assert missing(tmp_path / "x.toml", LEAST.replace(line, "")) == [key]


def test_the_environment_may_give_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    given = {"EDGE_AGENT_SOURCE__PLUGIN": "vibration", "EDGE_AGENT_MODEL__URL": "m.tflite"}
    assert missing(file, "", given) == ["[telemetry].sink"]
    loaded = asyncio.run(load_configuration(file, {**given, "EDGE_AGENT_TELEMETRY__SINK": "e.jsonl"}))
    assert loaded.settings.telemetry.sink.path == f"{tmp_path}/e.jsonl"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[log]\nformat = 5\n", 'x.toml:2: [log].format: expected "auto", "console" or "journal", not 5'),
        ("[telemetri]\n", "x.toml:1: [telemetri]: unknown table (did you mean 'telemetry'?)"),
        ('[source]\nplugin = "vibratoin"\n', "x.toml:2: [source].plugin: no such plugin (did you mean 'vibration'?)"),
        ('[source]\nplugin = "vibration"\nrate = "x"\n', 'x.toml:3: [source].rate: expected a number, not "x"'),
        ('[source]\nplugin = ""\n', "x.toml:2: [source].plugin: must not be empty"),
        ('[inference]\nlabels = "none.txt"\n', "x.toml:2: [inference].labels: none.txt: No such file or directory"),
        (
            '[[actions]]\nname = "a"\nwhen = { label = "x" }\n',
            'x.toml:1: [[actions]] "a".run: is missing (the command and its arguments; no shell is involved)',
        ),
        ("[telemetry.queue]\nmax_size = 5\n", "x.toml:2: [telemetry.queue].max_size: must be at least 1MB, not 5"),
    ],
)
def test_a_fault_beside_what_is_missing_is_a_fault(tmp_path: Path, text: str, fault: str) -> None:
    file = tmp_path / "x.toml"
    assert not is_not_set_up(file, text)
    told = checked(file, text)
    assert fault in told
    # What is missing is told with it: one look at all there is to do.
    assert any("[model].url: is missing" in line for line in told)
    assert len(told) > 1


def test_a_wrong_variable_beside_what_is_missing_is_a_fault(tmp_path: Path) -> None:
    assert not is_not_set_up(tmp_path / "x.toml", "", {"EDGE_AGENT_MODEL_URL": "x"})


# ------------------------------------------------------------------------------------------ a check that goes wrong


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Check a good file while pydantic-settings is installed with this code; returns the faults."""
    (tmp_path / "site-packages").mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'site-packages'}:{ROOT}")

    def run(code: str, timeout: float = CHECK_DEADLINE) -> list[str]:
        file = tmp_path / "x.toml"
        file.write_text(LEAST)
        (tmp_path / "site-packages" / "pydantic_settings.py").write_text(code)
        with pytest.raises(SettingsError) as caught:
            asyncio.run(load_configuration(file, {}, timeout=timeout))
        return str(caught.value).replace(f"{tmp_path}/", "").splitlines()

    return run


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "was killed by SIGABRT"),
        ("raise SystemExit('no memory')", "ended with exit status 1; its last lines: no memory"),
        ("import os; os._exit(0)", "gave an answer that is not understood"),
        ("import os; print('{}', flush=True); os._exit(0)", "gave an answer that is not understood"),
    ],
)
def test_a_check_that_crashes_or_talks_nonsense(broken: Callable[..., list[str]], code: str, message: str) -> None:
    assert broken(code) == [f"x.toml: the check of the settings {message}"]


def test_a_check_that_hangs(broken: Callable[..., list[str]]) -> None:
    found = broken("import time; time.sleep(600)", timeout=0.5)
    assert found == ["x.toml: the check of the settings did not finish within 500ms"]


def test_a_check_that_cannot_be_started(tmp_path: Path) -> None:
    environ = {"EDGE_AGENT_DEVICE__ID": "x" * 1_000_000}
    assert checked(tmp_path / "x.toml", LEAST, environ) == [
        "x.toml: the check of the settings could not be started: Argument list too long"
    ]


def test_a_plugin_that_crashes_hides_no_other_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "acme", modules={"acme": "import os; os.abort()"}, plugins={"sensor": "acme:Sensor"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    text = LEAST.replace("vibration", "sensor") + "[log]\nlevel = 5\n"
    assert checked(tmp_path / "x.toml", text) == [
        "x.toml:2: [source].plugin: the check of the plugin's options was killed by SIGABRT",
        'x.toml:8: [log].level: expected "debug", "info", "warning" or "error", not 5',
    ]


def test_a_cancelled_check_takes_the_plugin_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pid = tmp_path / "pid"
    os.mkfifo(pid)
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)"
    install(tmp_path, "acme", modules={"acme": code}, plugins={"sensor": "acme:Sensor"})
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    file = tmp_path / "x.toml"
    file.write_text(LEAST.replace("vibration", "sensor"))

    async def cancel() -> int:
        task = asyncio.create_task(load_configuration(file, {}))
        at_it = os.pidfd_open(int(await asyncio.to_thread(pid.read_text)))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return at_it

    at_it = asyncio.run(cancel())
    try:
        # Where the check is too slow to end it in order, the kernel does.
        assert select.select([at_it], [], [], 60)[0], "the check of the plugin outlives the one of the settings"
    finally:
        os.close(at_it)


# ------------------------------------------------------------------------------------------ what stays in memory


def modules_after(code: str) -> set[str]:
    """Return the modules that a process has loaded after this code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_agent_holds_neither_pydantic_nor_what_only_the_worker_needs(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(LEAST)
    modules = modules_after(
        "import asyncio, pathlib, edge_agent.cli, edge_agent.daemon\n"
        "from edge_agent.configuration import Configuration, load_configuration\n"
        f"found = asyncio.run(load_configuration(pathlib.Path({str(file)!r})))\n"
        "assert isinstance(found, Configuration)"
    )
    assert "edge_agent.agent" in modules
    assert not {"pydantic", "pydantic_core", "pydantic_settings", "numpy", "PIL", "edge_agent.sources"} & modules


def test_the_worker_holds_neither_pydantic_nor_the_metadata_of_packages(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text(LEAST)
    configuration: Configuration = asyncio.run(load_configuration(file, {}))
    modules = modules_after(
        "import pkgutil, edge_agent.inference.worker, edge_agent.inference.runtime.runtimes as runtimes\n"
        f"runtimes.find_runtime()\npkgutil.resolve_name({configuration.source!r})"
    )
    assert "edge_agent.sources.vibration" in modules
    assert not {"pydantic", "pydantic_core", "importlib.metadata"} & modules
