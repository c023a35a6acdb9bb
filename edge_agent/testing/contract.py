# ruff: noqa: S101 - failing is what this module is for
"""Checks that a source does what the worker relies on; see `edge_agent.sources.base` for the rules."""

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edge_agent.records import Sample
from edge_agent.sources.base import Source, SourceEnded, SourceError, build
from edge_agent.testing.reading import checked, collect

# The default of [inference].deadline: a source that does not come back within it is taken for hung.
DEADLINE = 10.0
LEAK_PATIENCE = 5.0
_CHANNELS = 3

T = TypeVar("T")


def check_source(
    source: type[Source],
    options: Mapping[str, Any] | None = None,
    *,
    count: int = 3,
    broken: Mapping[str, Any] | None = None,
) -> list[Sample]:
    """Check a source against the rules, with options as the admin would write them; return `count` of its samples.

    With `options` it must give samples; with `broken`, if given, it must raise SourceError when it is opened or read,
    as when its device is not there. Everything is called from one thread, as in the worker. Raises AssertionError.
    """
    assert issubclass(source, Source), f"{source.__name__} is no subclass of edge_agent.sources.base.Source"
    _check_options_class(source)
    usable = checked(source, options or {})
    thread = _OneThread()
    try:
        _read_once(thread, source, usable)  # what a library loads and keeps the first time is no leak
        before = _Holdings()
        samples = _check_samples(thread, source, usable, count)
        if not build(source, usable).live:
            _check_going_on(thread, source, usable, samples)
        _check_closing(thread, source, usable)
        if broken is not None:
            _check_broken(thread, source, broken)
        before.compare()
    finally:
        thread.end()
    return samples


def _check_options_class(source: type[Source]) -> None:
    kind = source.Options
    assert dataclasses.is_dataclass(kind), "Options must be a dataclass"
    assert vars(kind)["__dataclass_params__"].frozen, "Options must be frozen: @dataclass(frozen=True, kw_only=True)"
    positional = [field.name for field in dataclasses.fields(kind) if not field.kw_only]
    assert not positional, f"Options must be keyword-only (kw_only=True), {', '.join(positional)} is not"


def _read_once(thread: "_OneThread", source: type[Source], options: Mapping[str, object]) -> None:
    made = build(source, options)
    assert isinstance(getattr(made, "live", None), bool), "__init__ must set self.live to True or False"
    thread.call("open", lambda: made.open(None))
    thread.call("read", lambda: collect(made, 1, timeout=DEADLINE), DEADLINE)
    thread.call("close", made.close)


def _check_samples(
    thread: "_OneThread", source: type[Source], options: Mapping[str, object], count: int
) -> list[Sample]:
    made = build(source, options)
    # Trouble, and open again: what the worker does with every source some day.
    for _ in range(2):
        thread.call("open", lambda: made.open(None))
        thread.call("read", lambda: made.read(0.0))
        thread.call("close", made.close)
    thread.call("open", lambda: made.open(None))
    samples: list[Sample] = []
    copies = []
    while len(samples) < count:
        found = thread.call("read", lambda: collect(made, 1, timeout=DEADLINE), DEADLINE)
        if not found:
            break
        _check_sample(found[0])
        samples += found
        copies.append(found[0].data.copy())
    thread.call("close", made.close)
    assert samples, "the source ended before it gave a sample"
    for number, (sample, copy) in enumerate(zip(samples, copies, strict=True)):
        assert _same(sample.data, copy), f"the array of sample {number} was changed after it was returned; copy it"
    return samples


def _check_sample(sample: object) -> None:
    assert isinstance(sample, Sample), f"read must return a Sample or None, not {type(sample).__name__}"
    data, position = sample.data, sample.position
    assert isinstance(data, np.ndarray), f"data must be a NumPy array, not {type(data).__name__}"
    assert data.size, "data must not be empty"
    if data.dtype == np.uint8:
        image = data.ndim == _CHANNELS and data.shape[2] == _CHANNELS
        assert image, f"uint8 is for images of shape (height, width, 3), not {data.shape}"
    else:
        assert data.dtype == np.float32, f"data must be float32, or uint8 for an image, not {data.dtype}"
        assert data.ndim, "data must have at least one dimension"
    captured, now = sample.captured_ns, time.monotonic_ns()
    assert isinstance(captured, int), f"captured_ns must be an int, not {type(captured).__name__}"
    assert 0 < captured <= now, f"captured_ns must be time.monotonic_ns() of the capture, not {captured} (now {now})"
    assert position is None or isinstance(position, str), "position must be text or None"


def _check_going_on(
    thread: "_OneThread", source: type[Source], options: Mapping[str, object], samples: list[Sample]
) -> None:
    """Check that a recorded source goes on behind a sample, and passes one over."""
    assert all(sample.position for sample in samples), "a source with live = False must give each sample a position"

    def first_after(resume: str | None, *, pass_over: bool = False) -> list[Sample]:
        made = build(source, options)
        try:
            thread.call("open", lambda: made.open(resume))
            if pass_over:
                thread.call("pass_over", made.pass_over)
                assert made.skipped, "pass_over must count what it leaves out, with skip_deadly"
            return thread.call("read", lambda: collect(made, 1, timeout=DEADLINE), DEADLINE)
        finally:
            thread.call("close", made.close)

    expected = samples[1:2]
    if expected:
        told = f"after open({samples[0].position!r}) the next sample must be the one behind it"
        assert _all_same(first_after(samples[0].position), expected), told
        if source.pass_over is not Source.pass_over:
            after = first_after(None, pass_over=True)
            assert _all_same(after, expected), "after pass_over the next sample must be the second"
    _check_unknown_position(thread, build(source, options))


def _check_unknown_position(thread: "_OneThread", made: Source) -> None:
    """Check that a position of another file, or of another version, is no trouble."""
    try:
        thread.call("open", lambda: made.open("no position of this source"))
        with suppress(SourceEnded):
            thread.call("read", lambda: made.read(0.0))
    finally:
        thread.call("close", made.close)


def _check_closing(thread: "_OneThread", source: type[Source], options: Mapping[str, object]) -> None:
    made = build(source, options)
    thread.call("close before open", made.close)
    thread.call("open", lambda: made.open(None))
    thread.call("close", made.close)
    thread.call("a second close", made.close)


def _check_broken(thread: "_OneThread", source: type[Source], options: Mapping[str, Any]) -> None:
    made = build(source, checked(source, options, may_be_absent=True))
    try:
        thread.call("open", lambda: made.open(None))
        thread.call("read", lambda: collect(made, 1, timeout=DEADLINE), DEADLINE)
    except SourceError:
        return
    finally:
        thread.call("close after an error", made.close)
    raise AssertionError("with the broken options it raised no SourceError")


def _same(one: Any, other: Any) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def _all_same(found: list[Sample], expected: list[Sample]) -> bool:
    return len(found) == len(expected) and all(
        _same(one.data, other.data) for one, other in zip(found, expected, strict=True)
    )


class _OneThread:
    """Calls a source from one thread, and notices when it does not come back."""

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._answers: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="source under test", daemon=True)
        self._thread.start()

    def call(self, name: str, function: Callable[[], T], patience: float = 0.0) -> T:
        """Return what the function returns, or raise what it raises; AssertionError when it hangs."""
        self._calls.put(function)
        try:
            answer, error = self._answers.get(timeout=DEADLINE + patience)
        except queue.Empty:
            raise AssertionError(f"{name} did not come back within {DEADLINE + patience:g} s") from None
        if error is not None:
            raise error
        found: T = answer
        return found

    def end(self) -> None:
        self._calls.put(None)
        self._thread.join(0.5)

    def _run(self) -> None:
        while (function := self._calls.get()) is not None:
            try:
                self._answers.put((function(), None))
            except BaseException as error:  # noqa: BLE001  raised in the thread of the test
                self._answers.put((None, error))


class _Holdings:
    """The threads, child processes and open files of this process."""

    def __init__(self) -> None:
        self._threads = set(threading.enumerate())
        self._children = _children()
        self._files = _open_files()

    def compare(self) -> None:
        """Check that no more of them are left. Raises AssertionError."""
        deadline = time.monotonic() + LEAK_PATIENCE
        for thread in set(threading.enumerate()) - self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        threads = sorted(thread.name for thread in set(threading.enumerate()) - self._threads)
        assert not threads, f"close left threads behind: {', '.join(threads)}"
        children = _children() - self._children
        assert not children, f"close left processes behind: {children}"
        files = {fd: target for fd, target in _open_files().items() if self._files.get(fd) != target}
        assert not files, f"close left files open: {', '.join(sorted(files.values()))}"


def _children() -> set[int]:
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # a thread that has just ended
            found.update(map(int, (task / "children").read_text().split()))
    return found


def _open_files() -> dict[str, str]:
    found = {}
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the listing itself
            found[descriptor.name] = str(descriptor.readlink())
    return found
