"""The options that libedgetpu knows for a device, as its header edgetpu.h has them (EdgeTpuManager::OpenDevice).

What it does not know it passes over without a word, and with a wrong value it opens no device and does not say why.
"""

from edge_agent.settings.showing import show
from edge_agent.settings.wording import nearest

_MOST_QUEUED = 255
_CHOICES = {
    "Performance": ("Low", "Medium", "High", "Max"),
    "Usb.AlwaysDfu": ("True", "False"),
}
_QUEUE = "Usb.MaxBulkInQueueLength"
_KNOWN = {known.lower(): known for known in (*_CHOICES, _QUEUE)}


def check_device_options(options: dict[str, str]) -> dict[str, str]:
    """Return the options as they are. Raises ValueError with the first one that is wrong."""
    for name, value in options.items():
        if (fault := _fault(name, value)) is not None:
            raise ValueError(fault)
    return options


def _fault(name: str, value: str) -> str | None:
    if name not in _KNOWN.values():
        near = nearest(name, _KNOWN)
        hint = f"did you mean {show(_KNOWN[near])}?" if near else f"it knows {', '.join(_KNOWN.values())}"
        return f"{show(name)} is no option of libedgetpu ({hint})"
    if name in _CHOICES and value not in _CHOICES[name]:
        *others, last = map(show, _CHOICES[name])
        return f"{name} is {', '.join(others)} or {last}, not {show(value)}"
    if name == _QUEUE and not (value.isdecimal() and int(value) <= _MOST_QUEUED):
        return f'{name} is a number from "0" to "{_MOST_QUEUED}", not {show(value)}'
    return None
