"""How far an upload is, as people and as logs see it."""

import io
import sys
import threading
from pathlib import Path

import pytest

from edge_agent.publisher.places import open_place
from edge_agent.publisher.progress import show_progress
from tests.models.rollout.release_kit import object_file
from tests.servers.gcs import GcsServer


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal, threads = Terminal(), threading.active_count()
    monkeypatch.setattr(sys, "stderr", terminal)
    with show_progress("model.tflite", 4_000_000) as watch:
        for _ in range(4):
            watch(1_000_000)
    assert "model.tflite: 100%" in terminal.getvalue()
    assert "4.00M/4.00M" in terminal.getvalue()
    assert threading.active_count() == threads


def test_a_line_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress("model.tflite", 4_000_000) as watch:
        watch(4_000_000)
    assert capsys.readouterr() == ("model.tflite: 4.0 MB\n", "")


@pytest.mark.parametrize("size", [0, 1000, 1 << 20, (5 << 20) + 1])
def test_an_upload_tells_how_far_it_is_piece_by_piece(gcs_server: GcsServer, tmp_path: Path, size: int) -> None:
    gcs_server.create_bucket("bucket")
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    path = tmp_path / "model.tflite"
    path.write_bytes(content)
    told: list[int] = []
    open_place("gs://bucket/models").put_object(object_file(content), path, told.append)
    assert sum(told) == size
    assert max(told, default=0) <= 1 << 20
    [stored] = gcs_server.buckets["bucket"].objects.values()
    assert stored[-1].data == content
