"""Any sequence of uploads, refusals, damage and restarts: what the worker gets is whole and belongs together."""

import asyncio
import json
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.rollout import Rollout
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.rollout.twins import Twins
from edge_agent.models.stores.directory import FileStore
from edge_agent.records import LoadReport, ModelFile, Terms
from tests.models.rollout.rollout_kit import GOOD, NO_MODEL, NO_WORKER, Clock, TrialWorker

VERSIONS = st.sampled_from(["v1", "v2", "v3"])
BYTES = st.integers(0, 2)


def _write(path: Path, version: str, number: int) -> None:
    path.write_text(f"{path.name} {version} {number}")
    path.with_name(f"{path.name}.json").write_text(json.dumps({"version": version}))


class Worker(TrialWorker):
    """Looks at what it is given, and answers as it was told for the version, for a model with or without a twin."""

    def __init__(self) -> None:
        super().__init__()
        self.strange: list[tuple[str, str]] = []
        self.answers: dict[tuple[str, bool], LoadReport] = {}
        self.running: ModelFile | None = None
        self.contents = ("", "")

    async def load(self, model: ModelFile, terms: Terms) -> LoadReport:
        contents = Path(model.path).read_text(), Path(model.cpu_path).read_text() if model.cpu_path else ""  # noqa: ASYNC240  # tiny
        right = f"m_edgetpu.tflite {model.version} ", f"m.tflite {model.version} "
        if not contents[0].startswith(right[0]) or not (contents[1].startswith(right[1]) or model.cpu_path is None):
            self.strange.append(contents)
        answer = self.answers.get((model.version, model.cpu_path is not None), GOOD)
        if answer.accepted:
            self.running, self.contents = model, contents
            self.switched(model, terms)
        return answer


class Twinned(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.model, self.twin = self.folder / "m_edgetpu.tflite", self.folder / "m.tflite"
        self.runner = asyncio.Runner()
        self.changes: list[RolloutChange] = []

    @initialize(version=VERSIONS)
    def first(self, version: str) -> None:
        _write(self.model, version, 0)
        self.runner.run(self._start())

    async def _start(self) -> None:
        self.clock, self.worker = Clock(), Worker()
        self.slots = Slots(self.folder / "slots", self.model.as_uri(), reserve=0)
        self.rollout = Rollout(
            self.slots,
            FileStore(self.model),
            self.worker,
            twins=Twins(self.slots, FileStore(self.twin)),
            model_name="m",
            poll_interval=60,
            on_change=self.changes.append,
            sleep=self.clock.sleep,
            clock=lambda: self.clock.now,
            jitter=lambda: 0.5,
        )
        await self.rollout.start()
        self.task = asyncio.create_task(self.rollout.run())
        await self.clock.pause()

    async def _stop(self) -> None:
        await self.rollout.stop()
        await self.task

    @rule(version=VERSIONS, number=BYTES)
    def upload_model(self, version: str, number: int) -> None:
        _write(self.model, version, number)

    @rule(version=VERSIONS, number=BYTES)
    def upload_twin(self, version: str, number: int) -> None:
        _write(self.twin, version, number)

    @rule(version=VERSIONS, number=BYTES)
    def upload_both(self, version: str, number: int) -> None:
        _write(self.model, version, number)
        _write(self.twin, version, number)

    @rule()
    def remove_twin(self) -> None:
        self.twin.unlink(missing_ok=True)

    @rule()
    def poll(self) -> None:
        self.runner.run(self.clock.tick())

    @rule(version=VERSIONS, with_twin=st.booleans(), answer=st.sampled_from([NO_MODEL, NO_WORKER]))
    def answer(self, version: str, with_twin: bool, answer: LoadReport) -> None:
        self.worker.answers[version, with_twin] = answer

    @rule(part=st.sampled_from(["releases", "twins"]), damage=st.sampled_from([None, "", "damaged"]))
    def damage_and_restart(self, part: str, damage: str | None) -> None:
        self.runner.run(self._stop())
        files = sorted((self.folder / "slots").glob(f"*/{part}/*/*"))
        if files and damage is None:
            files[0].unlink()
        elif files and damage is not None:
            files[0].write_text(damage)
        self.runner.run(self._start())

    @rule()
    def restart(self) -> None:
        self.runner.run(self._stop())
        self.runner.run(self._start())

    @rule(number=st.integers(10, 1_000_000))
    def in_the_end_the_newest_of_both_runs(self, number: int) -> None:
        """Once everything works again and both are uploaded anew."""
        self.worker.answers.clear()
        for version in ("w1", "w2"):
            _write(self.model, version, number)
            _write(self.twin, version, number)
            self.runner.run(self.clock.tick())
        assert self.worker.contents == (f"m_edgetpu.tflite w2 {number}", f"m.tflite w2 {number}")
        assert self.slots.previous is not None
        assert self.slots.previous.version == "w1"

    @invariant()
    def what_runs_is_on_disk_and_belongs_together(self) -> None:
        assert self.worker.strange == []
        running = self.worker.running
        if running is not None and self.rollout.running is not None:
            assert Path(running.path).read_text() == self.worker.contents[0]
            assert not running.cpu_path or Path(running.cpu_path).read_text() == self.worker.contents[1]
        for one in (self.slots.committed, self.slots.previous):
            assert one is None or self.slots.path(one).stat().st_size == one.size
        committed, previous = self.slots.committed, self.slots.previous
        assert committed is None or previous is None or committed.id != previous.id

    def teardown(self) -> None:
        self.runner.run(self._stop())
        self.runner.close()
        shutil.rmtree(self.folder)


TestTwinned = Twinned.TestCase
TestTwinned.settings = settings(max_examples=20, stateful_step_count=12, deadline=None)
