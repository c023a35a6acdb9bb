"""The disk of the tests of power cuts does itself what it says."""

import subprocess
from pathlib import Path

import pytest

from tests.telemetry import loopdisk
from tests.telemetry.loopdisk import LoopDisk


def test_a_restart_brings_the_disk_back_although_a_container_has_it_too(tmp_path: Path) -> None:
    if reason := loopdisk.why_not():
        pytest.skip(reason)
    with LoopDisk(tmp_path / "card", 8) as disk:
        (disk.path / "kept").write_text("x")
        subprocess.run(["sync", "--file-system", str(disk.path)], check=True)
        (disk.path / "lost").write_text("x")
        command = ["unshare", "--mount", "sh", "-c", "echo started; exec sleep 1000"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as container:
            assert container.stdout is not None
            assert container.stdout.readline() == b"started\n"
            disk.cut_power()
            disk.restart()
            container.kill()
        assert (disk.path / "kept").read_text() == "x"
        assert not (disk.path / "lost").exists()
        (disk.path / "new").write_text("x")
