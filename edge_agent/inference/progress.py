"""A page of memory in which the worker leaves what it is doing, readable by the agent even after it has died.

Messages cannot do this: a worker that aborts sends none, and one whose native code holds the GIL cannot answer.
Each track (a thread of the worker) has three 64-bit slots: stage, the CLOCK_MONOTONIC nanosecond at which it
began, and a count of finished samples. Behind them each has room for the key of a sample (`Source.key`; a byte count
and as much UTF-8): the one that is worked on, or for the thread that captures, the one it has read last.
"""

import enum
import mmap
import os
import time

_SLOTS = 3
_SIZE = mmap.PAGESIZE
_POSITIONS = 1024
_ROOM = 1024
_NEVER = 0


class Track(enum.IntEnum):
    """The worker's threads."""

    CONTROL = 0
    CAPTURE = 1
    INFERENCE = 2


class Stage(enum.IntEnum):
    """What a thread is doing. The words are shown to people: see `words`."""

    IDLE = 0
    START = 1
    LOAD = 2
    OPEN = 3
    READ = 4
    WAIT = 5
    PREPROCESS = 6
    INVOKE = 7
    DECODE = 8
    SEND = 9
    CLOSE = 10
    SHUT = 11
    GOLDEN = 12
    SHADOW = 13
    BOTH_FAIL = 14

    @property
    def words(self) -> str:
        """The stage as it stands in a log line."""
        return _WORDS[self]


_WORDS = {
    Stage.IDLE: "idle",
    Stage.START: "starting",
    Stage.LOAD: "loading a model",
    Stage.OPEN: "opening the source",
    Stage.READ: "reading the source",
    Stage.WAIT: "waiting",
    Stage.PREPROCESS: "preparing the input",
    Stage.INVOKE: "running the model",
    Stage.DECODE: "reading the output",
    Stage.SEND: "handing over results",
    Stage.CLOSE: "closing the device",
    Stage.SHUT: "closing the source",
    Stage.GOLDEN: "trying golden samples",
    Stage.SHADOW: "running the shadow",
    Stage.BOTH_FAIL: "running the model and the one before it, which both fail",
}

_STAGES = {stage.value: stage for stage in Stage}


class ProgressPage:
    """The shared page. Made by the agent, handed to the worker as a file descriptor.

    Whatever it holds can be read: native code that goes astray in the worker may write anywhere, and a worker may be
    killed in the middle of a store.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.bytes = mmap.mmap(descriptor, _SIZE)
        self.slots = memoryview(self.bytes).cast("q")

    @classmethod
    def create(cls) -> "ProgressPage":
        """Make an empty page."""
        descriptor = os.memfd_create("edge-agent-progress")
        os.ftruncate(descriptor, _SIZE)
        return cls(descriptor)

    def close(self) -> None:
        """Give the page back."""
        self.slots.release()
        self.bytes.close()
        os.close(self.descriptor)

    def enter(self, track: Track, stage: Stage) -> None:
        """Note that a thread begins a stage now."""
        base = track * _SLOTS
        self.slots[base + 1] = time.monotonic_ns()
        self.slots[base] = stage

    def stage(self, track: Track) -> Stage:
        """What the thread is, or was last, doing."""
        return _STAGES.get(self.slots[track * _SLOTS], Stage.IDLE)

    def seconds_in_stage(self, track: Track, now_ns: int) -> float:
        """How long it has been doing so."""
        return max(0.0, (now_ns - self.slots[track * _SLOTS + 1]) / 1e9)

    def count(self, track: Track) -> int:
        """How many samples the thread has finished."""
        return self.slots[track * _SLOTS + 2]

    def position(self, track: Track) -> str | None:
        """The key of the sample; empty before the first one, None where samples have no position."""
        start = _POSITIONS + track * _ROOM
        length = int.from_bytes(self.bytes[start : start + 2], "little")
        text = self.bytes[start + 2 : start + 1 + min(length, _ROOM - 1)]
        return None if length == _NEVER else text.decode(errors="replace")

    def last_words(self) -> str:
        """What each busy thread was doing, in words, for the report of a death."""
        busy = [self.stage(track).words for track in Track if self.stage(track) not in {Stage.IDLE, Stage.WAIT}]
        return ", ".join(busy) or "idle"


class Reporter:
    """One thread's hand on the page. Kept to a few plain stores: it is called several times per sample."""

    def __init__(self, page: ProgressPage, track: Track) -> None:
        self._slots = page.slots
        self._base = track * _SLOTS
        self._bytes = page.bytes
        self._start = _POSITIONS + track * _ROOM

    def begin(self, stage: Stage) -> int:
        """Begin a stage and its clock; returns what that says, in ns of CLOCK_MONOTONIC."""
        now = time.monotonic_ns()
        self._slots[self._base + 1] = now
        self._slots[self._base] = stage
        return now

    def step(self, stage: Stage) -> None:
        """Go on to the next stage of the same sample, on the same clock."""
        self._slots[self._base] = stage

    def at(self, position: str) -> None:
        """Note the key of a sample. One too long to be noted counts as none."""
        text = position.encode()
        size = len(text) + 1 if len(text) < _ROOM - 2 else _NEVER
        start = self._start
        self._bytes[start : start + 1 + max(1, size)] = size.to_bytes(2, "little") + text[: size - 1 if size else 0]

    def finished(self) -> None:
        """Count one sample."""
        self._slots[self._base + 2] += 1
