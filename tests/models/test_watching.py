"""A release that is copied into a folder, with real inotify events."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.models import watching
from edge_agent.models.watching import FolderWatcher, Watcher, open_watcher
from edge_agent.settings.location import parse_location

NEVER = 3600.0
SOON = 0.05
MODEL = b"model" * 1000


class Woken:
    """Counts calls of `wake`."""

    def __init__(self) -> None:
        self._calls = threading.Semaphore(0)

    def __call__(self) -> None:
        self._calls.release()

    def wait(self) -> None:
        assert self._calls.acquire(timeout=30), "nothing woke the poll"

    def none_left(self) -> bool:
        return not self._calls.acquire(blocking=False)


@pytest.fixture
def woken() -> Woken:
    return Woken()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def watch(woken: Woken, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Watcher]]:
    """Starts watchers that are watching when they are returned, and stops them in the end."""
    started = []
    is_watching = threading.Event()
    real = FolderWatcher._wait_for_event

    def waits(self: FolderWatcher) -> bool:
        is_watching.set()
        return real(self)

    monkeypatch.setattr(FolderWatcher, "_wait_for_event", waits)

    def start(*files: Path, look_interval: float = NEVER, quiet: float = SOON) -> Watcher:
        watcher = FolderWatcher(files, look_interval=look_interval, quiet=quiet)
        watcher.start(woken)
        started.append(watcher)
        assert is_watching.wait(30)
        return watcher

    yield start
    for watcher in started:
        watcher.stop()


def _copy(target: Path) -> None:
    target.write_bytes(MODEL)


def _rename(target: Path) -> None:
    other = target.with_name(".m.tmp")
    other.write_bytes(MODEL)
    other.replace(target)


def _move_in(target: Path) -> None:
    other = target.parent.with_name("elsewhere")
    other.write_bytes(MODEL)
    other.replace(target)


def _swap_link(target: Path) -> None:
    real = target.with_name("v2")
    real.write_bytes(MODEL)
    link = target.with_name(".link")
    link.symlink_to(real)
    link.replace(target)


@pytest.mark.parametrize("bring", [_copy, _rename, _move_in, _swap_link])
@pytest.mark.parametrize("name", ["m.tflite", "m.tflite.json", "release.json"])
def test_a_file_that_was_brought_wakes_the_poll(
    *, folder: Path, woken: Woken, watch: Callable[..., Watcher], bring: Callable[[Path], None], name: str
) -> None:
    watch(folder / name.replace(".tflite.json", ".tflite"))
    bring(folder / name)
    woken.wait()


def test_model_and_sidecar_wake_it_once(folder: Path, woken: Woken, watch: Callable[..., Watcher]) -> None:
    watcher = watch(folder / "m.tflite", quiet=1.0)
    assert isinstance(watcher, FolderWatcher)
    with watcher._changed:  # it hears of both at once, however slow this is
        _copy(folder / "m.tflite")
        _copy(folder / "m.tflite.json")
    woken.wait()
    watcher.stop()
    assert woken.none_left()


def test_a_file_that_is_still_written_does_not_wake_it(
    folder: Path, woken: Woken, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(folder / "m.tflite", folder / "twin.tflite")
    with (folder / "m.tflite").open("wb", buffering=0) as file:
        file.write(MODEL)
        _copy(folder / "others")
        _copy(folder / "twin.tflite")
        woken.wait()
        assert woken.none_left()
    woken.wait()
    watcher.stop()
    assert woken.none_left()


def test_a_folder_that_comes_later_and_is_replaced(folder: Path, woken: Woken, watch: Callable[..., Watcher]) -> None:
    """As with a stick: nothing tells that it was mounted, but the next look."""
    folder.rmdir()
    watch(folder / "m.tflite", look_interval=SOON)
    for _ in range(2):
        folder.mkdir()
        _copy(folder / "m.tflite")
        woken.wait()
        shutil.rmtree(folder)
        woken.wait()


def test_a_folder_that_was_replaced_is_watched_again(
    folder: Path, woken: Woken, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched: list[Any] = []
    real = FolderWatcher._watch

    def count(self: FolderWatcher) -> Any:
        watched.append(real(self))
        return watched[-1]

    monkeypatch.setattr(FolderWatcher, "_watch", count)
    watch(folder / "m.tflite", look_interval=SOON)
    folder.rename(folder.with_name("old"))
    folder.mkdir()
    _copy(folder / "m.tflite")
    woken.wait()
    assert len(watched) >= 1
    while len(watched) < 2:
        _copy(folder / "m.tflite")
        woken.wait()
    assert not watched[0].is_alive()


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENOSPC])
def test_exhausted_limits_of_inotify_are_told_once(
    *,
    folder: Path,
    woken: Woken,
    watch: Callable[..., Watcher],
    monkeypatch: pytest.MonkeyPatch,
    log: list[Any],
    code: int,
) -> None:
    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("edge_agent.models.stores.folder_events.observe", full)
    watch(folder / "m.tflite", look_interval=SOON)
    for name in ("m.tflite", "m.tflite.json"):
        _copy(folder / name)
        woken.wait()
    (line,) = [line for line in log if "cannot be watched" in line["event"]]
    assert (line["log_level"], line["reason"], line["folder"]) == ("info", os.strerror(code), str(folder))


def test_a_folder_that_is_not_there_is_no_trouble(folder: Path, watch: Callable[..., Watcher], log: list[Any]) -> None:
    watch(folder / "none" / "m.tflite")
    (line,) = log
    assert (line["log_level"], line["event"]) == ("debug", "the model's folder is not there")


def test_stop_ends_all_threads_also_before_the_first_event(folder: Path) -> None:
    before = threading.active_count()
    for _ in range(3):
        watcher = FolderWatcher([folder / "m.tflite"])
        watcher.stop()
        watcher.start(lambda: None)
        watcher.stop()
    assert threading.active_count() == before


def test_events_that_do_not_end_wake_it_all_the_same(
    folder: Path, woken: Woken, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "LONGEST_WAIT", 0.2)
    watcher = watch(folder / "m.tflite", quiet=0.1)
    ended = threading.Event()

    def write() -> None:
        while not ended.wait(0.001):
            _copy(folder / "m.tflite")

    writer = threading.Thread(target=write)
    writer.start()
    woken.wait()
    ended.set()
    writer.join()
    watcher.stop()


@pytest.mark.parametrize(
    ("url", "cpu_url", "names"),
    [
        ("/m/m_edgetpu.tflite", None, {"m_edgetpu.tflite", "m.tflite"}),
        ("/m/m.tflite", "/m/twin.tflite", {"m.tflite", "twin.tflite"}),
        ("/m/m.tflite", "/other/twin.tflite", {"m.tflite"}),
        ("/m/release.json", "gs://bucket/twin", {"release.json"}),
    ],
)
def test_which_files_are_watched(url: str, cpu_url: str | None, names: set[str]) -> None:
    watcher = open_watcher(parse_location(url), parse_location(cpu_url) if cpu_url else None)
    assert isinstance(watcher, FolderWatcher)
    assert watcher._names == {variant for name in names for variant in (name, f"{name}.json")}


def test_a_bucket_is_not_watched_and_its_library_not_loaded() -> None:
    code = (
        "import sys; from edge_agent.models.watching import open_watcher;"
        "from edge_agent.settings.location import parse_location;"
        "print(open_watcher(parse_location('gs://bucket/o')), [name for name in sys.modules if 'watchdog' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None []"
