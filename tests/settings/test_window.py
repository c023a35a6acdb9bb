import pytest

from edge_agent.settings.window import Window, parse_window


@pytest.mark.parametrize(
    ("text", "start", "end"),
    [
        ("01:00-05:00", 60, 300),
        (" 1:00 - 5:30 ", 60, 330),
        ("22:15-05:00", 1335, 300),
        ("00:00-23:59", 0, 1439),
        ("20:00-24:00", 1200, 0),
        ("24:00-06:00", 0, 360),
    ],
)
def test_times_of_day(text: str, start: int, end: int) -> None:
    window = parse_window(text)
    assert window == Window(start, end)
    assert parse_window(str(window)) == window


@pytest.mark.parametrize(
    "text",
    ["", "01:00", "1-5", "01:00-01:00", "00:00-24:00", "25:00-01:00", "24:01-01:00", "01:60-02:00", 5, None, True],
)
def test_no_time_of_day(text: object) -> None:
    with pytest.raises(ValueError, match='is no time of day; write for instance "01:00-05:00"'):
        parse_window(text)


@pytest.mark.parametrize(
    ("minute", "left", "until"),
    [(60, 240, 0), (299, 1, 1201), (300, 0, 1200), (59, 0, 1), (1439, 0, 61), (60.5, 239.5, 1439.5)],
)
def test_left_and_until(minute: float, left: float, until: float) -> None:
    window = parse_window("01:00-05:00")
    assert (window.left(minute), window.until(minute)) == (left, until)


def test_over_midnight() -> None:
    window = parse_window("22:00-05:00")
    assert [window.left(minute) for minute in (1319, 1320, 0, 299, 300)] == [0, 420, 300, 1, 0]
