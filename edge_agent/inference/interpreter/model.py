"""A model ready to run: interpreter, delegate, input, state and output, built and warmed up."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.accelerators.devices import CUSTOM_OP, GET_LIBRARY, is_edgetpu_model, unresolved_op
from edge_agent.inference.accelerators.opening import Opened, open_accelerator
from edge_agent.inference.interpreter.inputs import InputMismatch, ModelInput, Prepared
from edge_agent.inference.interpreter.labels import LabelsError
from edge_agent.inference.interpreter.metadata import Description, describe
from edge_agent.inference.interpreter.recurrent import Roles, State, find_roles
from edge_agent.inference.interpreter.tensors import TensorInfo
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import Reporter, Stage
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.refusal import ModelRefused
from edge_agent.inference.runtime.runtimes import Interpreter, Runtime, RuntimeUnavailable, find_runtime
from edge_agent.inference.tasks.base import Answer, OutputMismatch, Task, TaskMismatch
from edge_agent.inference.tasks.choice import make_task
from edge_agent.records import ModelFile, Result, Sample

# Models for floating-point images mostly take -1 to 1.
_IMAGE_MEAN = _IMAGE_STD = 127.5


class Examination(msgspec.Struct, frozen=True):
    """What a model put out for one sample.

    `outputs` are the real numbers, float32, of the model's outputs in their order, without those that are its state.
    `answer` is what the task says of them.
    """

    outputs: tuple[npt.NDArray[np.float32], ...]
    answer: Answer
    prepared: Prepared
    invoke_ns: int


class Opinion(msgspec.Struct, frozen=True):
    """What a model says of a sample, without its result being used. `clipped` is a share, as in `Result`."""

    answer: Answer
    clipped: float
    invoke_ns: int


class LoadedModel:
    """One model with its interpreter. Owned by one thread at a time. `path` is the file that it was built of.

    `outputs` are its outputs in their order, without those that are its state.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        opened: Opened,
        model_input: ModelInput,
        task: Task,
        options: ModelOptions,
        *,
        outputs: Sequence[TensorInfo],
        state: State | None = None,
        remarks: Sequence[str] = (),
    ) -> None:
        self.path = opened.path
        self.input = model_input
        self.outputs = tuple(outputs)
        self.task = task
        self._interpreter = interpreter
        self._opened = opened
        self._set_tensor, self._get_tensor = interpreter.set_tensor, interpreter.get_tensor
        self._invoke = interpreter.invoke
        self._state = state
        self._task_outputs = task.outputs
        self._raw_data = options.raw_data
        self.accelerator = opened.accelerator
        self.degraded = opened.degraded
        self.device = opened.device
        self.device_failed = opened.device_failed
        self.remarks = (*opened.remarks, *remarks)

    def warm_up(self, sample: Sample | None) -> None:
        """Run the model once: on a real sample where there is one, so that a model that does not fit is found.

        Raises InputMismatch, OutputMismatch, or the runtime's RuntimeError.
        """
        prepared = self.input.empty() if sample is None else self.input.prepare(sample.data, sample.size)
        self._feed(prepared)
        self._invoke()
        self._read(prepared)
        self.reset_state()

    @property
    def has_state(self) -> bool:
        """Whether what it says depends on the samples before."""
        return self._state is not None

    def reset_state(self) -> None:
        """Forget the samples so far, for a model that remembers them: what comes next is no continuation."""
        if self._state is not None:
            self._state.reset()

    def run(self, sample: Sample, progress: Reporter, latencies: StageLatencies) -> Result:
        """Return what the model says of the sample.

        Raises InputMismatch, OutputMismatch, or the runtime's RuntimeError.
        """
        begun = progress.begin(Stage.PREPROCESS)
        prepared = self.input.prepare(sample.data, sample.size)
        self._feed(prepared)
        progress.step(Stage.INVOKE)
        ready = time.monotonic_ns()
        self._invoke()
        invoked = time.monotonic_ns()
        progress.step(Stage.DECODE)
        answer = self._read(prepared)
        latencies.add(sample.captured_ns, begun, ready, invoked, time.monotonic_ns())
        return Result(
            sample.captured_ns,
            invoked - ready,
            answer.scores,
            prepared.clipped,
            first_values(sample.data, self._raw_data) if self._raw_data else None,
            sample.position,
            answer.verdict,
            answer.value,
            answer.outputs,
        )

    def examine(self, data: npt.NDArray[Any]) -> Examination:
        """Run the model on the data of a sample, as the first of a series. Raises what `run` does."""
        self.reset_state()
        prepared = self.input.prepare(data)
        taken = self._timed(prepared)
        outputs = tuple(tensor.real(self._get_tensor(tensor.index)).astype(np.float32) for tensor in self.outputs)
        answer = self._read(prepared)
        self.reset_state()
        return Examination(outputs, answer, prepared, taken)

    def ask(self, sample: Sample) -> Opinion:
        """Return what the model says of the sample, and leave no trace of it elsewhere. Raises what `run` does."""
        prepared = self.input.prepare(sample.data, sample.size)
        taken = self._timed(prepared)
        return Opinion(self._read(prepared), prepared.clipped, taken)

    def interpret(self, outputs: Sequence[npt.NDArray[Any]], prepared: Prepared) -> Answer:
        """Return what the task would say if these were the outputs, as `examine` gives them. Raises OutputMismatch."""
        tensors = {tensor.index: tensor.raw(real) for tensor, real in zip(self.outputs, outputs, strict=True)}
        return self.task.decode(tuple(map(tensors.__getitem__, self._task_outputs)), prepared)

    def _timed(self, prepared: Prepared) -> int:
        self._feed(prepared)
        begun = time.monotonic_ns()
        self._invoke()
        return time.monotonic_ns() - begun

    def _feed(self, prepared: Prepared) -> None:
        self._set_tensor(self.input.index, prepared.tensor)
        if self._state is not None:
            self._state.feed(self._interpreter)

    def _read(self, prepared: Prepared) -> Answer:
        if self._state is not None:
            self._state.keep(self._interpreter)
        return self.task.decode(tuple(map(self._get_tensor, self._task_outputs)), prepared)

    def close(self) -> None:
        """Give up the interpreter first and the delegate second: the other order crashes libedgetpu."""
        del self._set_tensor, self._get_tensor, self._invoke
        del self._interpreter
        self._opened.close()


def first_values(data: npt.NDArray[Any], count: int) -> list[float]:
    """Return the first values of a sample, for its event."""
    # JSON knows no NaN: what is missing goes out as zero, as it went into the model.
    first = np.nan_to_num(data.reshape(-1)[:count].astype(np.float64))
    return [round(value, 6) for value in first.tolist()]


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
    for. Where the Edge TPU fails and the settings leave the choice, the model's twin for the CPU is built.
    """
    try:
        opened = open_accelerator(runtime, model, options, avoid=avoid_edgetpu, root=root)
    except RuntimeUnavailable as error:
        raise ModelRefused(str(error), permanent=False) from error
    except OSError as error:
        raise ModelRefused(f"cannot be read: {error}", permanent=False) from error
    built = _build_on(runtime, model, options, last, opened)
    if isinstance(built, _DeviceFailed) and options.accelerator == "auto" and model.cpu_path is not None:
        reason = f"the Edge TPU failed: {built}"
        opened = Opened(model.cpu_path, degraded=reason, remarks=opened.remarks, device_failed=True)
        built = _build_on(runtime, model, options, last, opened)
    if isinstance(built, ModelRefused):
        raise built
    return built


class _DeviceFailed(ModelRefused):
    """The model was not built because the Edge TPU, or its driver, failed."""


def _build_on(
    runtime: Runtime, model: ModelFile, options: ModelOptions, last: Sample | None, opened: Opened
) -> LoadedModel | ModelRefused:
    """Build the model, or close the device and return why not.

    The reason is returned and not raised: a traceback would keep the interpreter alive, which has to be gone before
    the device is closed.
    """
    built = _try(runtime, model, options, last, opened)
    if isinstance(built, ModelRefused):
        opened.close()
    return built


def _try(
    runtime: Runtime, model: ModelFile, options: ModelOptions, last: Sample | None, opened: Opened
) -> LoadedModel | ModelRefused:
    try:
        return _assemble(runtime, model, options, last, opened)
    except (ValueError, RuntimeError, OSError) as error:
        return _refusal(error, model, options, opened)


def _refusal(error: Exception, model: ModelFile, options: ModelOptions, opened: Opened) -> ModelRefused:
    reason = _in_words(error)
    if isinstance(error, TaskMismatch):
        reason = f"{reason}; [inference].task is '{options.task}'"
    if opened.path != model.path:
        # This is not the file that was asked for: another time there may be an Edge TPU.
        return ModelRefused(f"its twin for the CPU: {reason}", permanent=False)
    if opened.accelerator == "edgetpu" and isinstance(error, RuntimeError):
        missing = unresolved_op(str(error))
        if missing == CUSTOM_OP:
            reason = f"the Edge TPU's library does not get along with the runtime ({reason}); {GET_LIBRARY}"
        if missing in {None, CUSTOM_OP}:
            return _DeviceFailed(reason, permanent=False, about_device=True)
    return ModelRefused(reason, permanent=_is_lasting(error, model))


def _is_lasting(error: Exception, model: ModelFile) -> bool:
    if isinstance(error, LabelsError):
        # Those of the settings are mended there, as is the task.
        return model.labels is not None
    if isinstance(error, RuntimeError):
        # What is compiled for the Edge TPU may meet another driver the next time.
        return not (isinstance(error, RuntimeUnavailable) or is_edgetpu_model(model.path))
    return not isinstance(error, TaskMismatch | OSError)


def _assemble(
    runtime: Runtime, model: ModelFile, options: ModelOptions, last: Sample | None, opened: Opened
) -> LoadedModel:
    interpreter = runtime.interpreter(opened.path, opened.delegates)
    interpreter.allocate_tensors()
    file = describe(opened.path)
    roles = find_roles(
        _tensors(interpreter.get_input_details(), file), _tensors(interpreter.get_output_details(), file)
    )
    model_input = _make_input(roles.data, options, file)
    task = _make_task(options, roles, model.labels, file)
    state = State(roles.states) if roles.states else None
    loaded = LoadedModel(
        interpreter, opened, model_input, task, options, outputs=roles.outputs, state=state, remarks=file.remarks
    )
    loaded.warm_up(last)
    return loaded


def _tensors(details: Sequence[dict[str, Any]], file: Description) -> list[TensorInfo]:
    return [
        TensorInfo.of(each, file.signature.get(each["index"], ""), file.titles.get(each["index"], ""))
        for each in details
    ]


def _make_input(tensor: TensorInfo, options: ModelOptions, file: Description) -> ModelInput:
    mean = _channels(options.image_mean, file.mean, _IMAGE_MEAN, tensor, file)
    std = _channels(options.image_std, file.std, _IMAGE_STD, tensor, file)
    return ModelInput(tensor, resize=options.resize, fit=options.fit, mean=mean, std=std)


def _channels(
    setting: float | None, packed: list[float], default: float, tensor: TensorInfo, file: Description
) -> list[float]:
    if setting is not None:
        return [setting]
    if packed and len(packed) not in {1, *tensor.shape[-1:]}:
        file.remarks.append(f"the normalisation in the model is left out: {len(packed)} values for {tensor}")
        return [default]
    return packed or [default]


def _make_task(options: ModelOptions, roles: Roles, release: list[str] | None, file: Description) -> Task:
    # A release brings the labels of its own classes; those of the settings are for releases without any.
    labels = release if release is not None else options.labels
    if labels is None and file.labels is not None:
        try:
            return make_task(options, roles.data, roles.outputs, file.labels)
        except LabelsError as error:
            file.remarks.append(f"the labels packed in the model are left out: {error}")
    return make_task(options, roles.data, roles.outputs, labels)


def _in_words(error: Exception) -> str:
    if isinstance(error, InputMismatch | OutputMismatch | LabelsError | RuntimeUnavailable):
        return str(error)
    if isinstance(error, OSError):
        return f"cannot be read: {error}"
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
