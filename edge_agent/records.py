"""What flows through the agent: samples into the model, results out of it, events to the cloud.

A `Sample` never leaves the worker process. A `Result` crosses the socket to the agent. An `Event` is what the
agent stores and sends: one JSON object, one Pub/Sub message, one BigQuery row. Its JSON Schema is generated from
the classes below (`edge_agent.telemetry.schema`).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from edge_agent.health import DeviceHealth, QueueHealth

Accelerator = Literal["edgetpu", "cpu"]
TimeSource = Literal["synchronized", "restored", "unverified"]


class Sample(msgspec.Struct, frozen=True):
    """One reading of a source.

    `data` is a NumPy array: uint8 of shape (height, width, 3) for an image, otherwise float32 of any shape.
    `captured_ns` is CLOCK_MONOTONIC in nanoseconds, which all processes of a boot share.
    `position` tells the source where to go on after this sample, should the worker be started again. `first` is set by
    the worker: the first sample since the source was opened. `size` is width and height of the picture that `data` was
    scaled from, or None: it is as large as `data`.
    """

    data: Any
    captured_ns: int
    position: str | None = None
    size: tuple[int, int] | None = None
    first: bool = False


class Box(msgspec.Struct, frozen=True):
    """Where an object is in the picture that the source gave: 0..1 of its width and height, from the upper left."""

    left: float
    top: float
    right: float
    bottom: float


class PixelBox(msgspec.Struct, frozen=True):
    """The same in pixels of that picture; `right` and `bottom` are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int


class Score(msgspec.Struct, frozen=True, omit_defaults=True):
    """One class, object or value, and how sure the model is of it."""

    label: Annotated[str, Meta(description="name of the class, or its number where no labels are known")]
    score: Annotated[float, Meta(description="dequantised output of the model: a score, or the value of a regression")]
    index: Annotated[int, Meta(ge=0, description="row of the class in the model's output")]
    box: Annotated[Box | UnsetType, Meta(description="where the object is, as shares of the picture")] = UNSET
    pixels: Annotated[PixelBox | UnsetType, Meta(description="where the object is, in pixels of the picture")] = UNSET


class Tensor(msgspec.Struct, frozen=True, omit_defaults=True):
    """One output of a model as it is, dequantised."""

    name: str
    shape: list[int]
    # Neither JSON nor a repeated field of BigQuery has room for one that is none.
    values: Annotated[list[float], Meta(description="row by row; 0 for what is no finite number")]
    missing: Annotated[
        list[int] | UnsetType, Meta(description="places in values, from 0, of what is no finite number")
    ] = UNSET


class Chosen(msgspec.Struct, frozen=True, array_like=True):
    """Why the input of a sample is kept, and where its picture will be; see `edge_agent.settings.raw_data`.

    `rule` is the setting that chose it, `url` None if no picture is kept.
    """

    rule: str
    url: str | None = None


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What the model said of one sample. Scores are sorted, best first, and empty when nothing was found.

    `verdict` is the prediction where it is not the label of the best score. `value` is the number that a regression or
    an anomaly score comes to, which is no confidence. `outputs` are the tensors of the task "raw". `chosen` is set for
    a sample whose input is kept, so its event has to go out.
    """

    captured_ns: int
    inference_ns: int
    scores: list[Score]
    clipped: float
    raw_data: list[float] | None = None
    position: str | None = None
    verdict: str | None = None
    value: float | None = None
    outputs: list[Tensor] | None = None
    chosen: Chosen | None = None

    @property
    def prediction(self) -> str | UnsetType:
        """What an event says of it in a word; UNSET where it says nothing."""
        if self.verdict is not None:
            return self.verdict
        # The label of a value names it; only limits say what it means.
        return self.scores[0].label if self.scores and self.value is None else UNSET


class _EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    event_id: Annotated[
        str,
        Meta(description="DEVICE/EPOCH/NUMBER: unique, and in order per device; a hole in the numbers is a loss"),
    ]
    device_id: str
    timestamp: Annotated[int, Meta(description="milliseconds since 1970-01-01 UTC, of the capture")]
    time_source: Annotated[
        TimeSource,
        Meta(
            description="synchronized: the clock was known to be set; restored: it was not yet, and timestamp was "
            "corrected when it was; unverified: nobody can tell"
        ),
    ]
    boot_id: Annotated[
        str | UnsetType,
        Meta(
            description="the boot that monotonic_ms counts from; with unverified times, and what is told of the clock"
        ),
    ] = UNSET
    monotonic_ms: Annotated[
        int | UnsetType,
        Meta(description="milliseconds from that boot to timestamp, which no setting of the clock moves"),
    ] = UNSET
    device_labels: dict[str, str] | UnsetType = UNSET


_Results = Annotated[list[Score], Meta(description="classes or objects, best first")]
_Unpublished = Annotated[
    int, Meta(ge=1, description="results since the one published before, which [telemetry].publish has left out")
]
_Changes = Annotated[
    int, Meta(ge=2, description="how often the prediction has changed since the result published before: it flickers")
]
_Clipped = Annotated[float, Meta(ge=0, le=1, description="share of input values outside the model's range")]


_TrialSamples = Annotated[int, Meta(ge=0, description="results of the trial, or samples that the shadow ran on")]
_Agreement = Annotated[
    float,
    Meta(
        ge=0,
        le=1,
        description="share of golden samples with the outputs expected; of a shadow, share of samples it agreed on",
    ),
]
_TrialFailed = Annotated[int, Meta(ge=0, description="samples that it could not work on")]
_GoldenAccuracy = Annotated[
    float, Meta(ge=0, le=1, description="share of the golden samples with a label that were told right on this device")
]
_TrialLatency = Annotated[
    float, Meta(ge=0, description="95 % of its runs took no longer: in the trial, before it those on golden samples")
]


class _ModelOutput(_EventBase, frozen=True, kw_only=True, omit_defaults=True):
    prediction: Annotated[
        str | UnsetType,
        Meta(description="label of the best class, or what limits say of a value; absent for nothing"),
    ] = UNSET
    confidence: Annotated[float | UnsetType, Meta(description="score of the best class; a value has none")] = UNSET
    value: Annotated[float | UnsetType, Meta(description="of a regression, or an anomaly score")] = UNSET
    outputs: Annotated[list[Tensor] | UnsetType, Meta(description="what the model put out, for the task raw")] = UNSET
    degraded: Annotated[str | UnsetType, Meta(description="why it did not run as asked")] = UNSET
    raw_data: Annotated[list[float] | UnsetType, Meta(description="the first values of the input")] = UNSET
    raw_data_url: Annotated[
        str | UnsetType, Meta(description="where the picture is, as a JPEG file, once it has been uploaded")
    ] = UNSET
    raw_data_rule: Annotated[
        str | UnsetType, Meta(description="setting of [telemetry.raw_data] by which the input was chosen")
    ] = UNSET


class ResultEvent(_ModelOutput, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """What the model said of one sample."""

    results: _Results
    inference_time_ms: float
    model_name: str
    model_version: str
    accelerator: Accelerator
    clipped: _Clipped
    unpublished: _Unpublished | UnsetType = UNSET
    changes: _Changes | UnsetType = UNSET


class Quantiles(msgspec.Struct, frozen=True):
    """How long the model took. p95_ms: 95 % of the results took no longer; within 4 %."""

    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class PredictionSummary(msgspec.Struct, frozen=True, omit_defaults=True):
    """The results with one prediction."""

    label: Annotated[str, Meta(description="the prediction: name of a class, or what limits say of a value")]
    count: Annotated[int, Meta(ge=1, description="results with this prediction")]
    inference_time: Quantiles
    confidence: Annotated[float | UnsetType, Meta(description="mean score; a value has none")] = UNSET


class ObjectSummary(msgspec.Struct, frozen=True):
    """The objects of one class, also those that were not the best of their picture."""

    label: str
    count: Annotated[int, Meta(ge=1, description="objects, over all results")]
    results: Annotated[int, Meta(ge=1, description="results with at least one")]
    confidence: Annotated[float, Meta(description="mean score of the objects")]


class ValueSummary(msgspec.Struct, frozen=True):
    """One value of a regression, or the anomaly score."""

    label: str
    mean: float
    min: float
    max: float


class SummaryEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="summary"):
    """All results of one model in a window of time. `timestamp` is the end of the window."""

    window_ms: Annotated[int, Meta(ge=0, description="length of the window: it began so long before timestamp")]
    count: Annotated[int, Meta(ge=1, description="results")]
    inference_time: Quantiles
    model_name: str
    model_version: str
    accelerator: Accelerator
    clipped: _Clipped
    degraded: Annotated[str | UnsetType, Meta(description="why it did not run as asked")] = UNSET
    predictions: Annotated[
        list[PredictionSummary] | UnsetType, Meta(description="most frequent first; a result may have none")
    ] = UNSET
    objects: Annotated[list[ObjectSummary] | UnsetType, Meta(description="for the task detection")] = UNSET
    values: Annotated[list[ValueSummary] | UnsetType, Meta(description="for regression and anomaly")] = UNSET


class AlarmEvent(_ModelOutput, frozen=True, kw_only=True, omit_defaults=True, tag="alarm"):
    """A rule of [[actions]] fired on a result, or something about the device needs a person: then without a result."""

    action: Annotated[str, Meta(description="name of the rule, or the component that needs a person: accelerator")]
    detail: Annotated[str | UnsetType, Meta(description="what a person has to do")] = UNSET
    results: _Results | UnsetType = UNSET
    inference_time_ms: float | UnsetType = UNSET
    model_name: str | UnsetType = UNSET
    model_version: str | UnsetType = UNSET
    accelerator: Accelerator | UnsetType = UNSET
    clipped: _Clipped | UnsetType = UNSET


class ModelEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="model"):
    """A model version was taken into use, refused, given up again, or runs beside the one in use."""

    model_name: str
    model_version: str
    state: Annotated[
        Literal["trial", "committed", "rejected", "rolled_back", "shadow"],
        Meta(
            description="trial: in use, and watched; committed: it stays; rejected: refused before it was in use; "
            "rolled_back: previous_version is in use again; shadow: what it did beside the one in use"
        ),
    ]
    accelerator: Accelerator | UnsetType = UNSET
    previous_version: str | UnsetType = UNSET
    accuracy: Annotated[float | UnsetType, Meta(description="as the publisher stated it")] = UNSET
    reason: Annotated[str | UnsetType, Meta(description="why it was refused, given up or ended")] = UNSET
    samples: _TrialSamples | UnsetType = UNSET
    agreement: _Agreement | UnsetType = UNSET
    golden_accuracy: _GoldenAccuracy | UnsetType = UNSET
    failed: _TrialFailed | UnsetType = UNSET
    clipped: _Clipped | UnsetType = UNSET
    latency_ms: _TrialLatency | UnsetType = UNSET


class LossEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="loss"):
    """Events or samples that were given up, counted by cause."""

    cause: Annotated[str, Meta(description="for instance queue_full, rejected, damaged, source_overrun")]
    count: Annotated[int, Meta(ge=1)]
    first_timestamp: Annotated[int | UnsetType, Meta(description="of the oldest one, ms since the epoch")] = UNSET
    last_timestamp: Annotated[int | UnsetType, Meta(description="of the newest one, ms since the epoch")] = UNSET
    detail: str | UnsetType = UNSET


class Latency(msgspec.Struct, frozen=True):
    """How long a stage took, over all samples since the previous health event. Quantiles are within 4 %."""

    stage: Annotated[
        str,
        Meta(
            description="capture: from the capture until the model's thread takes the sample; preprocess, invoke, "
            "decode; action: from the capture until the command of a rule runs"
        ),
    ]
    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Counters(msgspec.Struct, frozen=True):
    """What has happened since the agent's start."""

    samples: int = 0
    dropped: Annotated[int, Meta(description="samples of a live source that the model had no time for")] = 0
    failed: Annotated[int, Meta(description="samples that could not be worked on")] = 0
    skipped: Annotated[int, Meta(description="samples that the source itself could not use")] = 0
    set_aside: Annotated[int, Meta(description="samples that killed the worker twice and are left out")] = 0
    clipped: Annotated[int, Meta(description="samples with values outside the model's range")] = 0
    worker_deaths: int = 0
    device_failures: Annotated[int, Meta(description="deaths and failures put down to the Edge TPU")] = 0
    device_resets: Annotated[int, Meta(description="USB resets of the Edge TPU")] = 0
    fallbacks: Annotated[int, Meta(description="times that the CPU took over from the Edge TPU")] = 0
    returns: Annotated[int, Meta(description="times that the Edge TPU took over again")] = 0
    actions_failed: int = 0
    actions_skipped: int = 0


class HealthEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="health"):
    """A change of the agent's own state that somebody should know of; or, every interval, how it all goes."""

    component: Annotated[
        str,
        Meta(
            description="for instance worker, source, model, accelerator, action, power, temperature, disk; inference "
            "has the figures"
        ),
    ]
    state: str
    detail: str | UnsetType = UNSET
    exit_status: Annotated[str | UnsetType, Meta(description="how a worker ended: killed by SIGABRT")] = UNSET
    stage: Annotated[str | UnsetType, Meta(description="what it was doing last: running the model")] = UNSET
    latencies: list[Latency] | UnsetType = UNSET
    counters: Counters | UnsetType = UNSET
    queue: QueueHealth | UnsetType = UNSET
    device: DeviceHealth | UnsetType = UNSET
    agent_version: str | UnsetType = UNSET
    model_name: Annotated[str | UnsetType, Meta(description="of the model in use")] = UNSET
    model_version: str | UnsetType = UNSET
    accelerator: Annotated[Accelerator | UnsetType, Meta(description="what runs it")] = UNSET
    accelerator_device: Annotated[str | UnsetType, Meta(description="the Edge TPU in use: usb:2-1.3")] = UNSET
    degraded: Annotated[str | UnsetType, Meta(description="why it does not run as asked")] = UNSET


Event = ResultEvent | SummaryEvent | AlarmEvent | ModelEvent | LossEvent | HealthEvent


class ModelFile(msgspec.Struct, frozen=True):
    """What the worker is asked to run: a file that nobody changes any more, and what is known of it.

    `cpu_path` is the same model as it was before the Edge TPU compiler, if there is one.
    """

    path: str
    name: str
    version: str
    labels: list[str] | None = None
    cpu_path: str | None = None


class Terms(msgspec.Struct, frozen=True):
    """On what terms the worker takes a model into use.

    `golden` is the path of a file of golden samples, or empty; for the four limits see
    `edge_agent.models.manifest.Acceptance`. `trial`: the model before it stays ready, and takes over again at once
    where the new one fails on a sample that the one before can work on.
    """

    golden: str = ""
    tolerance: float = 0.1
    min_agreement: float = 1.0
    min_accuracy: float | None = None
    max_latency_ms: float | None = None
    trial: bool = False


class LoadReport(msgspec.Struct, frozen=True):
    """How loading a model went. `reason` is for a person and is set whenever `accepted` is false.

    `permanent` tells a file that can never work (it is no model, or needs other inputs) from bad luck that a
    later try may not have (no worker, no device). `device` is the stable name of the Edge TPU in use, `remarks` are
    what an admin should know although the model runs, such as an option that has no effect. `about_device`: the reason
    lies with the Edge TPU; of an accepted model, why it runs on the CPU does: the Edge TPU was opened and could not run
    it. `agreement`, `accuracy` and `latency_ms` are what the golden samples came to, in the terms' sense; None where
    there were none, or no labels.
    """

    accepted: bool
    reason: str = ""
    permanent: bool = False
    accelerator: Accelerator = "cpu"
    degraded: str | None = None
    device: str | None = None
    remarks: tuple[str, ...] = ()
    about_device: bool = False
    detail: str = ""
    agreement: float | None = None
    accuracy: float | None = None
    latency_ms: float | None = None
