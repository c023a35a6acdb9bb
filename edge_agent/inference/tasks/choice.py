"""Makes the task that the settings name, for one model."""

from collections.abc import Sequence

from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.tasks.anomaly import Anomaly
from edge_agent.inference.tasks.base import Task
from edge_agent.inference.tasks.classification import Classification
from edge_agent.inference.tasks.detection import Detection
from edge_agent.inference.tasks.raw import Raw
from edge_agent.inference.tasks.regression import Limits, Regression
from edge_agent.settings.tasks import OBJECT_THRESHOLD


def make_task(
    options: ModelOptions,
    model_input: TensorInfo,
    outputs: Sequence[TensorInfo],
    labels: Sequence[str] | None,
) -> Task:
    """Return what reads these outputs. Raises TaskMismatch, OutputMismatch or LabelsError."""
    threshold, limits = options.threshold, Limits(options.low, options.high)
    match options.task:
        case "classification":
            return Classification(outputs, labels, options.top_k, threshold or 0.0)
        case "detection":
            return Detection(
                outputs,
                model_input,
                labels,
                top_k=options.top_k,
                threshold=OBJECT_THRESHOLD if threshold is None else threshold,
                iou_threshold=options.iou_threshold,
            )
        case "regression":
            return Regression(outputs, labels, limits)
        case "anomaly":
            return Anomaly(outputs, model_input, labels, limits)
        case "raw":
            return Raw(outputs)
        case unknown:
            raise ValueError(f"there is no task '{unknown}'")
