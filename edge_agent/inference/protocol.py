"""What the agent and its worker say to each other over the socketpair.

A frame is a 4-byte little-endian length and that many bytes of msgpack. Both ends come from the same release, so
there is no version to negotiate. Only small things cross: never a frame of a camera.
"""

import socket
import struct
import threading
from typing import Any, Literal

import msgspec

from edge_agent.latency import Tally
from edge_agent.records import LoadReport, ModelFile, Result, Terms

MAX_FRAME = 16 * 1024 * 1024
HEAD = 4
_LENGTH = struct.Struct("<I")


class ModelOptions(msgspec.Struct, frozen=True):
    """How models are to be run; the same for all versions. None is for what the task or the model says itself."""

    accelerator: str = "auto"
    device: str = ""
    device_options: dict[str, str] = {}
    task: str = "classification"
    top_k: int = 3
    threshold: float | None = None
    iou_threshold: float = 0.5
    low: float | None = None
    high: float | None = None
    resize: str = "bilinear"
    fit: str = "stretch"
    image_mean: float | None = None
    image_std: float | None = None
    labels: list[str] | None = None
    raw_data: int = 0


class RawDataOptions(msgspec.Struct, frozen=True):
    """Which samples' inputs are kept, and how much a day (bytes); see `edge_agent.settings.raw_data`.

    `images` is the URL of the folder that the pictures will be in, or empty for none; the part below it begins with
    `device`. The worker puts them into `handover` as files, from where the agent takes them.
    """

    device: str
    handover: str
    daily_budget: int
    values: int = 0
    images: str = ""
    max_confidence: float | None = None
    max_margin: float | None = None
    min_clipped: float | None = None
    one_in: int | None = None


class Configure(msgspec.Struct, frozen=True, tag="configure"):
    """Agent to worker, first message: what to read, and how to run a model on it.

    `plugin` is the source's class as "module:Class": finding it by its entry point costs memory that only the check
    of the settings needs. `runtime` is one that `edge_agent.inference.runtime` knows, or "auto". `resume` is the
    position of the last sample that a worker before this one has finished. `avoid` are the keys (`Source.key`) of
    samples that have killed workers in the model, `pass_over` those of samples behind which reading the next one has
    killed them. `root` is where /sys and /dev are looked for. `raw_data` is None where no rule chooses samples.
    """

    plugin: str
    options: dict[str, Any]
    model: ModelOptions
    runtime: str = "auto"
    resume: str | None = None
    avoid: list[str] = []
    pass_over: list[str] = []
    root: str = "/"
    raw_data: RawDataOptions | None = None


Role = Literal["use", "again", "spare", "shadow"]


class Load(msgspec.Struct, frozen=True, tag="load"):
    """Agent to worker: build this model beside the running one, and see whether it meets the terms.

    `role` is what becomes of it then. "use": it takes over, and with `terms.trial` the one before is kept beside it.
    "again": it takes over from the same model, built in another way; what is kept beside that stays. "spare": it is
    kept beside the one in use, as the one to go back to. "shadow": it runs on a `share` (0 to 1) of the samples, for
    figures only. `avoid_edgetpu` says why the Edge TPU must not be touched now, or is empty.
    """

    request: int
    model: ModelFile
    avoid_edgetpu: str = ""
    terms: Terms = Terms()
    role: Role = "use"
    share: float = 1.0


class Revert(msgspec.Struct, frozen=True, tag="revert"):
    """Agent to worker: go back to the model of load request `request`, which is kept beside the one in use."""

    request: int


class Keep(msgspec.Struct, frozen=True, tag="keep"):
    """Agent to worker: the model of load request `request`, which is in use, stays; close what is kept beside it."""

    request: int


class EndShadow(msgspec.Struct, frozen=True, tag="end_shadow"):
    """Agent to worker: close the shadow."""


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """Agent to worker: send what is finished, close the device, exit."""


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Worker to agent: configured, with this runtime."""

    runtime: str


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """Worker to agent: how a `Load` went. Comes before the first results of a model that takes over."""

    request: int
    report: LoadReport


class Reverted(msgspec.Struct, frozen=True, tag="reverted"):
    """Worker to agent: the model of load request `request` is in use again. Comes before its first results.

    `reason` is why the worker has gone back by itself, or empty: it was told to. The other model is kept until `Keep`.
    """

    request: int
    reason: str


class ShadowTally(msgspec.Struct, frozen=True, tag="shadow"):
    """Worker to agent, now and then: what the shadow of load request `request` came to since the message before.

    Of its `samples`, it could not work on `failed`, and said the same as the model in use on `agreed`; `clipped` had
    values outside its range. `invoke` has what `edge_agent.latency.Histogram.take` gives, `invoke_ns` is the sum.
    """

    request: int
    samples: int
    agreed: int
    failed: int
    clipped: int
    invoke_ns: int
    invoke: Tally


class ShadowEnded(msgspec.Struct, frozen=True, tag="shadow_ended"):
    """Worker to agent: the shadow of load request `request` was closed, for this reason."""

    request: int
    reason: str


class Results(msgspec.Struct, frozen=True, tag="results"):
    """Worker to agent: results made by the model of load request `request`, in the order of capture.

    `dropped` counts samples of a live source that the model had no time for, `failed` those it could not work
    on (`failure` is the last reason); both since the previous message.
    """

    request: int
    results: list[Result]
    dropped: int = 0
    failed: int = 0
    failure: str = ""


class Figures(msgspec.Struct, frozen=True, tag="figures"):
    """Worker to agent, now and then: what has come together since the message before.

    `latencies` has what `edge_agent.latency.Histogram.take` gives for each stage; `clipped` counts samples with values
    outside the model's range. `over_budget` counts samples that a rule chose when the day's budget was used up,
    `unkept` chosen pictures that could not be kept (`unkept_reason` is the last reason).
    """

    latencies: dict[str, Tally]
    clipped: int = 0
    over_budget: int = 0
    unkept: int = 0
    unkept_reason: str = ""


class SourceState(msgspec.Struct, frozen=True, tag="source"):
    """Worker to agent: the source was opened, has trouble, or has come to its end (open, trouble, ended).

    Or `count` samples are left out: skipped by the source itself, or set_aside as they had killed workers.
    """

    state: str
    detail: str = ""
    count: int = 0


ToWorker = Configure | Load | Revert | Keep | EndShadow | Stop
ToAgent = Ready | Loaded | Reverted | Results | Figures | ShadowTally | ShadowEnded | SourceState

_encoder = msgspec.msgpack.Encoder()
to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
to_agent: msgspec.msgpack.Decoder[ToAgent] = msgspec.msgpack.Decoder(ToAgent)


def frame(message: ToWorker | ToAgent) -> bytes:
    """Return the message as it goes over the wire."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


class AgentGone(Exception):
    """The agent has closed its end: there is nobody to work for."""


class Channel:
    """The worker's blocking end. Any thread may send; one thread receives."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._stream = sock.makefile("rb")
        self._lock = threading.Lock()

    def send(self, message: ToAgent) -> None:
        """Send one message; waits while the agent is busy. Raises AgentGone."""
        data = frame(message)
        try:
            with self._lock:
                self._socket.sendall(data)
        except OSError as error:
            raise AgentGone from error

    def receive(self) -> ToWorker | None:
        """Wait for the next message; None when the agent has closed its end."""
        head = self._stream.read(HEAD)
        if len(head) < HEAD:
            return None
        return to_worker.decode(self._stream.read(decode_length(head)))


def decode_length(head: bytes) -> int:
    """Return how many bytes follow the head of a frame. Raises ValueError for a frame that cannot be right."""
    length: int = _LENGTH.unpack(head)[0]
    if length > MAX_FRAME:
        raise ValueError(f"a frame of {length} bytes")
    return length
