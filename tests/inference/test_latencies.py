"""From stages of samples to the figures of a health event."""

import pytest

from edge_agent.inference.latencies import LatencySums, StageLatencies

MS = 1_000_000


def test_stages_are_told_apart_and_summed_over_several_messages() -> None:
    worker, agent = StageLatencies(), LatencySums()
    for number in range(100):
        start = number * 1000 * MS
        worker.add(start, start + 20 * MS, start + 21 * MS, start + 29 * MS, start + 29 * MS + MS // 2)
        if number % 30 == 0:
            agent.merge(worker.take())
    agent.merge(worker.take())
    found = {latency.stage: latency for latency in agent.take()}
    assert list(found) == ["capture", "preprocess", "invoke", "decode"]
    for stage, milliseconds in (("capture", 20), ("preprocess", 1), ("invoke", 8), ("decode", 0.5)):
        latency = found[stage]
        assert latency.count == 100
        assert latency.p50_ms == latency.p90_ms == latency.p99_ms == pytest.approx(milliseconds, rel=0.04)
        assert latency.max_ms == milliseconds
    assert agent.take() == []


def test_a_stage_without_samples_is_left_out() -> None:
    agent = LatencySums()
    agent.merge(StageLatencies().take())
    assert agent.take() == []
