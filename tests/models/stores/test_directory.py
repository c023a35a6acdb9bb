import hashlib
import os
import threading
from pathlib import Path

import pytest

from edge_agent.models.open import open_store
from edge_agent.models.stores.base import FetchFailed, StoreNeedsPerson, StoreUnavailable
from edge_agent.models.stores.directory import FileStore
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.settings.location import parse_location

MODEL = b"model one" * 1000


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.tflite"
    path.write_bytes(MODEL)
    return path


def _fetch(store: FileStore, destination: Path, stop: threading.Event | None = None) -> bytes:
    store.fetch(store.stat(), destination, stop or threading.Event())
    return destination.read_bytes()


def test_content_names_itself(model: Path, tmp_path: Path) -> None:
    store = FileStore(model)
    remote = store.stat()
    digest = hashlib.sha256(MODEL).hexdigest()
    assert (remote.version, remote.checksum) == (f"sha256-{digest[:12]}", f"sha256:{digest}")
    assert (remote.size, remote.url) == (len(MODEL), f"file://{model}")
    assert _fetch(store, tmp_path / "copy") == MODEL


def test_sidecar_gives_version_accuracy_and_labels(model: Path) -> None:
    model.with_name("model.tflite.json").write_text(
        '{"version": "v1.3", "accuracy": 0.94, "labels": ["a", "b"], "by": {"x": 1}}'
    )
    remote = FileStore(model).stat()
    assert (remote.version, remote.accuracy, remote.labels) == ("v1.3", 0.94, ["a", "b"])


def test_a_new_file_is_seen(model: Path) -> None:
    store = FileStore(model)
    before = store.stat()
    assert store.stat() == before
    model.write_bytes(b"model two" * 1001)  # of another size: the clock of some file systems stands for milliseconds
    after = store.stat()
    assert (after.version, after.generation) != (before.version, before.generation)
    assert after.version != before.version


def test_touching_the_file_is_another_generation_of_the_same_version(model: Path) -> None:
    store = FileStore(model)
    before = store.stat()
    os.utime(model, (1, 1))
    after = store.stat()
    assert after.version == before.version
    assert after.generation != before.generation


def test_replaced_between_stat_and_fetch(model: Path, tmp_path: Path) -> None:
    store = FileStore(model)
    remote = store.stat()
    model.write_bytes(b"model two" * 1000)
    with pytest.raises(StoreUnavailable, match="changed while it was being copied"):
        store.fetch(remote, tmp_path / "copy", threading.Event())


def test_replaced_by_rename_in_the_middle_of_the_copy(model: Path, tmp_path: Path) -> None:
    """The copy goes through a pipe, so that the file can be replaced at a known point of it."""
    model.write_bytes(bytes(1 << 20))
    store = FileStore(model)
    remote = store.stat()
    pipe = tmp_path / "copy"
    os.mkfifo(pipe)
    caught: list[StoreUnavailable] = []

    def fetch() -> None:
        try:
            store.fetch(remote, pipe, threading.Event())
        except StoreUnavailable as error:
            caught.append(error)

    thread = threading.Thread(target=fetch)
    thread.start()
    with pipe.open("rb") as reader:
        assert reader.read(1)
        (tmp_path / "new").write_bytes(b"model two" * 1000)
        (tmp_path / "new").replace(model)
        reader.read()
    thread.join()
    assert "changed while it was being copied" in str(caught[0])


def test_stop_ends_the_copy(model: Path, tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(StoreUnavailable, match="stopped"):
        _fetch(FileStore(model), tmp_path / "copy", stop)


def test_full_disk(model: Path) -> None:
    with pytest.raises(FetchFailed, match=r"cannot write /dev/full: No space left"):
        _fetch(FileStore(model), Path("/dev/full"))


@pytest.mark.parametrize(
    ("name", "reason", "what_to_do"),
    [
        ("missing.tflite", "there is no file", "put the model there"),
        ("", "is a folder", "name the model file itself"),
        ("/dev/zero", "/dev/zero is no file", "name the model file itself"),
    ],
)
def test_what_only_a_person_can_change(model: Path, name: str, reason: str, what_to_do: str) -> None:
    with pytest.raises(StoreNeedsPerson, match=reason) as caught:
        FileStore(model.parent / name).stat()
    assert what_to_do in str(caught.value)
    assert str(model.parent / name) in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", '"v1"'])
def test_a_damaged_sidecar_is_named(model: Path, text: str) -> None:
    model.with_name("model.tflite.json").write_text(text)
    with pytest.raises(StoreNeedsPerson, match=r"model\.tflite\.json cannot be read"):
        FileStore(model).stat()


def test_open_store_chooses_by_scheme(model: Path) -> None:
    opened = open_store(parse_location(str(model)))
    assert isinstance(opened, FileStore)
    assert opened.stat().size == len(MODEL)
    assert isinstance(open_store(parse_location("gs://bucket/a/b")), GcsStore)


def test_no_more_is_copied_than_there_was(model: Path, tmp_path: Path) -> None:
    """The room on the disk was measured for that: whoever may write to the folder cannot fill the disk."""
    store = FileStore(model)
    remote = store.stat()
    with model.open("r+b") as file:
        file.truncate(100 << 20)
    with pytest.raises(StoreUnavailable, match="changed while it was being copied"):
        store.fetch(remote, tmp_path / "copy", threading.Event())
    assert (tmp_path / "copy").stat().st_size <= len(MODEL)


def test_what_is_too_long_for_a_model_is_not_read(model: Path) -> None:
    with model.open("r+b") as file:
        file.truncate(1 << 40)
    with pytest.raises(StoreNeedsPerson, match=f"has {1 << 40} bytes, and at most {1 << 32} are read"):
        FileStore(model).stat()


@pytest.mark.parametrize("name", ["model.tflite", "model.tflite.json"])
def test_nobody_waits_for_the_writer_of_a_pipe(model: Path, name: str) -> None:
    path = model.with_name(name)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(StoreNeedsPerson, match=f"{name} is no file"):
        FileStore(model).stat()


def test_a_file_that_becomes_a_pipe_is_not_waited_for(model: Path, tmp_path: Path) -> None:
    store = FileStore(model)
    remote = store.stat()
    model.unlink()
    os.mkfifo(model)
    with pytest.raises(StoreNeedsPerson, match="is no file"):
        store.fetch(remote, tmp_path / "copy", threading.Event())
