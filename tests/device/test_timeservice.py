import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edge_agent.device.timeservice import TimeService, kernel_max_error

UNSET_US = 16_000_000


def test_timesyncd_says_so_with_a_file(tmp_path: Path) -> None:
    service = TimeService(root=tmp_path)
    assert not service.timesyncd()
    (tmp_path / "run/systemd/timesync").mkdir(parents=True)
    (tmp_path / "run/systemd/timesync/synchronized").touch()
    assert service.timesyncd()


def test_the_kernel_answers() -> None:
    error = kernel_max_error()
    assert error is None or 0 <= error <= UNSET_US
    assert TimeService().kernel() == (None if error is None else error < UNSET_US)


@pytest.mark.parametrize(
    ("command", "answer"),
    [
        (["echo", "yes"], True),
        (["echo", "no"], False),
        (["echo", "maybe"], None),
        (["false"], None),
        (["/no/such/timedatectl"], None),
    ],
)
def test_timedated_is_asked_by_a_program(command: Sequence[str], answer: bool | None) -> None:
    assert asyncio.run(TimeService(command=command).timedated()) is answer


def test_nobody_waits_for_a_bus_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_agent.device.timeservice._PATIENCE", 0.0)
    assert asyncio.run(TimeService(command=["sleep", "600"]).timedated()) is None


def test_nor_at_the_end(tmp_path: Path) -> None:
    asked = tmp_path / "asked"
    program = f"import pathlib, time; pathlib.Path({str(asked)!r}).touch(); print('yes', flush=True); time.sleep(600)"

    async def scenario() -> None:
        question = asyncio.create_task(TimeService(command=[sys.executable, "-c", program]).timedated())
        while not asked.exists():  # noqa: ASYNC110  # there is nothing else to wait for
            await asyncio.sleep(0.01)
        question.cancel()
        with pytest.raises(asyncio.CancelledError):
            await question

    asyncio.run(scenario())
