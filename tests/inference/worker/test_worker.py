"""The worker's own side: what its threads tell the agent, and how the process ends."""

import socket
import threading
from pathlib import Path

import numpy as np
import pytest

from edge_agent.inference.interpreter.model import build
from edge_agent.inference.progress import ProgressPage, Reporter, Stage, Track
from edge_agent.inference.protocol import (
    Channel,
    Figures,
    Load,
    Loaded,
    ModelOptions,
    Ready,
    Results,
    SourceState,
    Stop,
)
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.inference.worker import runner
from edge_agent.inference.worker.buffer import SampleBuffer
from edge_agent.inference.worker.capture import Capture
from edge_agent.inference.worker.process import SWITCH_INTERVAL
from edge_agent.inference.worker.runner import Inference
from edge_agent.records import LoadReport, ModelFile, Sample
from edge_agent.sources.base import SourceEnded
from edge_agent.testing import run_in_worker
from tests.inference.conftest import settings
from tests.inference.worker.kit import Agent, worker
from tests.plugins.faulty import Busy, Faulty, FaultyOptions
from tests.standin import build as edgetpu_build
from tests.standin.models import edgetpu_model

OPTIONS = ModelOptions(
    accelerator="auto", device="", top_k=3, resize="nearest", image_mean=127.5, image_std=127.5, labels=None, raw_data=0
)


def test_the_end_of_the_source_is_told_at_once_although_the_last_sample_came_with_it(demo_model: ModelFile) -> None:
    ours, theirs = socket.socketpair()
    agent, page, buffer = Agent(ours), ProgressPage.create(), SampleBuffer(live=False)
    reporter = Reporter(page, Track.INFERENCE)
    channel = Channel(theirs)
    inference = Inference(buffer, channel, reporter, str)
    reader = Reporter(page, Track.CAPTURE)
    capture = Capture(Faulty(FaultyOptions()), buffer, channel, reader, settings("faulty"))
    loaded = Loaded(1, LoadReport(accepted=True))
    model = build(find_runtime(), demo_model, OPTIONS, None)
    # All of this has happened before the thread looks around for the first time.
    buffer.put(Sample(np.zeros(128, np.float32), 1, "1"))
    capture.ended = SourceEnded("all samples were read")
    inference.offer(model, Load(1, demo_model), loaded.report)
    thread = threading.Thread(target=inference.run, args=(capture,))
    thread.start()
    try:
        assert agent.receive() == loaded
        results = agent.receive()
        assert isinstance(results, Results)
        assert [result.position for result in results.results] == ["1"]
        # Nothing comes after them for a while, so what is known of them is told, too.
        figures = agent.receive()
        assert isinstance(figures, Figures)
        assert list(figures.latencies["invoke"].counts.values()) == [1]
        assert agent.receive() == SourceState("ended", "all samples were read")
    finally:
        inference.stop()
        thread.join(60)
        agent.hang_up()
        theirs.close()
        channel._stream.close()
    assert page.count(Track.INFERENCE) == 1
    assert page.stage(Track.INFERENCE) is Stage.IDLE


def test_figures_are_told_although_no_other_sample_comes(
    demo_model: ModelFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "FIGURES_NS", 300_000_000)
    ours, theirs = socket.socketpair()
    agent, page, buffer = Agent(ours), ProgressPage.create(), SampleBuffer(live=True)
    channel = Channel(theirs)
    model = build(find_runtime(), demo_model, OPTIONS, None)
    inference = Inference(buffer, channel, Reporter(page, Track.INFERENCE), str)
    capture = Capture(Faulty(FaultyOptions()), buffer, channel, Reporter(page, Track.CAPTURE), settings("faulty"))
    inference.offer(model, Load(1, demo_model), LoadReport(accepted=True))
    buffer.put(Sample(np.zeros(128, np.float32), 1))
    thread = threading.Thread(target=inference.run, args=(capture,))
    thread.start()
    try:
        assert isinstance(agent.receive(), Loaded)
        assert isinstance(agent.receive(), Results)
        assert isinstance(agent.receive(), Figures)
    finally:
        inference.stop()
        thread.join(60)
        agent.hang_up()
        theirs.close()
        channel._stream.close()
        page.close()


@pytest.mark.parametrize("compiled", [False, True], ids=["cpu", "edgetpu"])
@pytest.mark.parametrize("ending", ["stop", "hang up"])
def test_it_leaves_by_itself(
    demo_model: ModelFile, edgetpu_standin: Path, tmp_path: Path, *, compiled: bool, ending: str
) -> None:
    path = tmp_path / "compiled.tflite"
    path.write_bytes(edgetpu_model(Path(demo_model.path).read_bytes()))
    model = ModelFile(str(path), "m", "v1") if compiled else demo_model
    with worker(settings(rate=0, seed=1), edgetpu_build.environment(edgetpu_standin)) as (agent, process):
        assert isinstance(agent.receive(), Ready)
        agent.send(Load(1, model))
        report = agent.receive()
        assert isinstance(report, Loaded)
        assert report.report.accelerator == ("edgetpu" if compiled else "cpu")
        assert agent.receive() == SourceState("open")
        if ending == "stop":
            agent.send(Stop())
            while agent.receive() is not None:
                pass
        else:
            agent.hang_up()
        assert process.wait(60) == 0
        assert process.stderr is not None
        assert process.stderr.read() in {"", "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n"}


def test_a_second_refused_model_changes_nothing(demo_model: ModelFile, tmp_path: Path) -> None:
    with worker(settings(rate=0, seed=1)) as (agent, _):
        assert isinstance(agent.receive(), Ready)
        agent.send(Load(1, demo_model))
        agent.send(Load(2, ModelFile(str(tmp_path / "none"), "m", "v2")))
        reports: list[Loaded] = []
        requests: list[int] = []
        while len(requests) < 5 or len(reports) < 2:
            message = agent.receive()
            reports += [message] if isinstance(message, Loaded) else []
            requests += [message.request] if isinstance(message, Results) else []
        assert [(report.request, report.report.accepted) for report in reports] == [(1, True), (2, False)]
        assert set(requests) == {1}


def test_a_source_that_is_busy_in_python_lets_the_model_go_on() -> None:
    results = run_in_worker(Busy, count=1).results
    assert results[0].position == str(SWITCH_INTERVAL)
