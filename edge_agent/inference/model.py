"""A model ready to run: interpreter, delegate, input and output, built and warmed up."""

import time
from pathlib import Path

import numpy as np

from edge_agent.inference.accelerators.devices import is_edgetpu_model
from edge_agent.inference.accelerators.opening import Opened, open_accelerator
from edge_agent.inference.inputs import InputMismatch, ModelInput
from edge_agent.inference.labels import LabelsError
from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtimes import Interpreter, Runtime, RuntimeUnavailable, find_runtime
from edge_agent.inference.tasks.classification import Classification, OutputMismatch
from edge_agent.records import ModelFile, Result, Sample


class LoadedModel:
    """One model with its interpreter. Owned by one thread at a time."""

    def __init__(
        self,
        interpreter: Interpreter,
        opened: Opened,
        model_input: ModelInput,
        task: Classification,
        options: ModelOptions,
    ) -> None:
        self.input = model_input
        self.task = task
        self._interpreter = interpreter
        self._opened = opened
        self._invoke = interpreter.invoke
        self._raw_data = options.raw_data
        self.accelerator = opened.accelerator
        self.degraded = opened.degraded
        self.device = opened.device
        self.remarks = opened.remarks

    def warm_up(self, sample: Sample | None) -> None:
        """Run the model once: on a real sample where there is one, so that a model that does not fit is found.

        Raises InputMismatch, OutputMismatch, or the runtime's RuntimeError.
        """
        tensor = self.input.empty() if sample is None else self.input.prepare(sample.data)[0]
        self._interpreter.set_tensor(self.input.index, tensor)
        self._invoke()
        self.task.decode(self._interpreter.get_tensor(self.task.index))

    def run(self, sample: Sample, progress: Reporter) -> Result:
        """Return what the model says of the sample.

        Raises InputMismatch, OutputMismatch, or the runtime's RuntimeError.
        """
        progress.begin(Stage.PREPROCESS)
        tensor, clipped = self.input.prepare(sample.data)
        self._interpreter.set_tensor(self.input.index, tensor)
        progress.step(Stage.INVOKE)
        start = time.perf_counter_ns()
        self._invoke()
        elapsed = time.perf_counter_ns() - start
        progress.step(Stage.DECODE)
        scores = self.task.decode(self._interpreter.get_tensor(self.task.index))
        raw = self._first_values(sample) if self._raw_data else None
        return Result(sample.captured_ns, elapsed, scores, clipped, raw, sample.position)

    def _first_values(self, sample: Sample) -> list[float]:
        # JSON knows no NaN: what is missing goes out as zero, as it went into the model.
        first = np.nan_to_num(sample.data.reshape(-1)[: self._raw_data].astype(np.float64))
        return [round(value, 6) for value in first.tolist()]

    def close(self) -> None:
        """Give up the interpreter first and the delegate second: the other order crashes libedgetpu."""
        del self._invoke
        del self._interpreter
        self._opened.close()


def build(
    runtime: Runtime,
    model: ModelFile,
    options: ModelOptions,
    last: Sample | None,
    *,
    avoid_edgetpu: str = "",
    root: Path = Path("/"),
) -> LoadedModel:
    """Build the model and warm it up with the last sample seen. Raises ModelRefused.

    `avoid_edgetpu` says why the Edge TPU must not be touched now, or is empty. `root` is where /sys and /dev are looked
    for.
    """
    try:
        opened = open_accelerator(runtime, model, options, avoid=avoid_edgetpu, root=root)
        return _build(runtime, model, options, last, opened)
    except RuntimeUnavailable as error:
        raise ModelRefused(str(error), permanent=False) from error
    except ValueError as error:
        # Labels that stand in the settings are mended there; all else is a matter of the file.
        ours = isinstance(error, LabelsError) and model.labels is None
        raise ModelRefused(_in_words(error), permanent=not ours) from error
    except RuntimeError as error:
        # What fails on an Edge TPU may be the fault of the device or its driver, and another time go well.
        raise ModelRefused(_in_words(error), permanent=not is_edgetpu_model(model.path)) from error
    except OSError as error:
        raise ModelRefused(f"cannot be read: {error}", permanent=False) from error


def _build(
    runtime: Runtime, model: ModelFile, options: ModelOptions, last: Sample | None, opened: Opened
) -> LoadedModel:
    interpreter = runtime.interpreter(opened.path, opened.delegates)
    interpreter.allocate_tensors()
    inputs = interpreter.get_input_details()
    if len(inputs) != 1:
        raise InputMismatch(f"the model has {len(inputs)} inputs; only models with one can be fed")
    model_input = ModelInput(inputs[0], resize=options.resize, mean=options.image_mean, std=options.image_std)
    # A release brings the labels of its own classes; those of the settings are for releases without any.
    labels = model.labels if model.labels is not None else options.labels
    task = Classification(interpreter.get_output_details(), labels, options.top_k)
    loaded = LoadedModel(interpreter, opened, model_input, task, options)
    loaded.warm_up(last)
    return loaded


def _in_words(error: Exception) -> str:
    if isinstance(error, InputMismatch | OutputMismatch | LabelsError):
        return str(error)
    text = " ".join(str(error).split())
    if any(words in text for words in ("valid Flatbuffer", "Could not open", "model allocation is null")):
        return "is no TensorFlow Lite model, or is cut short"
    return f"the runtime cannot run it: {text[:300]}"


def try_file(path: str) -> None:
    """Build an interpreter for the file and, unless it needs an Edge TPU, run it once. Raises ModelRefused."""
    try:
        interpreter = find_runtime().interpreter(path)
        if is_edgetpu_model(path):
            return
        interpreter.allocate_tensors()
        interpreter.invoke()
    except RuntimeUnavailable as error:
        raise ModelRefused(str(error), permanent=False) from error
    except (ValueError, RuntimeError) as error:
        raise ModelRefused(_in_words(error), permanent=True) from error
