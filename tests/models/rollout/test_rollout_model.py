"""Whatever publishers, disks, workers and strangers do: a device runs what it may, and in the end the newest.

The manifests are signed, and read from a folder; the disk of the device is real, and so is all that decides.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import hypothesis.strategies as st
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec.structs import replace

from edge_agent.models.open import golden_of, open_model, open_twins
from edge_agent.models.release.audience import Device as Facts
from edge_agent.models.release.manifest import Audience, Manifest, unsigned
from edge_agent.models.release.signatures import sign
from edge_agent.models.rollout.news import RolloutChange
from edge_agent.models.rollout.rollout import INTERRUPTIONS, Rollout
from edge_agent.models.rollout.slots import Slots
from edge_agent.records import LoadReport, ModelFile, Terms
from edge_agent.settings.location import Location
from edge_agent.settings.trial import TrialSettings
from tests.models.rollout.release_kit import manifest, public_file
from tests.models.rollout.rollout_kit import GOOD, NO_MODEL, NO_WORKER, Clock, TrialWorker, result

Kind = Literal["good", "refused", "unlucky", "deadly"]
KINDS: st.SearchStrategy[Kind] = st.sampled_from(["good", "good", "good", "refused", "unlucky", "deadly"])
AUDIENCES = st.sampled_from(
    [Audience(), Audience(), Audience(percent=0), Audience(percent=0, shadow=0.1), Audience(halted=True)]
)
PUBLISHER, STRANGER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
HOUR, TRIAL = 3600.0, 600.0


def content(version: str) -> bytes:
    return f"model {version} ".encode() * 100


class Worker(TrialWorker):
    """Looks at what it is given. `kinds` says how it goes; what is deadly takes the agent with it."""

    def __init__(self, kinds: dict[str, Kind]) -> None:
        super().__init__()
        self.kinds = kinds
        self.loaded: list[str] = []
        self.strange: list[str] = []
        self.dead = asyncio.Event()

    async def load(self, model: ModelFile, terms: Terms) -> LoadReport:
        self._look_at(model)
        self.loaded.append(model.version)
        kind = self.kinds[model.version]
        if kind == "deadly" and self.current is not None:
            self.dead.set()
            await asyncio.Event().wait()
        if kind == "refused":
            return NO_MODEL
        if kind == "unlucky" and terms.trial and self.loaded.count(model.version) == 1:
            return NO_WORKER
        self.switched(model, terms)
        return GOOD

    async def shadow(self, model: ModelFile | None, share: float, terms: Terms) -> LoadReport:
        if model is not None:
            self._look_at(model)
        return await super().shadow(model, share, terms)

    def _look_at(self, model: ModelFile) -> None:
        if Path(model.path).read_bytes() != content(model.version):
            self.strange.append(model.version)


class Disk:
    """Keeps a copy of a folder as it is after the n-th step from now on, as a power cut leaves it."""

    def __init__(self, folder: Path, copy: Path) -> None:
        self._folder, self._copy = folder, copy
        self._left = 0
        self._calls = {name: getattr(os, name) for name in ("replace", "rename", "rmdir", "mkdir")}

    def cut_after(self, steps: int) -> None:
        self._left = steps
        for name, call in self._calls.items():
            setattr(os, name, self._counted(call))

    def _counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def step(*args: Any, **kwargs: Any) -> Any:
            done = call(*args, **kwargs)
            self._left -= 1
            if self._left == 0:
                self.repair()
                shutil.copytree(self._folder, self._copy)
            return done

        return step

    def repair(self) -> None:
        for name, call in self._calls.items():
            setattr(os, name, call)

    def lose(self) -> None:
        """What has come after the cut never was."""
        self.repair()
        if self._copy.exists():
            shutil.rmtree(self._folder)
            self._copy.rename(self._folder)


class Fleet(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.url = self.folder / "bucket" / "release.json"
        (self.url.parent / "objects").mkdir(parents=True)
        self.key = public_file(PUBLISHER, self.folder)
        self.disk = Disk(self.folder / "slots", self.folder / "cut")
        self.runner = asyncio.Runner()
        self.kinds: dict[str, Kind] = {}
        self.sequence = 0
        self.number = 0
        self.newest: Manifest | None = None
        self.base: Manifest | None = None
        self.shown: list[bytes] = []
        self.stayed: set[str] = set()
        self.gone: set[str] = set()
        self.pin = ""
        self.hold = False
        self.interrupted = 0

    # -- the device

    @initialize()
    def first(self) -> None:
        self._publish("good", Audience())
        self.runner.run(self._start())
        assert self.worker.loaded == ["v1"]

    async def _start(self) -> None:
        self.clock, self.worker = Clock(), Worker(self.kinds)
        self.slots = Slots(self.folder / "slots", str(self.url), reserve=0)
        location = Location("file", "", str(self.url))
        store = open_model(
            location, [self.key], device=Facts("edge-001"), pin=self.pin, committed=lambda: self.slots.committed
        )
        self.rollout = Rollout(
            self.slots,
            store,
            self.worker,
            twins=open_twins(self.slots, location, None, store),
            golden=golden_of(store),
            model_name="m",
            poll_interval=HOUR,
            on_change=self._note,
            pin=self.pin,
            hold=self.hold,
            trial=TrialSettings(time=TRIAL, samples=100),
            sleep=self.clock.sleep,
            clock=lambda: self.clock.now,
            jitter=lambda: 0.5,
        )
        await self.rollout.start()
        committed = self.slots.committed
        assert committed is None or [committed.version] == self.worker.loaded, "a start runs what is committed"
        self.task = asyncio.create_task(self.rollout.run())
        await self._go_on(self.clock.pause())

    async def _go_on(self, pause: Awaitable[float]) -> None:
        """Until there is nothing more to do, or what the worker has loaded has ended everything."""
        waiting = asyncio.ensure_future(pause)
        dead = asyncio.ensure_future(self.worker.dead.wait())
        await asyncio.wait({waiting, dead}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, dead):
            task.cancel()
        if not dead.cancelled() and self.worker.dead.is_set():
            await self._end(in_order=False)
            await self._start()

    async def _poll(self) -> None:
        self.rollout.poll_now()
        await self._go_on(self.clock.pause())

    async def _end(self, *, in_order: bool) -> None:
        if not in_order:
            self.slots._begun = ""
        await self.rollout.stop()
        await self.task

    def _note(self, change: RolloutChange) -> None:
        if change.state == "committed":
            self.stayed.add(change.release.version)
        if change.state == "rejected" or (change.state == "rolled_back" and change.reason.startswith("it is worse")):
            self.gone.add(change.release.id)

    # -- those who publish

    def _publish(self, kind: Kind, audience: Audience) -> None:
        self.number += 1
        version = f"v{self.number}"
        self.kinds[version] = kind
        made = manifest(version, content(version))
        (self.url.parent / "objects" / made.model.name).write_bytes(content(version))
        if self.newest is not None and self.newest.audience == Audience():
            self.base = self.newest
        self.newest = made
        self._write(audience, PUBLISHER)

    def _write(self, audience: Audience, key: Ed25519PrivateKey) -> None:
        """Write the manifest of the newest release for an audience."""
        assert self.newest is not None
        self.sequence += 1
        before = None if audience == Audience() or self.base is None else _bare(self.base)
        self.newest = replace(self.newest, audience=audience, sequence=self.sequence, before=before)
        signed = sign(unsigned(self.newest), key).encode()
        if key is PUBLISHER:
            self.shown.append(signed)
        self.url.write_bytes(signed)
        if key is PUBLISHER:
            pinned = self.url.parent / "releases"
            pinned.mkdir(exist_ok=True)
            (pinned / f"{self.newest.version}.json").write_bytes(signed)

    @rule(kind=KINDS, audience=AUDIENCES)
    def publish(self, kind: Kind, audience: Audience) -> None:
        self._publish(kind, audience)
        self.runner.run(self._poll())

    @rule(audience=AUDIENCES)
    def promote_or_halt(self, audience: Audience) -> None:
        self._write(audience, PUBLISHER)
        self.runner.run(self._poll())

    @rule()
    def strangers_sign(self) -> None:
        """Neither their manifest is believed, nor what it names."""
        before, newest, sequence, base = self.url.read_bytes(), self.newest, self.sequence, self.base
        loads = len(self.worker.loaded)
        self.newest = manifest("stranger", b"model of a stranger")
        (self.url.parent / "objects" / self.newest.model.name).write_bytes(b"model of a stranger")
        self._write(Audience(), STRANGER)
        self.runner.run(self._poll())
        assert "stranger" not in self.worker.loaded[loads:]
        assert "is signed with" in self.rollout.status.last_poll or self.pin
        self.url.write_bytes(before)
        self.newest, self.sequence, self.base = newest, sequence, base

    @precondition(lambda self: len(self.shown) > 1)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """An old manifest is good, and yet not taken."""
        newest, loads = self.url.read_bytes(), len(self.worker.loaded)
        known = {one.version for one in (self.rollout.running, self.slots.candidate) if one is not None}
        self.url.write_bytes(data.draw(st.sampled_from(self.shown[:-1])))
        self.runner.run(self._poll())
        if not self.pin and self.slots.sequence == self.sequence:
            assert set(self.worker.loaded[loads:]) <= known
        self.url.write_bytes(newest)

    @rule(damage=st.sampled_from([b"", b"model of somebody"]))
    def corrupt_and_mend(self, damage: bytes) -> None:
        assert self.newest is not None
        file = self.url.parent / "objects" / self.newest.model.name
        whole = file.read_bytes()
        file.write_bytes(damage)
        self.runner.run(self._poll())
        file.write_bytes(whole)

    # -- what happens on the device

    @rule()
    def poll(self) -> None:
        self.runner.run(self._poll())

    @precondition(lambda self: self.rollout.status.trial)
    @rule(failed=st.booleans())
    def results(self, failed: bool) -> None:
        """Enough of them to end the trial, in one way or the other."""
        self.runner.run(self._results(failed=failed))

    async def _results(self, *, failed: bool) -> None:
        trial, before = self.rollout.running, self.slots.committed
        assert self.worker.current is not None
        if failed:
            self.worker.go_back("it is worse")
        else:
            for _ in range(100):
                self.rollout.take(self.worker.current, "cpu", [result()], 0)
        async with asyncio.timeout(30):
            while self.rollout.status.trial or not self.rollout._in_use.is_settled:  # noqa: ASYNC110  a thread's work
                await asyncio.sleep(0.001)
        assert self.slots.committed == (before if failed else trial)

    @rule()
    def restart(self) -> None:
        self.runner.run(self._end(in_order=True))
        self.runner.run(self._start())

    @rule(steps=st.integers(1, 25), kind=KINDS)
    def power_cut(self, steps: int, kind: Kind) -> None:
        """Somewhere in what a new release sets going."""
        self.disk.cut_after(steps)
        self._publish(kind, Audience())
        self.runner.run(self._poll())
        if self.rollout.status.trial:
            self.runner.run(self._results(failed=False))
        self.runner.run(self._end(in_order=False))
        self.disk.lose()
        self.runner.run(self._start())

    @rule(part=st.sampled_from(["committed", "candidate", "previous"]))
    def damage_and_restart(self, part: str) -> None:
        self.runner.run(self._end(in_order=False))
        release = getattr(self.slots, part)
        if release is not None and (part != "committed" or self.slots.previous is not None):
            self.slots.path(release).write_bytes(b"damaged")
        self.runner.run(self._start())

    @rule(hold=st.booleans(), data=st.data())
    def other_settings(self, hold: bool, data: st.DataObject) -> None:
        self.hold = hold
        self.pin = data.draw(st.sampled_from(["", "", *sorted(self.stayed)]))
        self.restart()

    @rule()
    def in_the_end_the_newest_runs(self) -> None:
        self.pin, self.hold = "", False
        self.restart()
        self._publish("good", Audience())
        self.runner.run(self._poll())
        if self.rollout.status.trial:
            self.runner.run(self._results(failed=False))
        assert self.newest is not None
        assert self.rollout.running is not None
        assert self.slots.committed is not None
        assert self.rollout.running.version == self.slots.committed.version == self.newest.version
        assert self.worker.current is not None
        assert self.worker.current.version == self.newest.version

    # -- what always holds

    @invariant()
    def what_is_committed_is_whole_and_has_earned_it(self) -> None:
        for one in (self.slots.committed, self.slots.previous):
            if one is not None:
                assert self.slots.path(one).read_bytes() == content(one.version)
        committed = self.slots.committed
        assert committed is not None
        assert committed.version in self.stayed
        assert self.kinds[committed.version] in {"good", "unlucky"}

    @invariant()
    def the_worker_runs_what_the_agent_says(self) -> None:
        assert self.worker.strange == []
        running = self.rollout.running
        assert running is not None
        assert self.worker.current is not None
        assert self.worker.current.path == str(self.slots.path(running))
        if not self.rollout.status.trial:
            assert running == self.slots.committed

    @invariant()
    def nothing_that_is_gone_comes_back(self) -> None:
        running, trial = self.rollout.running, self.slots.trial
        assert running is not None
        assert running.id not in self.gone
        assert trial is None or trial.begun <= INTERRUPTIONS

    def teardown(self) -> None:
        self.disk.repair()
        self.runner.run(self._end(in_order=True))
        self.runner.close()
        shutil.rmtree(self.folder)


def _bare(made: Manifest) -> Manifest:
    return replace(made, before=None, audience=Audience())


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)
