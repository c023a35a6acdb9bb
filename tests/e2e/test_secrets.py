"""The password of a camera: it reaches the camera, and nobody else."""

import base64
import io
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from PIL import Image

from edge_agent.report import StatusReport
from tests.agentprocess import AgentProcess
from tests.inference.synthetic import Spec, slices

ROOT = Path(__file__).parents[2]
REPORTBUG = ROOT / "packaging/reportbug/redact.py"
USER, PASSWORD, KEY = "viewer", "p@ss:w/rd-Xy%41", "qqzz81k"
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode(), KEY)


class Handler(BaseHTTPRequestHandler):
    """A camera that sends whoever asks to another one, which refuses at first and then serves, until it is to end."""

    server: Any

    def do_GET(self) -> None:
        self.server.asked.append((self.path, self.headers.get("Authorization", "")))
        if self.server.elsewhere:
            self.send_response(302)
            self.send_header("Location", self.server.elsewhere)
            self.end_headers()
        elif "Authorization" not in self.headers:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        elif not self.server.open.is_set():
            self.send_error(403)
        else:
            self._send_pictures()

    def _send_pictures(self) -> None:
        jpeg = io.BytesIO()
        Image.new("RGB", (64, 48), (250, 10, 10)).save(jpeg, "JPEG")
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=picture")
        self.end_headers()
        head = f"--picture\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg.getvalue())}\r\n\r\n"
        while not self.server.ending.wait(0.02):
            try:
                self.wfile.write(head.encode() + jpeg.getvalue() + b"\r\n")
            except OSError:
                return

    def log_message(self, *_arguments: object) -> None:
        pass


def serve(elsewhere: str = "") -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.elsewhere = [], elsewhere
    server.open, server.ending = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.ending.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def camera() -> Iterator[Any]:
    yield from serve()


@pytest.fixture
def elsewhere(camera: Any) -> Iterator[Any]:
    """A server that sends whoever asks to the camera."""
    yield from serve(f"http://localhost:{camera.server_port}/video.mjpg")


def settings(folder: Path, port: int) -> str:
    folder.mkdir()
    model = slices(Spec("image", (1, 8, 8, 3), "uint8", 1.0), [Spec("scores", (1, 3))])
    (folder / "model.tflite").write_bytes(model.bytes())
    (folder / "password").write_text(f"{PASSWORD}\n")
    return f"""
        [device]
        id = "edge-001"
        [source]
        plugin = "camera"
        url = "http://{USER}@127.0.0.1:{port}/video.mjpg?key={KEY}"
        password_file = "password"
        timeout = "2s"
        [model]
        url = "model.tflite"
        [telemetry]
        sink = "events.jsonl"
        [log]
        level = "debug"
    """


def contents(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:  # the queue has done with it
        return ""


def told(agent: AgentProcess, folder: Path) -> str:
    """All that anybody could read of the agent: what it says and writes, its processes, and a bug report of it."""
    status = agent.command("status").stdout + agent.command("status", "--json").stdout
    processes = "".join(
        Path(f"/proc/{pid}/{name}").read_text(errors="replace") for pid in agent.pids for name in ("cmdline", "environ")
    )
    files = [path for path in folder.rglob("*") if path.is_file() and path not in (folder / "password", agent.config)]
    assert any(path.name == "events.jsonl" for path in files)
    written = "".join(contents(path) for path in files)
    said = "\n".join([*agent.lines, *agent.notices])
    report = subprocess.run(
        [sys.executable, "-I", REPORTBUG, ROOT, agent.config],
        input=said + status,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "source.plugin" in report
    return said + status + processes + written + report


def source(report: StatusReport) -> str:
    return report.source.state if report.source else ""


def samples(report: StatusReport) -> int:
    return report.results.samples if report.results else 0


@pytest.mark.system
def test_no_output_of_a_running_agent_shows_what_opens_the_camera(camera: Any, tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    with AgentProcess(folder, settings(folder, camera.server_port), {"WATCHDOG_USEC": "1000000"}) as agent:
        agent.wait_for_report(lambda report: "forbids it (403)" in source(report), "the refusal")
        camera.open.set()
        before = samples(agent.wait_for_report(samples, "results"))
        os.kill(agent.pids[1], signal.SIGABRT)
        agent.wait_for("SIGABRT")
        agent.wait_for_report(lambda report: samples(report) > before + 100, "results again")
        everything = told(agent, folder)
        agent.configure(agent.config.read_text().replace(f"{USER}@", f"{USER}:{quote(PASSWORD, safe='')}@"))
        refused = agent.command("reload")
        assert refused.returncode
        checked = subprocess.run(
            [sys.executable, "-m", "edge_agent", "check-config", agent.config],
            capture_output=True,
            text=True,
            check=False,
        )
        assert "there is a password in it" in checked.stdout + checked.stderr
        assert agent.stop() == 0
    everything += "\n".join([*agent.lines, refused.stdout, refused.stderr, checked.stdout, checked.stderr])
    assert (f"/video.mjpg?key={KEY}", f"Basic {SECRETS[2]}") in camera.asked
    for secret in SECRETS:
        assert secret not in everything, [line for line in everything.splitlines() if secret in line][:3]


def test_a_camera_that_sends_us_elsewhere_does_not_send_the_password_there(
    elsewhere: Any, camera: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "agent"
    camera.open.set()
    with AgentProcess(folder, settings(folder, elsewhere.server_port)) as agent:
        # On a busy machine the servers may be late for its patience at first.
        agent.wait_for_report(
            lambda report: re.match(r"trouble.*refuses the user or the password \(401\)", source(report)), "the refusal"
        )
        assert agent.stop() == 0
    assert camera.asked
    assert not [authorization for _, authorization in camera.asked if authorization]
