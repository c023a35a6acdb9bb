"""The options of libedgetpu that may stand in the settings."""

import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.settings.device_options import check_device_options

Faults = Callable[..., list[str]]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"Performance": "Low"},
        {"Performance": "Max", "Usb.AlwaysDfu": "False", "Usb.MaxBulkInQueueLength": "0"},
        {"Usb.AlwaysDfu": "True", "Usb.MaxBulkInQueueLength": "255"},
    ],
)
def test_what_libedgetpu_knows(options: dict[str, str]) -> None:
    assert check_device_options(options) == options


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        ("performance", "Max", '"performance" is no option of libedgetpu (did you mean "Performance"?)'),
        ("Usb.AlwaysDFU", "True", '"Usb.AlwaysDFU" is no option of libedgetpu (did you mean "Usb.AlwaysDfu"?)'),
        (
            "clock",
            "1",
            ('"clock" is no option of libedgetpu (it knows Performance, Usb.AlwaysDfu, Usb.MaxBulkInQueueLength)'),
        ),
        ("Performance", "max", 'Performance is "Low", "Medium", "High" or "Max", not "max"'),
        ("Usb.AlwaysDfu", "true", 'Usb.AlwaysDfu is "True" or "False", not "true"'),
        ("Usb.MaxBulkInQueueLength", "256", 'Usb.MaxBulkInQueueLength is a number from "0" to "255", not "256"'),
        ("Usb.MaxBulkInQueueLength", "-1", 'Usb.MaxBulkInQueueLength is a number from "0" to "255", not "-1"'),
    ],
)
def test_what_it_would_pass_over_or_fail_on(name: str, value: str, fault: str) -> None:
    with pytest.raises(ValueError, match=re.escape(fault)) as raised:
        check_device_options({"Usb.AlwaysDfu": "True", name: value})
    assert str(raised.value) == fault


@given(st.text(), st.text())
def test_anything_else_is_a_fault_in_words(name: str, value: str) -> None:
    known = name in {"Performance", "Usb.AlwaysDfu", "Usb.MaxBulkInQueueLength"}
    if not known:
        with pytest.raises(ValueError, match="no option of libedgetpu"):
            check_device_options({name: value})


def test_it_is_told_where_it_stands(faults: Faults, complete: str) -> None:
    text = '[inference]\ndevice_options = { Performance = "Turbo" }\n'
    assert faults(complete + text) == [
        'edge-agent.toml:10: [inference].device_options: Performance is "Low", "Medium", "High" or "Max", not "Turbo"'
    ]
