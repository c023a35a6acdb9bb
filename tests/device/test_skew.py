import pytest

from edge_agent.device.skew import measure_skew

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


def headers(clock: str) -> dict[str, str]:
    return {"Date": f"Fri, 15 Jan 2027 {clock} GMT"}


@pytest.mark.parametrize(
    ("clock", "elapsed", "least", "most"),
    [
        ("08:00:00", 0.0, 0, 0),
        ("07:59:59", 0.5, 0, 0),
        ("07:59:30", 60.0, 0, 0),  # a slow answer is no skew
        ("08:05:00", 1.0, 298, 302),
        ("07:55:00", 1.0, -302, -298),
        ("10:00:00", 20.0, 7170, 7200),
    ],
)
def test_only_what_is_certain_counts(clock: str, elapsed: float, least: float, most: float) -> None:
    skew = measure_skew(headers(clock), elapsed, NOW)
    assert skew is not None
    assert least <= skew <= most


def test_a_clock_without_a_battery_is_half_a_century_behind() -> None:
    skew = measure_skew(headers("08:00:00"), 0.1, 60.0)
    assert skew is not None
    assert round(skew) in {1_799_999_940, 1_799_999_939}


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"Date": ""},
        {"Date": "today"},
        {"Date": "Fri, 99 Jan 2027 08:00:00 GMT"},
        headers("07:00:00") | {"Age": "3600"},
    ],
)
def test_what_tells_nothing_is_left_out(answer: dict[str, str]) -> None:
    assert measure_skew(answer, 0.1, NOW) is None
