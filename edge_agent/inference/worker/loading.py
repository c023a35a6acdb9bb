"""Builds a model that the agent asks for, and looks whether it meets the terms, beside the one in use."""

import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_agent.inference.evaluation import evaluate
from edge_agent.inference.golden import GoldenError, read_golden
from edge_agent.inference.interpreter.model import LoadedModel, build
from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import Load, ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import Runtime
from edge_agent.records import LoadReport, Sample


def load_model(
    runtime: Runtime, load: Load, options: ModelOptions, last: Sample | None, *, progress: Reporter, root: Path
) -> tuple[LoadedModel | None, LoadReport]:
    """Return the model, warmed up with the last sample seen, or None; and how it went."""
    start = time.monotonic()
    progress.begin(Stage.LOAD)
    try:
        model = build(runtime, load.model, options, last, avoid_edgetpu=load.avoid_edgetpu, root=root)
    except ModelRefused as refused:
        # It is not told from here: the exception keeps the refused model, and with it the device.
        return None, LoadReport(
            accepted=False, reason=str(refused), permanent=refused.permanent, about_device=refused.about_device
        )
    report = LoadReport(
        accepted=True,
        accelerator=model.accelerator,
        degraded=model.degraded,
        device=model.device,
        remarks=(*model.remarks, *_remarks(model, load)),
        about_device=model.device_failed,
        detail=f"input {model.input}, {model.task}, built in {(time.monotonic() - start) * 1000:.0f} ms by {runtime}",
    )
    if load.terms.golden:
        report = _examined(model, load, report, progress)
    if report.accepted:
        return model, report
    progress.begin(Stage.LOAD)
    model.close()
    return None, report


def _remarks(model: LoadedModel, load: Load) -> Iterator[str]:
    if load.role == "shadow" and load.share < 1.0 and model.has_state:
        yield f"it has a state, and sees only {load.share:.3g} of the samples: that it agrees or not says little"


def _examined(model: LoadedModel, load: Load, report: LoadReport, progress: Reporter) -> LoadReport:
    """Run the golden samples, which are not kept; returns the report with what they came to."""
    try:
        golden = read_golden(load.terms.golden)
        figures = evaluate(model, golden, load.terms, on_sample=lambda: progress.begin(Stage.GOLDEN))
    except GoldenError as error:
        return _refused(model, load, f"golden samples: {error}")
    except RuntimeError as error:
        reason = f"golden samples: the runtime cannot run the model: {' '.join(str(error).split())[:300]}"
        if model.accelerator == "edgetpu":
            return LoadReport(accepted=False, reason=reason, about_device=True)
        return _refused(model, load, reason)
    if reason := figures.refusal(load.terms):
        return _refused(model, load, reason)
    return msgspec.structs.replace(
        report, agreement=figures.agreement, accuracy=figures.accuracy, latency_ms=figures.latency_ms
    )


def _refused(model: LoadedModel, load: Load, reason: str) -> LoadReport:
    if model.path != load.model.path and model.degraded is not None:
        # This is not the file that was asked for: another time there may be an Edge TPU.
        return LoadReport(accepted=False, reason=f"its twin for the CPU: {reason}")
    return LoadReport(accepted=False, reason=reason, permanent=True)
