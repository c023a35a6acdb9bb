"""A question to a child process that does not end as it should."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from edge_agent.inference.checks import throwaway
from edge_agent.inference.checks.throwaway import NoAnswerError, ask


def test_a_child_that_cannot_be_killed_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that waits inside the kernel for an Edge TPU: whoever has asked must go on, without it."""
    (tmp_path / "sleeper.py").write_text("import time\ntime.sleep(600)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(throwaway, "KILL_DEADLINE", 0.05)
    monkeypatch.setattr(throwaway, "_signal_group", lambda *_: None)
    children: list[asyncio.subprocess.Process] = []
    start = throwaway._start

    async def note(*arguments: object) -> asyncio.subprocess.Process:
        children.append(await start(*arguments))  # type: ignore[arg-type]  # handed on
        return children[-1]

    monkeypatch.setattr(throwaway, "_start", note)

    async def scenario() -> None:
        async with asyncio.timeout(60):
            with capture_logs() as logs, pytest.raises(NoAnswerError, match="did not finish within"):
                await ask(dict, "sleeper", timeout=0.05)
        [child] = children
        assert [(entry["log_level"], entry["pid"]) for entry in logs] == [("error", child.pid)]
        os.kill(child.pid, signal.SIGKILL)
        await child.wait()

    asyncio.run(scenario())
