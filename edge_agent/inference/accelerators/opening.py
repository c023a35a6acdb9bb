"""Opens the Edge TPU for a model, or says why the CPU has to do."""

from pathlib import Path
from typing import Any

from edge_agent.inference.accelerators.devices import explain_failure, is_edgetpu_model, list_devices
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtimes import Runtime
from edge_agent.records import Accelerator, ModelFile


class Opened:
    """What a model is to run on. `path` is the file to build: the compiled model, or its CPU twin.

    `delegates` go to the runtime, `device` is the stable name of the Edge TPU, `degraded` is why the model runs on the
    CPU although an Edge TPU was to be expected, `remarks` is what an admin should know although it works.
    """

    def __init__(
        self,
        path: str,
        *,
        delegates: list[Any] | None = None,
        device: str | None = None,
        degraded: str | None = None,
        remarks: tuple[str, ...] = (),
    ) -> None:
        self.path = path
        self.delegates = delegates or []
        self.device = device
        self.degraded = degraded
        self.remarks = remarks

    @property
    def accelerator(self) -> Accelerator:
        """Where the model runs."""
        return "edgetpu" if self.delegates else "cpu"

    def close(self) -> None:
        """Give the device up. The interpreter has to be gone before."""
        self.delegates.clear()


def open_accelerator(
    runtime: Runtime, model: ModelFile, options: ModelOptions, *, avoid: str = "", root: Path = Path("/")
) -> Opened:
    """Open what the model is to run on. Raises ModelRefused.

    `avoid` says why the Edge TPU must not be touched now, or is empty. `root` is where /sys and /dev are looked for.
    """
    if not is_edgetpu_model(model.path):
        return Opened(model.path, degraded=_plain_model(options, root))
    if options.accelerator == "cpu":
        raise ModelRefused(
            "it is compiled for the Edge TPU, but [inference].accelerator is 'cpu'; "
            "publish the model as it was before the Edge TPU compiler",
            permanent=False,
        )
    if avoid:
        raise ModelRefused(f"it needs an Edge TPU, and {avoid}", permanent=False)
    try:
        delegate = runtime.load_delegate({"device": options.device} if options.device else {})
    except (OSError, ValueError) as error:
        reason = explain_failure(error, options.device, list_devices(root))
        raise ModelRefused(f"it needs an Edge TPU, and {reason}", permanent=False) from error
    return Opened(model.path, delegates=[delegate])


def _plain_model(options: ModelOptions, root: Path) -> str | None:
    not_compiled = "the model is not compiled for the Edge TPU (edgetpu_compiler)"
    if options.accelerator == "edgetpu":
        raise ModelRefused(f"{not_compiled}, but [inference].accelerator is 'edgetpu'", permanent=False)
    return not_compiled if options.accelerator == "auto" and list_devices(root) else None
