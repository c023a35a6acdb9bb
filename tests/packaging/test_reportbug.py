"""The script for reportbug: on a made-up device, with secrets in every place that it reads."""

import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_agent.settings.schema import SHORT_FORMS, keys, tables

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "packaging/reportbug"
PASSWORD = "correcthorse"  # noqa: S105  made up; nothing in its letters tells that it is one
TOKEN = "ya29.A0AfH6SMBx7Q2example"  # noqa: S105  made up
KEY = "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKB"

SETTINGS = f"""
[device]
id = "edge-001"
labels = {{ site = "lyon", wifi_password = "{PASSWORD}", note = "token={PASSWORD}", "{TOKEN}" = "x" }}

[source]
plugin = "acme_camera"
address = "rtsp://camera.local/{PASSWORD}"
pin = 4711
mirror = true
login = {{ user = "{PASSWORD}", keys = ["{PASSWORD}"] }}

[model]
url = "https://storage.example/model.tflite?signature={PASSWORD}"
cpu_url = "https://storage.example/model_cpu.tflite?signature={PASSWORD}"

[telemetry]
sink = "pubsub://admin:{PASSWORD}@your-project/inference-results"
linger = "250ms"

[[actions]]
name = "alarm"
when = {{ label = "failure", min_confidence = 0.8 }}
run = ["/usr/bin/curl", "--user", "me:{PASSWORD}"]
"""

Run = Callable[[], str]


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """Return the root of a Raspberry Pi with the package, a USB Accelerator, and a PCIe card."""
    root = tmp_path / "root"
    (root / "usr/lib/edge-agent").mkdir(parents=True)
    (root / "usr/lib/edge-agent/edge_agent").symlink_to(ROOT / "edge_agent")
    contents = {
        "etc/edge-agent.toml": SETTINGS,
        "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.5\0",
        "sys/bus/usb/devices/1-1/idVendor": "1d6b\n",
        "sys/bus/usb/devices/1-1/idProduct": "0002\n",
        "sys/bus/usb/devices/2-1/idVendor": "18d1\n",
        "sys/bus/usb/devices/2-1/idProduct": "9302\n",
        "sys/bus/usb/devices/2-1/speed": "5000\n",
        "sys/bus/pci/devices/0000:01:00.0/vendor": "0x1ac1\n",
        "sys/bus/pci/devices/0000:01:00.0/device": "0x089a\n",
        "dev/apex_0": "",
    }
    for name, text in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """Return a directory with the programs that the script calls; they say what the tests want them to."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program(folder, "python3", f'exec {sys.executable} "$@"')
    program(folder, "edge-agent", 'if [ "$1" = --version ]; then echo edge-agent 0.1.0; else echo state: idle; fi')
    program(folder, "systemctl", "echo ActiveState=active; echo StatusText=waits for settings")
    program(folder, "journalctl", "echo it started")
    return folder


def program(folder: Path, name: str, commands: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{commands}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def run(device: Path, programs: Path) -> Run:
    """Return a function that runs the script and returns what it writes to descriptor 3; it may write nothing else."""

    def run_script() -> str:
        command = f'exec "{FOLDER}/script" "{device}" 3>"{device}/report"'
        environment = {"PATH": f"{programs}:{os.defpath}", "LC_ALL": "C"}
        done = subprocess.run(
            ["/bin/sh", "-c", command], env=environment, capture_output=True, text=True, check=True, timeout=60
        )
        assert done.stdout + done.stderr == ""
        return (device / "report").read_text(encoding="utf-8")

    return run_script


def test_report_tells_versions_board_and_edge_tpus(run: Run) -> None:
    report = run()

    assert "edge-agent 0.1.0\n" in report
    assert os.uname().release in report
    assert "Raspberry Pi 4 Model B Rev 1.5\n" in report
    assert "USB 18d1:9302 at 2-1, 5000 Mbit/s\n" in report
    assert "1d6b" not in report
    assert "PCI 0x1ac1:0x089a at 0000:01:00.0\n" in report
    assert "dev/apex_0\n" in report


def test_report_tells_the_state_of_the_service_and_its_last_words(run: Run) -> None:
    report = run()

    assert "ActiveState=active\nStatusText=waits for settings\n" in report
    assert "state: idle\n" in report
    assert "it started\n" in report


def test_settings_are_shown_without_what_may_be_secret(run: Run) -> None:
    report = run()

    assert PASSWORD not in report
    assert TOKEN not in report
    assert "4711" not in report
    for line in (
        'device.id = "edge-001"',
        'device.labels.site = "lyon"',
        'source.plugin = "acme_camera"',
        "source.address = (a str, not shown)",
        "source.pin = (a int, not shown)",
        "source.mirror = true",
        "source.login.keys = (a list, not shown)",
        'model.url = "https://storage.example/model.tflite?…"',
        'model.cpu_url = "https://storage.example/model_cpu.tflite?…"',
        'telemetry.linger = "250ms"',
        'actions.name = "alarm"',
        "actions.when.min_confidence = 0.8",
        "actions.run = (a list, not shown)",
    ):
        assert f"{line}\n" in report
    assert re.search(r"^telemetry.sink = .*not shown\)$", report, re.MULTILINE)


@pytest.mark.parametrize("name", ["edge-agent", "systemctl", "journalctl"])
def test_secrets_are_left_out_whichever_program_prints_them(run: Run, programs: Path, name: str) -> None:
    program(
        programs,
        name,
        f"""[ "$1" = --version ] && exit
cat >&2 <<'END'
refused: Bearer {TOKEN} for gs://bucket/model
fetched https://user:{PASSWORD}@host/ with key={PASSWORD}x?token={PASSWORD}
-----BEGIN PRIVATE KEY-----
{KEY}
-----END PRIVATE KEY-----
stray {KEY}
last words
END""",
    )

    report = run()

    assert TOKEN not in report
    assert KEY not in report
    assert f":{PASSWORD}@" not in report
    assert f"token={PASSWORD}" not in report
    assert "gs://bucket/model\n" in report
    assert "last words\n" in report


def test_nothing_is_shown_where_secrets_cannot_be_recognised(run: Run, programs: Path) -> None:
    program(programs, "journalctl", f"echo {TOKEN}")
    program(programs, "python3", f"echo {PASSWORD} >&2; exit 1")

    report = run()

    assert TOKEN not in report
    assert PASSWORD not in report
    assert "are left out: they could not be searched for secrets.\n" in report
    assert "edge-agent 0.1.0\n" in report


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (f'[model]\nurl = "{PASSWORD}\n', r"not TOML: \(at line \d+, column \d+\)"),
        (f'[model]\n"{PASSWORD}" = 1\n"{PASSWORD}" = 2\n', r"not TOML: \(at line \d+, column \d+\)"),
        ((ROOT / "config/edge-agent.toml").read_bytes(), "nothing is set"),
        (b"\xff", "cannot be read: not UTF-8"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_settings_that_cannot_be_read_are_not_quoted(
    run: Run, device: Path, content: str | bytes | None, reason: str
) -> None:
    file = device / "etc/edge-agent.toml"
    file.unlink()
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())

    report = run()

    assert re.search(f"^{reason}$", report, re.MULTILINE)
    assert PASSWORD not in report


def test_text_of_another_encoding_does_not_stop_the_report(run: Run, programs: Path) -> None:
    program(programs, "journalctl", r"printf 'caf\351\n'; echo last words")

    assert "caf\N{REPLACEMENT CHARACTER}\nlast words\n" in run()


def test_report_is_made_on_a_device_without_anything(run: Run, device: Path, programs: Path) -> None:
    for name in ("sys", "dev", "etc"):
        shutil.rmtree(device / name)
    for name in ("edge-agent", "systemctl", "journalctl"):
        program(programs, name, "exit 1")

    assert "cannot be read: No such file or directory\n" in run()


def test_names_of_all_settings_are_sorted_into_shown_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever adds a setting decides whether a bug report may show it."""
    monkeypatch.setattr(sys, "argv", ["redact.py", str(ROOT)])
    monkeypatch.syspath_prepend(str(FOLDER))
    redact: Any = importlib.import_module("redact")

    names = {
        ".".join((*path, name))
        for path, table in tables().items()
        for name in keys(table)
        if (*path, name) not in tables() or (*path, name) in SHORT_FORMS
    }

    shown = redact.PLAIN | redact.ADDRESSES | redact.PLAIN_TABLES
    assert names - shown == {"actions.run", "model.keys"}
    assert {name for name in shown - names if not name.startswith("source.")} == set()


def test_report_goes_to_the_maintainer_of_the_package() -> None:
    fields = dict(line.split(": ") for line in (FOLDER / "control").read_text().splitlines())
    maintainer = re.search(r"^Maintainer: .*<(.*)>$", (ROOT / "debian/control").read_text(), re.MULTILINE)

    assert maintainer
    assert fields["Send-To"] == maintainer[1]
    assert "libedgetpu1-std" in fields["Package-Status"].split()


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_script_is_clean() -> None:
    subprocess.run(["shellcheck", str(FOLDER / "script")], check=True)
