"""The settings, their types, limits and defaults. Defaults stand here and nowhere else.

`config/edge-agent.toml` shows every one of them to the admin; a test holds the two together. The classes are plain
dataclasses, because the agent keeps settings for as long as it runs and must not load pydantic for them. What stands
in `Annotated` is for `edge_agent.settings.loading`, which checks a file against them with pydantic.
"""

import re
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from annotated_types import DocInfo, Ge, Gt, Le, MaxLen, MinLen, doc

from edge_agent.settings.checks import After, Before, Parse
from edge_agent.settings.device_options import check_device_options
from edge_agent.settings.kinds import Number, Table, Text, Whole, several
from edge_agent.settings.location import Destination, Location, parse_destination, parse_location
from edge_agent.settings.publish import ALL, Publish, parse_publish
from edge_agent.settings.raw_data import RawDataSettings, as_table, complete
from edge_agent.settings.showing import show
from edge_agent.settings.trial import TrialSettings
from edge_agent.settings.units import Duration, Size, parse_duration, parse_size
from edge_agent.settings.when import When, consistent
from edge_agent.settings.window import Window, parse_window

# Environment variables that begin so override single values of the file.
PREFIX = "EDGE_AGENT_"

# The id goes into Pub/Sub attributes and into event ids, where "/" separates.
_SAFE_ID = re.compile(r"[A-Za-z0-9._~%+-]{1,128}")
# Tables that may also be written as a key with one value.
SHORT_FORMS = {("telemetry", "raw_data")}
_NO_KEY = {"no key": True}
# As libedgetpu has them, or a bus and a stable place on it: a USB port path or a PCI address.
_DEVICE = re.compile(
    r"|(usb|pci)?:\d{1,3}|usb|pci|usb:\d+-\d+(\.\d+)*|pci:([0-9a-f]{4}:)?[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]"
)


def _safe_id(value: str | None) -> str | None:
    if value is not None and not _SAFE_ID.fullmatch(value):
        raise ValueError(f"may hold 1 to 128 letters, digits and . _ ~ % + - only, not {show(value)}")
    return value


def _device(value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise ValueError(
            f'{show(value)} names no Edge TPU; write for instance "usb:1-1.3", "pci:0000:01:00.0", "usb:0"'
        )
    return value


def _labels(value: object) -> list[str] | str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    raise ValueError(f"expected a list of names or the path of a file, not {show(value)}")


def _in_order(limits: "Limits") -> "Limits":
    if limits.low is not None and limits.high is not None and limits.low >= limits.high:
        raise ValueError(f"low {limits.low:g} must be less than high {limits.high:g}")
    return limits


def _unique_names(actions: "list[ActionSettings]") -> "list[ActionSettings]":
    names = [action.name for action in actions]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"the name {show(twice[0])} stands twice; each action needs its own")
    return actions


@dataclass(frozen=True, kw_only=True)
class DeviceSettings(Table):
    """[device]"""

    id: Annotated[
        str | None,
        After(_safe_id),
        doc("Name of this device in every event; derived from the machine id when not given."),
    ] = None
    labels: Annotated[
        dict[str, str], doc("Names and values of your own that go into every event, for instance the site.")
    ] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class SourceSettings(Table):
    """[source]: the plugin that reads the samples. All other keys of the table are the plugin's own, its `options`."""

    plugin: Annotated[Text, doc("Name of the plugin that reads the samples.")]
    options: dict[str, Any] = field(default_factory=dict, metadata=_NO_KEY)


@dataclass(frozen=True, kw_only=True)
class DownloadSettings(Table):
    """[model.download]"""

    bandwidth: Annotated[
        Annotated[Size, Ge(parse_size("1kB"))] | None,
        doc("How many bytes per second fetching a model may take, on average; without it as many as the line carries."),
    ] = None
    window: Annotated[
        Window | None,
        Parse(parse_window),
        doc(
            'The time of day, local time, at which models are fetched, for instance "01:00-05:00"; new ones are looked '
            "for at any time."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelSettings(Table):
    """[model]"""

    url: Annotated[
        Location,
        Parse(parse_location),
        doc("Where the model is fetched from: gs://BUCKET/OBJECT, file:///PATH or a path."),
    ]
    name: Annotated[
        Annotated[str, MinLen(1), MaxLen(128)] | None,
        doc("Name of the model in every event; taken from the URL when not given."),
    ] = None
    cpu_url: Annotated[
        Location | None,
        Parse(parse_location),
        doc(
            "Where the same model for the CPU is fetched from, for when there is no Edge TPU; without it the name of "
            "the model without _edgetpu is tried."
        ),
    ] = None
    keys: Annotated[
        list[Text],
        doc(
            "Public keys (PEM files, Ed25519) of those who may release models; with one, only what one of them has "
            "signed is used."
        ),
    ] = field(default_factory=list)
    poll_interval: Annotated[Duration, Ge(1), doc("How often to look for a new version of the model.")] = (
        parse_duration("1h")
    )
    download: DownloadSettings = DownloadSettings()
    pin: Annotated[
        Annotated[str, MinLen(1), MaxLen(128)] | None,
        doc("Run this version and no other, also if it is an older one; it is not on trial."),
    ] = None
    hold: Annotated[bool, doc("Stay with the model in use; new ones are named, and not fetched.")] = False
    trial: TrialSettings = field(default_factory=TrialSettings)

    @property
    def model_name(self) -> str:
        """The given name, or one taken from the URL."""
        return self.name or self.url.default_name


@dataclass(frozen=True, kw_only=True)
class Limits(Table):
    """[inference.limits]"""

    low: Annotated[Number | None, doc('A value below this makes the prediction "low", or "anomaly".')] = None
    high: Annotated[Number | None, doc('A value above this makes the prediction "high", or "anomaly".')] = None


@dataclass(frozen=True, kw_only=True)
class InferenceSettings(Table):
    """[inference]"""

    accelerator: Annotated[
        Literal["auto", "edgetpu", "cpu"],
        doc(
            "What runs the model; auto is the Edge TPU if there is one and the model is made for it, and else the CPU."
        ),
    ] = "auto"
    device: Annotated[
        str,
        After(_device),
        doc(
            'Which Edge TPU to use, by the port it is plugged in, for instance "usb:1-1.3" or "pci:0000:01:00.0", or '
            'by number, "usb:0" or "pci:0"; empty for any.'
        ),
    ] = ""
    device_options: Annotated[
        dict[str, str],
        After(check_device_options),
        doc('Options of the Edge TPU\'s driver, for instance { Performance = "Max" }.'),
    ] = field(default_factory=dict)
    runtime: Annotated[
        Literal["auto", "ai-edge-litert", "tflite-runtime", "pycoral"],
        doc("Which TensorFlow Lite runtime to use; auto is the first that gets along with the Edge TPU's driver."),
    ] = "auto"
    task: Annotated[
        Literal["classification", "detection", "regression", "anomaly", "raw"],
        doc("How the model's output is read."),
    ] = "classification"
    labels: Annotated[
        list[str] | str | None,
        Parse(_labels),
        doc(
            "Names of the classes or values in the model's order, or the path of a labels file; those of a release go "
            "before, those packed in the model's file come after."
        ),
    ] = None
    top_k: Annotated[Whole, Ge(1), Le(1000), doc("How many of the best classes or objects go into each event.")] = 3
    threshold: Annotated[
        Annotated[Number, Ge(0), Le(1)] | None,
        doc(
            "The score, from 0 to 1, below which a class or an object is left out; without it 0.4 for objects and 0, "
            "which leaves out nothing, for classes."
        ),
    ] = None
    iou_threshold: Annotated[
        Number,
        Gt(0),
        Le(1),
        doc("Of two objects of one class that overlap by more than this, the better one counts; from 0 to 1."),
    ] = 0.5
    limits: Annotated[
        Limits, After(_in_order), doc("For the tasks regression and anomaly: the values that are normal.")
    ] = Limits()
    deadline: Annotated[
        Duration,
        Ge(1),
        doc("How long one reading or one run of the model may take before the worker is restarted."),
    ] = parse_duration("10s")
    resize: Annotated[
        Literal["nearest", "bilinear", "lanczos"], doc("How images are brought to the size of the model's input.")
    ] = "bilinear"
    fit: Annotated[
        Literal["stretch", "letterbox"],
        doc("Whether an image is stretched to the model's input, or keeps its proportions and gets a border."),
    ] = "stretch"
    image_mean: Annotated[
        Number | None,
        doc(
            "Subtracted from each pixel, for models with floating-point input only; without it what the metadata in "
            "the model's file says, and else 127.5."
        ),
    ] = None
    image_std: Annotated[
        Annotated[Number, Gt(0)] | None,
        doc("Divides each pixel after that, for such models only; without it likewise, and else 127.5."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class QueueSettings(Table):
    """[telemetry.queue]"""

    max_size: Annotated[
        Size,
        Ge(parse_size("1MB")),
        doc(
            "How much disk space waiting events may take; beyond it the oldest of the least important are dropped and "
            "counted."
        ),
    ] = parse_size("256MB")
    max_age: Annotated[
        Duration,
        Ge(60),
        doc(
            "How long events may wait, in time that the agent runs, whatever the device's clock says; older ones are "
            "dropped and counted."
        ),
    ] = parse_duration("30d")
    reserve: Annotated[
        Size,
        doc(
            "How much of the disk to leave free: while there is less, new events take the place of the oldest of the "
            "least important ones."
        ),
    ] = parse_size("100MB")
    commit_interval: Annotated[
        Duration,
        Ge(parse_duration("100ms")),
        Le(60),
        doc("How often events are forced to disk: a power cut loses at most this much."),
    ] = parse_duration("1s")
    commit_size: Annotated[
        Size,
        Ge(parse_size("64kB")),
        Le(parse_size("8MB")),
        doc("So many bytes of waiting events are forced to disk at once, without waiting for the interval."),
    ] = parse_size("8MB")


@dataclass(frozen=True, kw_only=True)
class TelemetrySettings(Table):
    """[telemetry]"""

    sink: Annotated[
        Destination,
        Parse(parse_destination),
        doc("Where events go: pubsub://PROJECT/TOPIC, file:///PATH or a path."),
    ]
    publish: Annotated[
        Publish,
        Parse(parse_publish),
        doc("Which results become events of their own; an alarm always does, with the whole result in it."),
    ] = ALL
    raw_data: Annotated[
        RawDataSettings,
        After(complete),
        Before(as_table),
        doc("What of the input is kept for retraining; a number means so many values of every sample."),
    ] = field(default_factory=RawDataSettings)
    health_interval: Annotated[
        Duration, Ge(10), doc("How often an event tells how it all goes: latencies and counts.")
    ] = parse_duration("5m")
    linger: Annotated[Duration, Ge(0), Le(60), doc("How long events gather before they are sent together.")] = (
        parse_duration("250ms")
    )
    bandwidth: Annotated[
        Annotated[Size, Ge(parse_size("100B"))] | None,
        doc("How many bytes per second sending may take, on average; without it as many as the line carries."),
    ] = None
    daily_budget: Annotated[
        Annotated[Size, Ge(parse_size("100kB"))] | None,
        doc(
            "How many bytes a day sending may take, with what comes on top of the events; once they are used up, only "
            "alarms, losses and changes of the model go out until the next day; without it as many as there are."
        ),
    ] = None
    queue: QueueSettings = QueueSettings()


@dataclass(frozen=True, kw_only=True)
class ActionSettings(Table):
    """[[actions]]: a rule on the results, and the command that it runs."""

    name: Annotated[Text, doc("Name of the rule in events and log lines.")]
    when: Annotated[When, After(consistent), doc("The results that the rule is about.")]
    run: Annotated[list[Text], MinLen(1), doc("The command and its arguments; no shell is involved.")]
    # Without a rest, a rule that every result meets would start a process for each of them.
    cooldown: Annotated[Duration, Ge(parse_duration("100ms")), doc("How long the rule rests after it fired.")] = (
        parse_duration("1m")
    )
    timeout: Annotated[Duration, Gt(0), doc("How long the command may take before it is ended.")] = parse_duration(
        "30s"
    )


@dataclass(frozen=True, kw_only=True)
class LogSettings(Table):
    """[log]"""

    level: Annotated[
        Literal["debug", "info", "warning", "error"], doc("The least important messages that are logged.")
    ] = "info"
    format: Annotated[
        Literal["auto", "console", "journal"],
        doc("How messages look; auto is right under systemd and in a terminal."),
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class Settings(Table):
    """All settings. `edge_agent.settings.loading.load` makes them from the file and the environment."""

    device: DeviceSettings = DeviceSettings()
    source: SourceSettings
    model: ModelSettings
    inference: InferenceSettings = InferenceSettings()
    telemetry: TelemetrySettings
    actions: Annotated[list[ActionSettings], After(_unique_names), Before(several), doc("Rules on the results.")] = (
        field(default_factory=list)
    )
    log: LogSettings = LogSettings()


@cache
def tables() -> dict[tuple[str, ...], type]:
    """Return the class of every table by its path, among them `("actions",)` and `("actions", "when")`."""
    return dict(_tables((), Settings))


def _tables(path: tuple[str, ...], owner: type) -> list[tuple[tuple[str, ...], type]]:
    found = []
    for name, hint in keys(owner).items():
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        inner = get_args(bare)[0] if get_origin(bare) is list else bare
        if isinstance(inner, type) and issubclass(inner, Table):
            found += [((*path, name), inner), *_tables((*path, name), inner)]
    return found


def keys(table: type) -> dict[str, Any]:
    """Return the annotated type of each key that a table may have. A plugin's options are not among them."""
    hints = get_type_hints(table, include_extras=True)
    return {each.name: hints[each.name] for each in fields(table) if each.metadata != _NO_KEY}


def description(hint: Any) -> str:
    """Return the sentence that says what a key is for, or "" for a table."""
    return next((mark.documentation for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, DocInfo)), "")
