"""README.md and docs/*.md: nothing that an operator meets is missing in them, and what they quote is what there is."""

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest

from edge_agent.device import troubles
from edge_agent.device.timekeeper import ClockState
from edge_agent.health import Battery, DeviceHealth, Dropped, NetworkInterface, QueueHealth
from edge_agent.inference.accelerators import devices, recovery, watch
from edge_agent.inference.accelerators.devices import DeviceState
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.supervision import hangs, supervisor, waiting
from edge_agent.models import trial
from edge_agent.models.news import RolloutChange
from edge_agent.models.rollout import INTERRUPTIONS
from edge_agent.records import Counters, HealthEvent, TimeSource
from edge_agent.report import AcceleratorReport, DeviceReport, StatusReport, render
from edge_agent.settings import device_options
from edge_agent.settings.faults import NotSetUp
from edge_agent.settings.loading import load
from edge_agent.settings.schema import InferenceSettings, keys
from edge_agent.settings.trial import TrialSettings
from edge_agent.settings.units import format_duration
from edge_agent.telemetry import losses, publishing

ROOT = Path(__file__).parents[1]
FILES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in FILES}
README, EDGE_TPU, EVENTS, MODELS = (PAGES[name] for name in ("README.md", "edge-tpu.md", "events.md", "models.md"))
ROLLOUT = PAGES["rollout.md"]
SCHEMA = json.loads((ROOT / "docs/event.schema.json").read_text(encoding="utf-8"))
KINDS = {
    definition["properties"]["kind"]["enum"][0]: name
    for name, definition in SCHEMA["$defs"].items()
    if "kind" in definition["properties"]
}

MODEL_STATES = get_args(get_type_hints(RolloutChange)["state"])
# Who tells of what has happened, by component and state; and which states those come to that are computed.
TELLERS = {"_on_health", "health", "put_health"}
COMPUTED = {
    ("worker", "state"): {"died", "failing"},
    ("source", "message.state"): {"trouble"},
    ("model", "f'twin {change.state}'"): {f"twin {state}" for state in MODEL_STATES if state != "shadow"},
    ("action", "state"): {"failed", "skipped"},
    ("clock", "state"): set(get_args(ClockState)),
    ("inference", "self._supervisor.status.state"): {"starting", "ready", "running", "waiting", "restarting"},
}
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: str, language: str) -> list[str]:
    """Return the examples of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the tables below a heading."""
    part = re.split(r"^#+ ", page.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    found: list[list[str]] = []
    for line in part.splitlines():
        if line.startswith("|---"):
            found.pop()  # what the columns are called
        elif line.startswith("|"):
            found.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return found


def coded(cell: str) -> list[str]:
    """Return what stands in a cell in the letters of code, without quotes."""
    return [name.strip('"') for name in re.findall(r"`([^`]+)`", cell)]


def first_cells(page: str, heading: str) -> list[str]:
    return [name for row in rows(page, heading) for name in coded(row[0])]


# ------------------------------------------------------------------------------------------ nothing is missing


def test_every_state_of_a_device_is_explained() -> None:
    assert first_cells(EDGE_TPU, "States") == [str(state) for state in DeviceState]
    assert "eight states" in README
    assert len(DeviceState) == 8


def test_every_option_of_the_driver_is_explained() -> None:
    told = {coded(row[0])[0]: coded(row[1]) for row in rows(EDGE_TPU, "Names, several devices, options")}
    assert set(told) == set(device_options._KNOWN.values())
    for name, choices in device_options._CHOICES.items():
        assert told[name] == list(choices)
    assert told[device_options._QUEUE] == ["0", str(device_options._MOST_QUEUED)]


def test_every_accelerator_task_and_setting_of_inference_is_explained() -> None:
    hints = keys(InferenceSettings)
    assert first_cells(EDGE_TPU, "With and without it") == list(get_args(hints["accelerator"].__origin__))
    assert first_cells(MODELS, "Tasks") == list(get_args(hints["task"].__origin__))
    words = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`([^`\n]+)`", EDGE_TPU + MODELS))))
    assert set(hints) - words == set()


def test_every_kind_of_event_is_explained() -> None:
    assert set(first_cells(EVENTS, "Events")) == set(KINDS)


def test_every_source_of_time_is_explained() -> None:
    assert first_cells(EVENTS, "Time") == list(get_args(TimeSource))


def test_every_counter_stage_and_cause_is_explained() -> None:
    told = first_cells(EVENTS, "Health")
    counters = list(Counters.__struct_fields__)
    stages = [*StageLatencies()._stages, "action"]
    assert told[-len(counters) - len(stages) :] == stages + counters
    causes = {losses.QUEUE_FULL, losses.DISK_RESERVE, losses.EXPIRED, losses.DAMAGED, losses.REJECTED}
    causes |= set(re.findall(r'\("(\w+)", status\.\w+\)', code()))
    assert {"queue_full", "source_overrun"} < causes
    assert set(first_cells(EVENTS, "Losses")) == causes


def test_every_figure_of_the_board_and_the_queue_is_explained() -> None:
    told = first_cells(EVENTS, "The board")
    assert told == [*DeviceHealth.__struct_fields__, *QueueHealth.__struct_fields__]
    words = set(re.findall(r"`(\w+)`", EVENTS))
    parts = (HealthEvent, NetworkInterface, Battery, Dropped)
    common = {"exit_status", "stage", "latencies", "counters", "queue", "device", "device_labels"}
    assert {name for part in parts for name in part.__struct_fields__} - words <= common


def test_every_state_of_a_model_is_explained() -> None:
    assert first_cells(EVENTS, "Models") == list(MODEL_STATES)


def test_the_limits_of_a_trial_are_those_of_the_code() -> None:
    default = TrialSettings()
    told = {name: row for row in rows(ROLLOUT, "The trial") for name in coded(row[0])}
    for name in ("max_failed", "max_latency", "max_clipped", "max_shift"):
        assert f" {getattr(default, name):g}" in told[name][1]
    assert f"{trial.FEWEST_FAILURES} of them" in told["max_failed"][1]
    text = " ".join(ROLLOUT.split())
    assert default.time == 600
    assert "For `time` (10 minutes)" in text
    assert f"fewer than {trial.ENOUGH} results" in text
    assert trial.LONGEST_RUN == trial.SOME == INTERRUPTIONS == 3
    assert f"`its trial was interrupted {INTERRUPTIONS} times`" in text


def test_every_component_and_state_of_health_is_explained() -> None:
    told = {(coded(row[0])[0], state) for row in rows(EVENTS, "Health") if len(row) == 3 for state in coded(row[1])}
    assert told == set(states_of_health())


def states_of_health() -> Iterator[tuple[str, str]]:
    """Yield component and state of all health events that the code makes."""
    yield from ((component, state) for component, states in troubles.STATES.items() for state in states)
    for call in ast.walk(ast.parse(code())):
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in TELLERS):
            continue
        named = {keyword.arg: keyword.value for keyword in call.keywords}
        component, state = (named["component"], named["state"]) if "component" in named else call.args[:2]
        if not isinstance(component, ast.Constant):
            continue  # it hands on what another call has named
        name = str(component.value)
        states = {str(state.value)} if isinstance(state, ast.Constant) else COMPUTED[name, ast.unparse(state)]
        yield from ((name, each) for each in states)


def code() -> str:
    """Return all modules, one behind the other."""
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "edge_agent").rglob("*.py")))


# ------------------------------------------------------------------------------------------ what is quoted is true


def test_the_steps_take_as_long_as_the_page_says() -> None:
    told = [" ".join(row) for row in rows(EDGE_TPU, "When it fails")]
    for row, seconds in zip(
        told,
        (
            (supervisor.FIRST_DELAY, supervisor.LAST_DELAY, supervisor.STABLE_AFTER),
            (recovery.FORGIVE_AFTER,),
            (recovery.FORGIVE_AFTER,),
            (recovery.FIRST_PAUSE, recovery.LAST_PAUSE),
            (recovery.FORGIVE_AFTER,),
        ),
        strict=True,
    ):
        for each in seconds:
            assert re.search(rf"\b{re.escape(format_duration(each))}\b", row), row
    assert f"from failure {recovery.RESET_AFTER} " in told[1]
    assert f"from failure {recovery.GIVE_UP_AFTER} " in told[2]
    text = " ".join(EDGE_TPU.split())
    for words, each in (
        ("the agent looks every {}.", watch.CHECK_INTERVAL),
        ("is tried after {}, doubling", watch.FIRST_PAUSE),
        ("doubling to {}, since a worker", watch.LAST_PAUSE),
        ("is tried again after {}, doubling", waiting.FIRST_WAIT),
        ("doubling to {}, and as soon as", waiting.LAST_WAIT),
        ("starting {},", hangs.START_DEADLINE),
        ("loading a model {},", hangs.LOAD_DEADLINE),
        ("opening a source {},", hangs.OPEN_DEADLINE),
        ("closing the device {};", hangs.CLOSE_DEADLINE),
    ):
        assert words.format(format_duration(each)) in text


def test_how_often_a_flicker_is_published_is_as_the_page_says() -> None:
    assert (publishing.BURST, publishing.PAUSE) == (10, 1.0)
    text = " ".join(EVENTS.split())
    assert "published ten times in a row, and then once a second at most" in text
    assert "comes to rest at is published within a second" in text


def test_the_lines_of_the_status_are_those_of_the_code() -> None:
    device = DeviceReport(
        name="usb:2-1.3", state="ready", detail="", speed=5000, temperature=None, owner=None, in_use=True
    )
    there = AcceleratorReport(
        asked="auto",
        used="edgetpu",
        device="usb:2-1.3",
        degraded=None,
        remarks=[],
        runtime="ai-edge-litert 2.3.0",
        devices=[device],
        library="/usr/local/lib/libedgetpu.so.1",
    )
    reason = devices.explain_failure(ValueError(), "", [])
    away = AcceleratorReport(
        asked="auto",
        used="cpu",
        device=None,
        degraded=reason,
        remarks=[],
        runtime="ai-edge-litert 2.3.0",
        devices=[],
        library="/usr/local/lib/libedgetpu.so.1",
    )
    for report, problems in ((there, []), (away, [f"degraded: {reason}"])):
        status = StatusReport(state="running", version="", config="", summary="", problems=problems, accelerator=report)
        lines = [line for line in render(status).splitlines() if line.startswith(("problem", "accelerator", "  usb"))]
        assert "\n".join(f"    {line}" for line in lines) in README


@pytest.mark.parametrize("page", PAGES)
def test_events_in_the_examples_are_as_the_schema_says(page: str) -> None:
    for block in blocks(PAGES[page], "json"):
        for event in parsed(block):
            if "event_id" in event:
                jsonschema.Draft202012Validator(SCHEMA).validate(event)
            check_part(event, KINDS[event["kind"]])


def parsed(text: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a block, which follow one another."""
    while text := text.strip():
        event, end = json.JSONDecoder().raw_decode(text)
        yield event
        text = text[end:]


def check_part(value: Any, name: str) -> None:
    """An example may leave fields away, but has none that the event has not, and none of another type."""
    properties = SCHEMA["$defs"][name]["properties"]
    assert set(value) <= set(properties), name
    for key, inner in value.items():
        kind = properties[key]
        if "$ref" in kind:
            check_part(inner, kind["$ref"].rpartition("/")[2])
        elif "$ref" in kind.get("items", {}):
            for each in inner:
                check_part(each, kind["items"]["$ref"].rpartition("/")[2])
        else:
            jsonschema.Draft202012Validator(kind).validate(inner)


@pytest.mark.parametrize("page", ["README.md", "edge-tpu.md", "models.md", "events.md"])
def test_the_examples_of_settings_are_good(page: str, tmp_path: Path) -> None:
    file = tmp_path / "edge-agent.toml"
    for text in blocks(PAGES[page], "toml"):
        file.write_text(text)
        if "[source]" in text:
            load(file, {})
        else:
            with pytest.raises(NotSetUp):  # and no other fault
                load(file, {})


def test_the_three_lines_of_the_first_page_are_those_of_the_sources_page() -> None:
    assert blocks(README, "sh") == blocks(PAGES["sources.md"], "sh")[:1]
    run = tomllib.loads(blocks(PAGES["sources.md"], "toml")[0])["source"]["run"]
    assert f"`run = {json.dumps(run)}`" in README


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_links_lead_somewhere(file: Path) -> None:
    for link in LINK.findall(file.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (file.parent / path).resolve() if path else file
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings], link
