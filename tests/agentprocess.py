"""Runs the real `edge-agent run` as its own process, for end-to-end tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

PATIENCE = 60.0


class AgentProcess:
    """One agent with its own folder: settings, state, runtime directory, log lines and what it tells systemd."""

    def __init__(self, folder: Path, toml: str, environ: Mapping[str, str] | None = None) -> None:
        self.config = folder / "edge-agent.toml"
        self.lines: list[str] = []
        self.notices: list[str] = []
        self._folder = folder
        self._environ = dict(environ or {})
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._socket: socket.socket | None = None
        self.process: subprocess.Popen[str] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.configure(toml)

    def configure(self, toml: str) -> None:
        """Write the settings file; `reload` makes a running agent read it."""
        self.config.write_text(toml)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self._join()

    def start(self) -> None:
        """Start the agent; a second start goes on with the state of the first, and hears only what the second says."""
        self.lines, self.notices = [], []
        runtime = self._folder / "run"
        runtime.mkdir(exist_ok=True)
        address = self._folder / "notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        environ = {**os.environ, "RUNTIME_DIRECTORY": str(runtime), "NOTIFY_SOCKET": str(address), **self._environ}
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "edge_agent",
                "run",
                "--config",
                str(self.config),
                "--state-dir",
                self._folder / "state",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self._folder,
            env=environ,
            start_new_session=True,
        )
        self._threads = [threading.Thread(target=self._read_log), threading.Thread(target=self._read_notices)]
        for thread in self._threads:
            thread.start()

    def _read_log(self) -> None:
        assert self.process is not None
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._add(self.lines, line.rstrip("\n"))
        assert self._socket is not None
        # Wakes the other thread: the agent is gone, and with it what it could have said.
        self._socket.shutdown(socket.SHUT_RDWR)

    def _read_notices(self) -> None:
        assert self._socket is not None
        while notice := self._socket.recv(65536):
            self._add(self.notices, notice.decode())

    def _add(self, where: list[str], text: str) -> None:
        with self._changed:
            where.append(text)
            self._changed.notify_all()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until what the agent says makes the condition true; fails with all it said."""
        deadline = time.monotonic() + PATIENCE
        with self._changed:
            while not condition():
                assert self.process is not None
                ended = self.process.poll() is not None
                # The process may have ended while its last lines are still on their way.
                if ended and not any(thread.is_alive() for thread in self._threads):
                    assert condition(), f"the agent ended ({self.process.returncode}) without {what}:\n{self.said}"
                    return
                assert time.monotonic() < deadline, f"no {what} after {PATIENCE:.0f} s:\n{self.said}"
                self._changed.wait(0.5)

    def wait_for(self, text: str, times: int = 1) -> None:
        """Wait for a log line with this text."""
        self.wait_until(lambda: sum(text in line for line in self.lines) >= times, f"line with {text!r}")

    def wait_for_notice(self, text: str, times: int = 1) -> None:
        """Wait for a notification to systemd with this text."""
        self.wait_until(lambda: sum(text in notice for notice in self.notices) >= times, f"notice with {text!r}")

    @property
    def said(self) -> str:
        """All log lines since the start."""
        return "\n".join(self.lines)

    @property
    def pids(self) -> list[int]:
        """The agent and its children."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [self.process.pid, *map(int, children.split())]

    def reload(self) -> None:
        """Send SIGHUP."""
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> int:
        """Send SIGTERM and return the exit status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(PATIENCE)
        self._join()
        return status

    def kill(self) -> None:
        """Send SIGKILL to the agent alone: its worker has to notice by itself."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE)
        self._join()

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
        if self.process is not None and self.process.stderr is not None:
            self.process.stderr.close()
        if self._socket is not None:
            self._socket.close()
        self._threads = []
