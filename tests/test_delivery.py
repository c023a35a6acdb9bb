"""What a reload makes of the delivery of models; only the worker stands in."""

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import cast

from edge_agent.delivery import Delivery
from edge_agent.inference.supervision.supervisor import Supervisor
from edge_agent.settings.loading import load
from edge_agent.settings.schema import Settings
from tests.models.rollout.rollout_kit import Worker, until

Story = Callable[[Delivery, Worker], Awaitable[None]]


def _settings(folder: Path, model: str, more: str = "") -> Settings:
    file = folder / "edge-agent.toml"
    url = folder / model / "model.tflite"
    file.write_text(
        f'[source]\nplugin = "vibration"\n[model]\nurl = "{url}"\n{more}\n[telemetry]\nsink = "events.jsonl"\n'
    )
    return load(file, {})


def _put(folder: Path, version: str) -> None:
    """As if it had been there for long: nobody waits for the rest of it."""
    folder.mkdir(exist_ok=True)
    (folder / "model.tflite").write_bytes(f"model {version}".encode())
    os.utime(folder / "model.tflite", (1_700_000_000, 1_700_000_000 + int(version[1:])))
    (folder / "model.tflite.json").write_text(json.dumps({"version": version}))


def _live(folder: Path, story: Story) -> Worker:
    """Let a device that runs v1 from the folder `a` look there for others."""
    worker = Worker()

    async def live() -> None:
        delivery = Delivery(
            _settings(folder, "a"),
            cast("Supervisor", worker),
            folder / "state",
            device_id=lambda: "edge-001",
            clock_is_set=lambda: True,
            on_change=lambda _: None,
            on_skew=lambda *_: None,
        )
        tasks = [asyncio.create_task(delivery.run())]
        await until(lambda: delivery.rollout.running)
        try:
            await story(delivery, worker)
        finally:
            await delivery.rollout.stop()
            await asyncio.gather(*tasks)

    _put(folder / "a", "v1")
    asyncio.run(live())
    return worker


def test_a_trial_is_given_up_when_models_come_from_somewhere_else(tmp_path: Path) -> None:
    async def story(delivery: Delivery, worker: Worker) -> None:
        _put(tmp_path / "a", "v2")
        delivery.rollout.poll_now()
        await until(lambda: delivery.rollout.status.state == "on trial")
        assert worker.current is not None
        assert worker.current.version == "v2"
        assert await delivery.apply(_settings(tmp_path, "b"))
        assert worker.current.version == "v1", "what nobody watches any more does not go on"

    worker = _live(tmp_path, story)
    assert worker.told == ["revert: models come from somewhere else now"]


def test_another_name_for_the_model_goes_on_with_the_same_slots(tmp_path: Path) -> None:
    """Two of them for one folder would not wait for each other."""

    async def story(delivery: Delivery, _: Worker) -> None:
        before = delivery.rollout
        assert await delivery.apply(_settings(tmp_path, "a", 'name = "another"'))
        assert delivery.rollout is not before
        assert delivery.rollout.slots is before.slots

    _live(tmp_path, story)
