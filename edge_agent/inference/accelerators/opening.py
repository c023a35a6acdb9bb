"""Opens the Edge TPU for a model, or says why the CPU has to do.

libedgetpu would pick a device by itself, and port-reset one on USB that another process is at work with. So which one
is decided here, among those that are free, and locked before libedgetpu is asked for it by its number; only then does
libedgetpu take the device's options, too.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edge_agent.inference.accelerators.devices import (
    Device,
    DeviceState,
    explain_failure,
    is_edgetpu_model,
    list_devices,
    matching,
    slow_link,
)
from edge_agent.inference.accelerators.lock import DeviceLock, DeviceLocked, holds_lock, lock_device
from edge_agent.inference.accelerators.names import in_order_of_driver, list_of_driver, number_of, opened_here
from edge_agent.inference.accelerators.options import remarks_on_cpu, remarks_on_options
from edge_agent.inference.accelerators.owners import describe_process
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import Runtime
from edge_agent.records import Accelerator, ModelFile

# Numbers change when a device gets its firmware; what went wrong twice is no such coincidence.
_TRIES = 2

# What this process has opened each device with; only the first opener's options count.
_opened_with: dict[str, dict[str, str]] = {}


class Opened:
    """What a model is to run on. `path` is the file to build: the compiled model, or its CPU twin.

    `delegates` go to the runtime, `device` is the stable name of the Edge TPU, `degraded` is why the model runs on the
    CPU although an Edge TPU was to be expected, `remarks` is what an admin should know although it works. Where the
    kernel shows no device, `device` is what the settings say, which may be an empty string. `device_failed`: the Edge
    TPU was opened for the model, and could not run it.
    """

    def __init__(
        self,
        path: str,
        *,
        delegates: list[Any] | None = None,
        device: str | None = None,
        degraded: str | None = None,
        remarks: tuple[str, ...] = (),
        device_failed: bool = False,
    ) -> None:
        self.path = path
        self.delegates = delegates or []
        self.device = device
        self.degraded = degraded
        self.remarks = remarks
        self.device_failed = device_failed

    @property
    def accelerator(self) -> Accelerator:
        """Where the model runs."""
        return "edgetpu" if self.delegates else "cpu"

    def close(self) -> None:
        """Give the device up. The interpreter has to be gone before, and tracebacks that hold its frames.

        As long as anything still holds the delegate, the device stays open, and locked.
        """
        self.delegates.clear()


class EdgeTpuUnavailable(Exception):
    """No Edge TPU can be used now; the message says why and what to do."""


def open_accelerator(
    runtime: Runtime, model: ModelFile, options: ModelOptions, *, avoid: str = "", root: Path = Path("/")
) -> Opened:
    """Open what the model is to run on. Raises ModelRefused.

    `avoid` says why the Edge TPU must not be touched now, or is empty. `root` is where /sys, /dev and /proc are looked
    for.
    """
    if not is_edgetpu_model(model.path):
        return Opened(model.path, degraded=_plain_model(options, root), remarks=remarks_on_cpu(options.device_options))
    if options.accelerator == "cpu":
        return _asked_for_cpu(model, options)
    if avoid:
        return _fall_back(model, options, avoid)
    try:
        return open_edgetpu(runtime, model.path, options, root)
    except EdgeTpuUnavailable as error:
        return _fall_back(model, options, str(error))


def _fall_back(model: ModelFile, options: ModelOptions, reason: str) -> Opened:
    if options.accelerator == "auto" and model.cpu_path is not None:
        return Opened(model.cpu_path, degraded=reason)
    raise ModelRefused(f"it needs an Edge TPU, and {reason}", permanent=False, about_device=True)


def _plain_model(options: ModelOptions, root: Path) -> str | None:
    not_compiled = "the model is not compiled for the Edge TPU (edgetpu_compiler)"
    if options.accelerator == "edgetpu":
        raise ModelRefused(f"{not_compiled}, but [inference].accelerator is 'edgetpu'", permanent=False)
    return not_compiled if options.accelerator == "auto" and list_devices(root) else None


def _asked_for_cpu(model: ModelFile, options: ModelOptions) -> Opened:
    if model.cpu_path is not None:
        return Opened(model.cpu_path, remarks=remarks_on_cpu(options.device_options))
    raise ModelRefused(
        "it is compiled for the Edge TPU, but [inference].accelerator is 'cpu'; "
        "publish the model as it was before the Edge TPU compiler",
        permanent=False,
    )


def open_edgetpu(runtime: Runtime, path: str, options: ModelOptions, root: Path = Path("/")) -> Opened:
    """Choose an Edge TPU, lock it and open it. Raises EdgeTpuUnavailable."""
    wrong: list[str] = []
    for _ in range(_TRIES):
        devices = list_devices(root)
        if not devices:
            return _open_unlisted(runtime, path, options)
        before = opened_here(devices)
        device, opened = _open_listed(runtime, path, options, devices, root)
        now = list_devices(root)
        wrong = sorted(opened_here(now) - before - {device.name})
        if not wrong:
            # With its firmware, the device may have another speed.
            current = next((other for other in now if other.name == device.name), device)
            opened.remarks += tuple(_remarks(current))
            return opened
        opened.close()
    raise EdgeTpuUnavailable(
        f"libedgetpu opened {', '.join(wrong)} instead of {device.name}, {_TRIES} times; "
        "say in [inference].device which one to use, or unplug the other"
    )


def _open_unlisted(runtime: Runtime, path: str, options: ModelOptions) -> Opened:
    """Leave it to libedgetpu where the kernel shows no device: in a container, it may still be right about that.

    There is nothing that a lock could be named after.
    """
    given = {"device": options.device} if options.device else {}
    try:
        delegate = runtime.load_delegate(given | options.device_options)
    except (OSError, ValueError) as error:
        raise EdgeTpuUnavailable(explain_failure(error, options.device, [])) from error
    ignored = options.device_options and not options.device.rpartition(":")[2].isdecimal()
    remark = "device_options have no effect: the system does not tell which Edge TPU it is; say it by number"
    return Opened(path, delegates=[delegate], device=options.device, remarks=(remark,) if ignored else ())


def _open_listed(
    runtime: Runtime, path: str, options: ModelOptions, devices: Sequence[Device], root: Path
) -> tuple[Device, Opened]:
    try:
        ordered = in_order_of_driver(devices, list_of_driver())
        device, lock, before = _choose(options.device, ordered, root)
        delegate = _load(runtime, {"device": number_of(device, ordered)} | options.device_options, lock)
    except (OSError, ValueError) as error:
        raise EdgeTpuUnavailable(explain_failure(error, options.device, devices)) from error
    if before is None:
        _opened_with[device.name] = options.device_options
    remarks = tuple(remarks_on_options(options.device_options, device, before))
    return device, Opened(path, delegates=[delegate], device=device.name, remarks=remarks)


def _choose(wanted: str, ordered: Sequence[Device], root: Path) -> tuple[Device, DeviceLock, dict[str, str] | None]:
    """Lock the best device that is free. Returns it with the options that this process has it open with already."""
    reasons = []
    usable = [device for device in matching(wanted, ordered) if device.usable]
    # A new model goes where the one before it is: another device would have to be opened, which takes seconds.
    usable.sort(key=lambda device: (not holds_lock(device.name, root), device.bus == "usb", _order(device)))
    for device in usable:
        before = _opened_with.get(device.name) if holds_lock(device.name, root) else None
        try:
            return device, lock_device(device.name, root), before
        except DeviceLocked as error:
            reasons.append(f"{device.name}: {describe_process(error.pid, root)} has it")
    if reasons:
        raise EdgeTpuUnavailable("; ".join(reasons))
    raise EdgeTpuUnavailable(explain_failure(ValueError(), wanted, ordered))


def _order(device: Device) -> int:
    return (DeviceState.READY, DeviceState.NO_FIRMWARE, DeviceState.THROTTLED).index(device.state)


def _load(runtime: Runtime, options: dict[str, str], lock: DeviceLock) -> Any:
    try:
        delegate = runtime.load_delegate(options)
    except (OSError, ValueError):
        lock.release()
        raise
    return _locked_until_destroyed(delegate, lock)


def _locked_until_destroyed(delegate: Any, lock: DeviceLock) -> Any:
    """Let the lock go right after the delegate has closed the device, whoever lets the delegate go.

    An interpreter holds its delegates, and a traceback may hold the interpreter. A weak reference will not do: the
    garbage collector calls back before it finalizes.
    """
    kind: Any = type(delegate)

    def destroy(self: Any) -> None:
        kind.__del__(self)
        lock.release()

    delegate.__class__ = type(kind.__name__, (kind,), {"__del__": destroy})
    return delegate


def _remarks(device: Device) -> Iterator[str]:
    if slow := slow_link(device):
        yield f"{device.name}: {slow}"
    if device.state is DeviceState.THROTTLED:
        yield f"{device.name} is at {device.temperature:.0f} °C: {device.detail}"
