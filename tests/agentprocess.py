"""Runs the real `edge-agent` as its own process, for end-to-end tests and benchmarks."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import pytest

from edge_agent.report import StatusReport
from edge_agent.service.control_client import CONTROL_SOCKET, CommandFailed, NotRunning, ask

PATIENCE = 60.0
LAUNCHER = (sys.executable, "-m", "edge_agent")
NOBODY = 65534


def ordinary_user() -> list[str]:
    """Return what has to stand before a command so that root runs it as `nobody`; for another user, nothing.

    `nobody` may read everything, since the interpreter may lie in root's own folder, but may write only what is his.
    """
    if os.geteuid() != 0:
        return []
    user = [f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    reads = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    prefix = ["setpriv", *user, *reads]
    if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this root may not become another user that reads everything")
    return prefix


def edge_agent(
    *arguments: object, cwd: Path, prefix: Sequence[str] = (), **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, to its end."""
    command = [*prefix, sys.executable, "-P", "-m", "edge_agent", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environ}, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


class AgentProcess:
    """One agent with its own folder: settings, state, runtime directory, log lines and what it tells systemd."""

    def __init__(
        self,
        folder: Path,
        toml: str,
        environ: Mapping[str, str] | None = None,
        *,
        launcher: Sequence[str] = LAUNCHER,
    ) -> None:
        self.config = folder / "edge-agent.toml"
        self.lines: list[str] = []
        self.notices: list[str] = []
        self._folder = folder
        self._environ = dict(environ or {})
        self._launcher = launcher
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
        address = self._folder / "notify"
        address.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(address))
        environ = {**os.environ, **self._service_environment(address), **self._environ}
        self.process = subprocess.Popen(
            [*self._launcher, *self._arguments()],
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

    @property
    def runtime(self) -> Path:
        """The runtime directory, in which the control socket is."""
        return self._folder / "run"

    def _arguments(self) -> list[str]:
        return ["run", "--config", str(self.config), "--state-dir", str(self._folder / "state")]

    def _service_environment(self, address: Path) -> dict[str, str]:
        self.runtime.mkdir(exist_ok=True)
        return {"RUNTIME_DIRECTORY": str(self.runtime), "NOTIFY_SOCKET": str(address)}

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

    def wait_for_report(self, condition: Callable[[StatusReport], object], what: str) -> StatusReport:
        """Ask the agent at its control socket until its report makes the condition true, and return the report."""
        reports: list[StatusReport] = []

        def asked() -> object:
            try:
                reports.append(self.report())
            except (NotRunning, CommandFailed):  # it has only just been started
                return False
            return condition(reports[-1])

        self.wait_until(asked, f"report with {what}")
        return reports[-1]

    def report(self) -> StatusReport:
        """Return what the agent answers at its control socket."""
        return msgspec.convert(ask(self.runtime / CONTROL_SOCKET, "status", PATIENCE), StatusReport)

    def command(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        """Run `edge-agent status` or `edge-agent reload` for this agent."""
        return edge_agent(*arguments, "--state-dir", self.runtime, cwd=self._folder)

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
        self.send(signal.SIGHUP)

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the agent alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send SIGTERM, or another signal, and return the exit status."""
        assert self.process is not None
        self.send(number)
        try:
            status = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGABRT)  # so that it says where it is
            self.process.wait(PATIENCE)
            self._join()
            raise AssertionError(f"not ended {PATIENCE:.0f} s after {number.name}:\n{self.said}") from None
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


class DemoProcess(AgentProcess):
    """`edge-agent demo`, in a working directory of its own. Its state is in `kept`, or in a temporary folder."""

    def __init__(
        self,
        folder: Path,
        *,
        kept: Path | None = None,
        environ: Mapping[str, str] | None = None,
        launcher: Sequence[str] = LAUNCHER,
    ) -> None:
        self._kept = kept
        super().__init__(folder, "", environ, launcher=launcher)

    def start(self) -> None:
        """Start the demo, and wait until it has a folder."""
        super().start()
        self.wait_for("settings are in")

    @property
    def runtime(self) -> Path:
        """The folder of the demo's state, in which the control socket is."""
        if self._kept is not None:
            return self._kept
        [line] = [line for line in self.lines if "settings are in" in line]
        return Path(line.partition("settings are in ")[2].partition(";")[0]).parent

    def _arguments(self) -> list[str]:
        return ["demo"] if self._kept is None else ["demo", "--state-dir", str(self._kept)]

    def _service_environment(self, address: Path) -> dict[str, str]:
        return {}
