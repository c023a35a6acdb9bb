"""How lines become values while they come."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sources.dialect import PATIENCE, Dialect

Taken = list[list[float] | str | None]


def taken(*lines: str) -> Taken:
    """What becomes of each line: its values, None for a header, or what is wrong with it."""
    dialect, found = Dialect(), []
    for line in lines:
        try:
            values = dialect.values(line)
            found.append(None if values is None else values.tolist())
        except ValueError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["1,2.5", "3,4"], [[1, 2.5], [3, 4]]),
        (["[1, 2]", "[3, null]"], [[1, 2], [3, pytest.approx(np.nan, nan_ok=True)]]),
        (['{"data": [[1, 2], [3, 4]]}'], [[[1, 2], [3, 4]]]),
        (["label;x;y", "normal;1,5;2", "failure;3;4"], [None, [1.5, 2], [3, 4]]),
        (["21.5", "22"], [[21.5], [22]]),
    ],
    ids=["csv", "json", "nested", "header", "one value"],
)
def test_the_first_line_decides(lines: list[str], expected: Taken) -> None:
    assert taken(*lines) == expected


@pytest.mark.parametrize("greeting", ["ready", "Sensor, v1"])
def test_a_greeting_is_taken_for_a_header_and_then_given_up(greeting: str) -> None:
    assert taken(greeting, "[1, 2]", "[3, 4]") == [None, [1, 2], [3, 4]]
    assert taken(greeting, "1 2 3", "4 5 6") == [None, [1, 2, 3], [4, 5, 6]]


def test_a_program_that_only_talks_is_no_silent_one() -> None:
    assert taken("no sensor", "no sensor", "still none") == [
        None,
        "'no sensor' has no values",
        "'still none' has no values",
    ]


def test_a_first_line_that_was_cut_short_is_forgotten() -> None:
    fault = "expected 2 values as in the first row, found 3"
    assert taken("2,3", *["1,2,3"] * (PATIENCE + 1)) == [[2, 3], *[fault] * PATIENCE, [1, 2, 3]]


def test_a_few_bad_lines_change_nothing() -> None:
    assert taken("1,2", "x,2", "1,2,3", "3,4", "5,y", "6,z", "7,8") == [
        [1, 2],
        "'x' is no number",
        "expected 2 values as in the first row, found 3",
        [3, 4],
        "'y' is no number",
        "'z' is no number",
        [7, 8],
    ]


def test_lists_of_another_shape() -> None:
    assert taken("[[1, 2]]", "[1, 2]") == [[[1, 2]], "expected 1 x 2 values as in the lines before, found 2"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_whatever_comes_is_values_or_a_fault(lines: list[str]) -> None:
    dialect = Dialect()
    for line in lines:
        try:
            values = dialect.values(line)
        except ValueError:
            continue
        assert values is None or (values.dtype == np.float32 and values.size)
