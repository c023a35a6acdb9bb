import io
import logging
import os
import pty
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from edge_agent.service.logs import Format, Level, configure, is_journal


@pytest.fixture(autouse=True)
def put_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("JOURNAL_STREAM", raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def logged(level: Level = "info", format: Format = "journal") -> io.StringIO:  # noqa: A002
    stream = io.StringIO()
    configure(level, format, stream)
    return stream


def test_lines_below_the_level_are_not_shown_and_the_level_can_change() -> None:
    log = structlog.get_logger()
    stream = logged("warning")
    log.info("quiet")
    log.warning("loud")
    assert stream.getvalue() == "<4>loud\n"
    stream = logged("debug")
    log.debug("all")
    assert stream.getvalue() == "<7>all\n"


def test_the_journal_is_known_by_device_and_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stderr").open("w") as stream:
        assert not is_journal(stream)
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert is_journal(stream)
        configure("info", "auto", stream)
        structlog.get_logger().info("model ready", model="hand")
        with (tmp_path / "other").open("w") as other:
            assert not is_journal(other)
    assert not is_journal(io.StringIO())
    assert (tmp_path / "stderr").read_text() == "<6>model ready  model=hand\n"


def test_a_plain_file_gets_console_lines_without_colours() -> None:
    stream = logged(format="auto")
    structlog.get_logger().warning("queue is full")
    assert re.fullmatch(r"\d\d:\d\d:\d\d  WARNING queue is full\n", stream.getvalue())


@pytest.mark.parametrize(("no_color", "painted"), [("", True), ("1", False)])
def test_a_terminal_gets_colours_unless_it_asks_for_none(
    no_color: str, *, painted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    main, terminal = pty.openpty()
    with open(terminal, "w") as stream, open(main, "rb", buffering=0) as screen:  # noqa: PTH123 - descriptors
        configure("info", "auto", stream)
        structlog.get_logger().error("gone")
        assert (b"\x1b[1;31m" in screen.read(1000)) == painted


def test_an_exception_is_told_in_its_line() -> None:
    stream = logged("info")
    try:
        try:
            Path("/nonexistent\x1b[2J\n").read_text()
        except OSError as error:
            raise ValueError("token=abcdefgh") from error
    except ValueError:
        structlog.get_logger().exception("unexpected")
    line = stream.getvalue()
    assert line.count("\n") == 1
    assert line.startswith('<3>unexpected  exception="ValueError: token=***, caused by FileNotFoundError: [Errno 2]')
    assert line[:-1].isprintable()
    assert " at=service/test_logs.py:" in line


def test_an_exception_group_names_what_is_in_it() -> None:
    stream = logged("info")
    group = ExceptionGroup("two tasks failed", [ValueError("one"), KeyError("two")])
    structlog.get_logger().error("failed", exc_info=group)
    assert "two tasks failed (2 sub-exceptions) [ValueError: one; KeyError: 'two']" in stream.getvalue()


def test_the_traceback_is_shown_at_debug_only() -> None:
    stream = logged("debug")
    try:
        int("x")
    except ValueError as error:
        structlog.get_logger().warning("unexpected", exc_info=error)
    lines = stream.getvalue().splitlines()
    assert lines[1] == "<4>Traceback (most recent call last):"
    assert all(line.startswith("<4>") for line in lines)


def test_the_standard_librarys_lines_take_the_same_way() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        stream = logged("info", "journal")
        library = logging.getLogger("google.auth")
        library.info("chatter")
        library.warning("retrying %s with Bearer abcdefghijk", "POST")
        library.error("no")
        warnings.warn("old Python", FutureWarning, stacklevel=1)
    lines = stream.getvalue().splitlines()
    assert lines[:2] == ["<4>retrying POST with Bearer ***  logger=google.auth", "<3>no  logger=google.auth"]
    assert "FutureWarning: old Python" in lines[2]
    assert len(lines) == 3


def test_a_librarys_faulty_call_is_reported_and_does_not_raise(capsys: pytest.CaptureFixture[str]) -> None:
    logged("info", "journal")
    logging.getLogger("google.auth").warning("%d tries", "many")
    assert "Logging error" in capsys.readouterr().err


def test_repeated_warnings_are_held_back_and_secrets_masked() -> None:
    stream = logged()
    for attempt in range(3):
        structlog.get_logger().warning("cannot log in", attempt=attempt, token="hunter2")  # noqa: S106 - an example
    assert stream.getvalue() == "<4>cannot log in  attempt=0 token=***\n"


def test_lines_that_cannot_be_written_are_counted() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with open(writing, "w") as stream:  # noqa: PTH123 - a descriptor
        configure("info", "journal", stream)
        os.close(reading)
        structlog.get_logger().info("nobody reads this")
        structlog.get_logger().info("nor this")
        reading_again, other = os.pipe()
        os.dup2(other, writing)
        os.close(other)
        structlog.get_logger().info("back")
    with open(reading_again, "rb") as file:  # noqa: PTH123
        assert file.read().splitlines()[-2:] == [b"2 log lines could not be written", b"<6>back"]


def test_it_works_in_a_locale_without_unicode() -> None:
    code = "from edge_agent.service.logs import configure; import structlog; configure('info', 'console'); "
    code += "structlog.get_logger().info('caf\\u00e9', name='\\u65e5')"
    environ = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PATH": os.environ["PATH"]}
    run = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, check=True)
    assert b"name=" in run.stderr
