"""The whole agent with input that does not fit, ends, or is not there, and with places that cannot be written.

It stays up, says what is wrong in the log and to systemd, and goes on once that is mended.
"""

import contextlib
import json
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.agentprocess import AgentProcess

MODEL = Path(__file__).parents[2] / "edge_agent/demo/vibration_classifier.tflite"

SETTINGS = """\
[device]
id = "edge-001"

[source]
plugin = "recording"
path = "samples.npy"
rate = 0

[model]
url = "model.tflite"
name = "vibration"
poll_interval = "1s"

[inference]
labels = ["normal", "warning", "failure"]

[telemetry]
sink = "events/events.jsonl"
raw_data = 1
linger = "50ms"

[log]
level = "debug"
"""


# Watched this closely by systemd, the agent tells its status twice a second.
WATCHED = {"WATCHDOG_USEC": "1000000"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the settings, with a recording of 300 samples that tell their number, and with the model."""
    record(tmp_path / "samples.npy", samples=300)
    shutil.copy(MODEL, tmp_path / "model.tflite")
    return tmp_path


def record(path: Path, *, samples: int, columns: int = 128) -> None:
    data = np.full((samples, columns), 0.5, np.float32)
    data[:, 0] = np.arange(samples)
    np.save(path, data)


def events(*files: Path) -> list[dict[str, Any]]:
    """The events of the files, each once. A line that was torn by a full disk is none."""
    found: dict[str, dict[str, Any]] = {}
    for line in (line for file in files if file.exists() for line in file.read_text().splitlines()):
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            assert found.setdefault(event["event_id"], event) == event
    return list(found.values())


def sample_numbers(found: list[dict[str, Any]]) -> list[int]:
    return [int(event["raw_data"][0]) for event in found if event["kind"] == "result"]


def all_events(agent: AgentProcess, samples: int, *files: Path) -> list[dict[str, Any]]:
    """Wait for the results of so many samples, stop the agent, and return all events. No sample may come twice."""
    agent.wait_until(lambda: len(sample_numbers(events(*files))) >= samples, f"{samples} results in {files}")
    assert agent.stop() == 0
    found = events(*files)
    assert sample_numbers(found) == list(range(samples))
    assert_no_hole(found)
    return found


def assert_no_hole(found: list[dict[str, Any]]) -> None:
    """The numbers of the events, whatever their kind, must go on from 1."""
    assert len({event["event_id"].rpartition("/")[0] for event in found}) == 1
    numbers = sorted(int(event["event_id"].rpartition("/")[2]) for event in found)
    assert numbers == list(range(1, len(numbers) + 1))


def wait_for_status(agent: AgentProcess, *words: str) -> None:
    """Wait for a status with all of these words."""

    def told() -> bool:
        return any("STATUS=" in notice and all(word in notice for word in words) for notice in agent.notices)

    agent.wait_until(told, f"status with {words}")


def mapped(pid: int) -> str:
    """All files that the process has in its memory."""
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_recording_that_ends_becomes_events_each_sample_once(folder: Path) -> None:
    file = folder / "events/events.jsonl"
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        wait_for_status(agent, f"source ended: {folder}/samples.npy was read to its end", "events are sent")
        # Nothing is left to do, and it stays for what comes: a new model, or new settings.
        assert len(agent.pids) == 2
        found = all_events(agent, 300, file)
        assert "results=300 waiting=0" in agent.said
    assert {event["kind"] for event in found} == {"model", "result"}
    assert len(file.read_text().splitlines()) == len(found)


def test_neither_process_loads_what_belongs_to_the_other(folder: Path) -> None:
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        wait_for_status(agent, "source ended")
        ours, workers = (mapped(pid) for pid in agent.pids)
        assert [name for name in ("numpy", "litert", "tflite", "PIL") if name in ours] == []
        assert [name for name in ("cygrpc", "grpc", "pydantic", "google") if name in workers] == []
        # The names are those that the files have.
        assert [name for name in ("numpy", "ai_edge_litert") if name not in workers] == []
        assert agent.stop() == 0


def test_samples_that_do_not_fit_the_model_are_told_and_others_are_taken(folder: Path) -> None:
    record(folder / "samples.npy", samples=20, columns=64)
    record(folder / "right.npy", samples=20)
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        agent.wait_for("samples could not be worked on")
        assert "the model takes 128 values (uint8 of shape 1x128), the source gives 64" in agent.said
        wait_for_status(agent, "source ended", "no sample can be worked on", "no result yet")
        agent.configure(SETTINGS.replace("samples.npy", "right.npy"))
        agent.reload()
        agent.wait_for("settings reloaded")
        found = all_events(agent, 20, folder / "events/events.jsonl")
    [loss] = [event for event in found if event["kind"] == "loss"]
    assert (loss["cause"], loss["count"]) == ("sample_failed", 20)


def test_labels_that_do_not_fit_can_be_mended_without_another_upload(folder: Path) -> None:
    with AgentProcess(folder, SETTINGS.replace('"warning", ', ""), WATCHED) as agent:
        agent.wait_for("2 labels, but the model has 3 outputs; is the first label, 'background', missing?")
        wait_for_status(agent, "no model yet")
        assert agent.stop() == 0
        agent.configure(SETTINGS)
        agent.start()
        all_events(agent, 300, folder / "events/events.jsonl")


def test_a_model_may_come_later(folder: Path) -> None:
    (folder / "model.tflite").rename(folder / "later")
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        missing = f"there is no file {folder}/model.tflite; put the model there, or correct [model].url"
        agent.wait_for(missing)
        wait_for_status(agent, f"no model yet ({missing})")
        (folder / "later").rename(folder / "model.tflite")
        all_events(agent, 300, folder / "events/events.jsonl")


def test_what_is_no_model_is_told_and_another_one_is_taken(folder: Path) -> None:
    (folder / "model.tflite").write_bytes(MODEL.read_bytes()[:5000])
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        agent.wait_for("is no TensorFlow Lite model, or is cut short")
        wait_for_status(agent, "no model yet")
        shutil.copy(MODEL, folder / "new")
        (folder / "new").rename(folder / "model.tflite")
        found = all_events(agent, 300, folder / "events/events.jsonl")
    assert [event["state"] for event in found if event["kind"] == "model"] == ["rejected", "committed"]


def test_events_that_cannot_be_written_are_kept_until_somebody_acts(folder: Path) -> None:
    (folder / "events").touch()
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        agent.wait_for("events cannot be sent until somebody acts")
        agent.wait_for("correct the path in [telemetry] sink")
        wait_for_status(agent, f"events are not sent: cannot write {folder}/events/events.jsonl: ")
        wait_for_status(agent, "source ended", "events wait")
        assert agent.stop() == 0
        (folder / "events").unlink()
        # The recording is played again from its beginning; the kept events come first.
        record(folder / "samples.npy", samples=1)
        agent.start()
        agent.wait_until(
            lambda: len(sample_numbers(events(folder / "events/events.jsonl"))) > 300, "the events of both lives"
        )
        assert agent.stop() == 0
    found = events(folder / "events/events.jsonl")
    assert sample_numbers(found) == [*range(300), 0]
    assert_no_hole(found)


def test_nothing_is_lost_when_the_disk_is_full_for_a_while(folder: Path) -> None:
    record(folder / "samples.npy", samples=2000)
    slowly = SETTINGS.replace("rate = 0", "rate = 1000")
    files = folder / "events/events.jsonl", folder / "events/second.jsonl"
    # There is no result, and so not the last one either, before the disk is full.
    (folder / "model.tflite").rename(folder / "later")
    with AgentProcess(folder, slowly, WATCHED) as agent:
        agent.wait_for("there is no file")
        assert agent.process is not None
        # As a full disk: no file of this process, queue and journal included, gets longer than this.
        _, hard = resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (100_000, hard))
        (folder / "later").rename(folder / "model.tflite")
        agent.wait_for("events cannot be sent until somebody acts")
        wait_for_status(agent, "events are not sent: cannot write")
        resource.prlimit(agent.process.pid, resource.RLIMIT_FSIZE, (hard, hard))
        agent.configure(slowly.replace("events/events.jsonl", "events/second.jsonl"))
        agent.reload()
        agent.wait_for("events are sent again")
        all_events(agent, 2000, *files)
    assert events(files[0])
    assert events(files[1])


def test_a_source_may_come_later_than_the_agent(folder: Path) -> None:
    (folder / "samples.npy").rename(folder / "away.npy")
    with AgentProcess(folder, SETTINGS, WATCHED) as agent:
        agent.wait_for("the source is not ready yet")
        wait_for_status(agent, f"source trouble: {folder}/samples.npy: no such file or directory")
        # Whoever reloads the settings can see to it, and is told.
        agent.reload()
        wait_for_status(agent, "reload refused", "samples.npy: no such file or directory")
        (folder / "away.npy").rename(folder / "samples.npy")
        all_events(agent, 300, folder / "events/events.jsonl")
