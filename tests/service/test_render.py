import time
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from edge_agent.service.render import Console, escape, journal

NOON = time.struct_time((2024, 5, 1, 12, 0, 7, 2, 122, 0))


def console(event: str, level: str = "info", *, colours: bool = False, **values: Any) -> str:
    return Console(colours=colours, now=lambda: NOON)(None, level, {"event": event, **values, "level": level})


def for_journal(event: str, level: str = "info", **values: Any) -> str:
    return journal(None, level, {"event": event, **values, "level": level})


def test_console_shows_time_event_and_values() -> None:
    assert console("model ready", model="hand", version="v1.3") == (
        "12:00:07  model ready                   model=hand version=v1.3"
    )
    assert console("stopped") == "12:00:07  stopped"


def test_console_warnings_stand_out_with_and_without_colour() -> None:
    assert console("queue is full", "warning", dropped=3) == "12:00:07  WARNING queue is full         dropped=3"
    assert console("gone", "error", colours=True) == "\x1b[2m12:00:07\x1b[0m  \x1b[1;31mERROR gone\x1b[0m"
    assert console("fine", colours=True) == "\x1b[2m12:00:07\x1b[0m  fine"


def test_console_shows_several_lines_beneath() -> None:
    assert console("action failed", "warning", output="one\n\x1b[2Jtwo\n", code=3).splitlines() == [
        "12:00:07  WARNING action failed         code=3",
        "          output | one",
        "          output | \\x1b[2Jtwo",
    ]


@pytest.mark.parametrize(
    ("level", "number"), [("debug", 7), ("info", 6), ("warning", 4), ("error", 3), ("critical", 2)]
)
def test_journal_lines_have_their_priority_and_no_time(level: str, number: int) -> None:
    assert for_journal("model ready", level, model="hand", n=3) == f"<{number}>model ready  model=hand n=3"


def test_journal_has_one_line_but_for_a_traceback() -> None:
    assert for_journal("failed", "error", output="a\nb", traceback="Traceback:\n  File\n") == (
        '<3>failed  output="a\\nb"\n<3>Traceback:\n<3>  File'
    )


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("plain/value-1.0:2", "plain/value-1.0:2"),
        ("", '""'),
        ("two words", '"two words"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("a=b", '"a=b"'),
        ("C:\\x", '"C:\\\\x"'),
        ("\x1b[31mred", '"\\x1b[31mred"'),
        ("été 日本", '"été 日本"'),
        ("right\u202eto left", '"right\\u202eto left"'),
        (True, "true"),
        (None, "none"),
        (0.1 + 0.2, "0.3"),
        (1700000000, "1700000000"),
        (["a", "b c"], "\"['a', 'b c']\""),
    ],
)
def test_values_are_quoted_where_they_need_it(value: Any, shown: str) -> None:
    assert for_journal("x", value=value) == f"<6>x  value={shown}"


def test_long_values_are_cut() -> None:
    assert len(for_journal("x" * 10_000, value="y" * 10_000)) < 9000
    assert len(console("x", output="\n".join(["y" * 10_000] * 1000))) < 500_000


@given(text=st.text(), event=st.text())
def test_nothing_from_outside_starts_a_line_or_controls_the_terminal(text: str, event: str) -> None:
    line = for_journal(event, value=text, key=text)
    assert line.isprintable()
    shown = console(event, value=text).splitlines()
    assert all(part.isprintable() for part in shown)
    assert all(part.startswith("          value | ") for part in shown[1:])
    assert escape(text).isprintable()
    line.encode()  # no half of a surrogate pair is left
