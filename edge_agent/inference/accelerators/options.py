"""Options of the Edge TPU's driver that have no effect, although they are right in themselves."""

from collections.abc import Iterator, Mapping

from edge_agent.inference.accelerators.devices import Device


def remarks_on_options(options: Mapping[str, str], device: Device, before: Mapping[str, str] | None) -> Iterator[str]:
    """Say which options libedgetpu passes over on this device.

    `before` are those that this process opened it with and still has it open with, None if it had not opened it.
    """
    if before is not None:
        if dict(options) != dict(before):
            yield f"device_options have no effect: {device.name} is open already, with {_listed(before)}"
        return
    ignored = [name for name in options if name.startswith("Usb.") and device.bus != "usb"]
    if ignored:
        yield f"{', '.join(ignored)} of device_options has no effect: {device.name} is not on USB"


def remarks_on_cpu(options: Mapping[str, str]) -> tuple[str, ...]:
    """Say that all options are passed over by a model that is meant to run on the CPU."""
    return ("device_options have no effect: the model runs on the CPU",) if options else ()


def _listed(options: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in options.items()) or "none"
