"""Files that are whole after a power cut."""

import os
from pathlib import Path

import pytest

from edge_agent.durable import replace_file


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "verdicts.json"
    replace_file(path, b"old")
    # What a power cut left is in nobody's way.
    (tmp_path / "verdicts.json.new").write_bytes(b"half of something lon")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="Input/output error"):
            replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    replace_file(path, b"new")
    assert [file.name for file in tmp_path.iterdir()] == ["verdicts.json"]
    assert path.read_bytes() == b"new"


def test_the_name_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    replace_file(tmp_path / "state.json", b"{}")
    assert synced == ["state.json.new", tmp_path.name]
