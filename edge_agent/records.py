"""What flows through the agent: samples into the model, results out of it, events to the cloud.

A `Sample` never leaves the worker process. A `Result` crosses the socket to the agent. An `Event` is what the
agent stores and sends: one JSON object, one Pub/Sub message, one BigQuery row. Its JSON Schema is generated from
the classes below (`edge_agent.telemetry.schema`).
"""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

Accelerator = Literal["edgetpu", "cpu"]
TimeSource = Literal["synchronized", "unverified"]


class Sample(msgspec.Struct, frozen=True):
    """One reading of a source.

    `data` is a NumPy array: uint8 of shape (height, width, 3) for an image, otherwise float32 of any shape.
    `captured_ns` is CLOCK_MONOTONIC in nanoseconds, which all processes of a boot share.
    `position` tells the source where to go on after this sample, should the worker be started again.
    """

    data: Any
    captured_ns: int
    position: str | None = None


class Score(msgspec.Struct, frozen=True):
    """One class and how sure the model is of it."""

    label: Annotated[str, Meta(description="name of the class, or its number where no labels are known")]
    score: Annotated[float, Meta(description="dequantised output of the model for this class")]
    index: Annotated[int, Meta(ge=0, description="row of the class in the model's output")]


class Result(msgspec.Struct, frozen=True, array_like=True):
    """What the model said of one sample. Scores are sorted, best first."""

    captured_ns: int
    inference_ns: int
    scores: list[Score]
    clipped: float
    raw_data: list[float] | None = None
    position: str | None = None


class _EventBase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="kind"):
    event_id: Annotated[
        str,
        Meta(description="DEVICE/EPOCH/NUMBER: unique, and in order per device; a hole in the numbers is a loss"),
    ]
    device_id: str
    timestamp: Annotated[int, Meta(description="milliseconds since 1970-01-01 UTC, of the capture")]
    time_source: Annotated[TimeSource, Meta(description="whether the clock was known to be set by the network")]
    device_labels: dict[str, str] | UnsetType = UNSET


class _ModelOutput(_EventBase, frozen=True, kw_only=True, omit_defaults=True):
    results: Annotated[list[Score], Meta(description="classes, best first")]
    prediction: Annotated[str, Meta(description="label of the best class")]
    confidence: Annotated[float, Meta(description="score of the best class")]
    inference_time_ms: float
    model_name: str
    model_version: str
    accelerator: Accelerator
    clipped: Annotated[float, Meta(ge=0, le=1, description="share of input values outside the model's range")]
    degraded: Annotated[str | UnsetType, Meta(description="why it did not run as asked")] = UNSET
    raw_data: Annotated[list[float] | UnsetType, Meta(description="the first values of the input")] = UNSET


class ResultEvent(_ModelOutput, frozen=True, kw_only=True, omit_defaults=True, tag="result"):
    """What the model said of one sample."""


class AlarmEvent(_ModelOutput, frozen=True, kw_only=True, omit_defaults=True, tag="alarm"):
    """A rule of [[actions]] fired on a result."""

    action: Annotated[str, Meta(description="name of the rule")]


class ModelEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="model"):
    """A model version was taken into use, or refused."""

    model_name: str
    model_version: str
    state: Literal["committed", "rejected"]
    accelerator: Accelerator | UnsetType = UNSET
    previous_version: str | UnsetType = UNSET
    accuracy: Annotated[float | UnsetType, Meta(description="as the publisher stated it")] = UNSET
    reason: Annotated[str | UnsetType, Meta(description="why it was refused")] = UNSET


class LossEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="loss"):
    """Events or samples that were given up, counted by cause."""

    cause: Annotated[str, Meta(description="for instance queue_full, rejected, damaged, source_overrun")]
    count: Annotated[int, Meta(ge=1)]
    first_timestamp: Annotated[int | UnsetType, Meta(description="of the oldest one, ms since the epoch")] = UNSET
    last_timestamp: Annotated[int | UnsetType, Meta(description="of the newest one, ms since the epoch")] = UNSET
    detail: str | UnsetType = UNSET


class HealthEvent(_EventBase, frozen=True, kw_only=True, omit_defaults=True, tag="health"):
    """A change of the agent's own state that somebody should know of."""

    component: Annotated[str, Meta(description="for instance worker, source, queue")]
    state: str
    detail: str | UnsetType = UNSET


Event = ResultEvent | AlarmEvent | ModelEvent | LossEvent | HealthEvent


class ModelFile(msgspec.Struct, frozen=True):
    """What the worker is asked to run: a file that nobody changes any more, and what is known of it."""

    path: str
    name: str
    version: str
    labels: list[str] | None = None


class LoadReport(msgspec.Struct, frozen=True):
    """How loading a model went. `reason` is for a person and is set whenever `accepted` is false.

    `permanent` tells a file that can never work (it is no model, or needs other inputs) from bad luck that a
    later try may not have (no worker, no device).
    """

    accepted: bool
    reason: str = ""
    permanent: bool = False
    accelerator: Accelerator = "cpu"
    degraded: str | None = None
    detail: str = ""
