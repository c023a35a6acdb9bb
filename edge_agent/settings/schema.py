"""The settings, their types, limits and defaults. Defaults stand here and nowhere else.

`config/edge-agent.toml` shows every one of them to the admin; a test holds the two together.
"""

import re
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from edge_agent.settings.location import Destination, Location, parse_destination, parse_location
from edge_agent.settings.showing import show
from edge_agent.settings.units import Duration, Size, parse_duration, parse_size

# The id goes into Pub/Sub attributes and into event ids, where "/" separates.
_SAFE_ID = re.compile(r"[A-Za-z0-9._~%+-]{1,128}")


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError(f"expected a number, not {show(value)}")  # noqa: TRY004 - what pydantic collects
    return value


def _labels(value: object) -> list[str] | str | None:
    if value is None or (isinstance(value, str) and value):
        return value
    if isinstance(value, list) and value and all(isinstance(item, str) and item for item in value):
        return value
    raise ValueError(f"expected a list of names or the path of a file, not {show(value)}")


Whole = Annotated[int, BeforeValidator(_no_bool)]
Number = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


class Table(BaseModel):
    """A table of the file: no unknown keys, and nothing changes once it is loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DeviceSettings(Table):
    """[device]"""

    id: str | None = Field(
        default=None,
        description="Name of this device in every event; derived from the machine id when not given.",
    )
    labels: dict[str, str] = Field(
        default={}, description="Names and values of your own that go into every event, for instance the site."
    )

    @field_validator("id")
    @classmethod
    def _safe(cls, value: str | None) -> str | None:
        if value is not None and not _SAFE_ID.fullmatch(value):
            raise ValueError(f"may hold 1 to 128 letters, digits and . _ ~ % + - only, not {show(value)}")
        return value


class SourceSettings(BaseModel):
    """[source]: the plugin that reads the samples. All other keys are the plugin's own options."""

    model_config = ConfigDict(extra="allow", frozen=True)

    plugin: Text = Field(description="Name of the plugin that reads the samples.")

    @property
    def options(self) -> dict[str, Any]:
        """The plugin's options as the file gives them, not yet checked."""
        return dict(self.__pydantic_extra__ or {})


class ModelSettings(Table):
    """[model]"""

    url: Annotated[Location, PlainValidator(parse_location)] = Field(
        description="Where the model is fetched from: gs://BUCKET/OBJECT, file:///PATH or a path."
    )
    name: Annotated[str, Field(min_length=1, max_length=128)] | None = Field(
        default=None, description="Name of the model in every event; taken from the URL when not given."
    )
    poll_interval: Annotated[Duration, Field(ge=1)] = Field(
        default=parse_duration("1h"), description="How often to look for a new version of the model."
    )

    @property
    def model_name(self) -> str:
        """The given name, or one taken from the URL."""
        return self.name or self.url.default_name


class InferenceSettings(Table):
    """[inference]"""

    accelerator: Literal["auto", "edgetpu", "cpu"] = Field(
        default="auto",
        description="What runs the model; auto takes the Edge TPU if there is one, and else the CPU.",
    )
    device: str = Field(
        default="", description='Which Edge TPU to use, for instance "usb:0" or "pci:0"; empty for any.'
    )
    task: Literal["classification"] = Field(default="classification", description="How the model's output is read.")
    labels: Annotated[list[str] | str | None, PlainValidator(_labels)] = Field(
        default=None, description="Names of the classes in the model's order, or the path of a labels file."
    )
    top_k: Annotated[Whole, Field(ge=1, le=1000)] = Field(
        default=3, description="How many of the best classes go into each event."
    )
    deadline: Annotated[Duration, Field(ge=1)] = Field(
        default=parse_duration("10s"),
        description="How long one reading or one run of the model may take before the worker is restarted.",
    )
    resize: Literal["nearest", "bilinear", "lanczos"] = Field(
        default="bilinear", description="How images are brought to the size of the model's input."
    )
    image_mean: Number = Field(
        default=127.5, description="Subtracted from each pixel, for models with floating-point input only."
    )
    image_std: Annotated[Number, Field(gt=0)] = Field(
        default=127.5, description="Divides each pixel after that, for models with floating-point input only."
    )


class QueueSettings(Table):
    """[telemetry.queue]"""

    max_size: Annotated[Size, Field(ge=parse_size("1MB"))] = Field(
        default=parse_size("256MB"),
        description="How much disk space waiting events may take; beyond it the oldest are dropped and counted.",
    )
    commit_interval: Annotated[Duration, Field(ge=parse_duration("100ms"), le=60)] = Field(
        default=parse_duration("1s"),
        description="How often events are forced to disk: a power cut loses at most this much.",
    )


class TelemetrySettings(Table):
    """[telemetry]"""

    sink: Annotated[Destination, PlainValidator(parse_destination)] = Field(
        description="Where events go: pubsub://PROJECT/TOPIC, file:///PATH or a path."
    )
    raw_data: Annotated[Whole, Field(ge=0, le=1000)] = Field(
        default=0, description="How many of the first input values go into each event."
    )
    linger: Annotated[Duration, Field(ge=0, le=60)] = Field(
        default=parse_duration("250ms"), description="How long events gather before they are sent together."
    )
    queue: QueueSettings = QueueSettings()


class When(Table):
    """`when` of [[actions]]: the results that a rule is about."""

    label: Text = Field(description="The best class of the result.")
    min_confidence: Annotated[Number, Field(ge=0, le=1)] = Field(
        default=0.0, description="The score that it needs, from 0 to 1."
    )
    hold: Duration = Field(default=parse_duration("0s"), description="How long this must last before the rule fires.")


class ActionSettings(Table):
    """[[actions]]: a rule on the results, and the command that it runs."""

    name: Text = Field(description="Name of the rule in events and log lines.")
    when: When = Field(description="The results that the rule is about.")
    run: Annotated[list[Text], Field(min_length=1)] = Field(
        description="The command and its arguments; no shell is involved."
    )
    cooldown: Duration = Field(default=parse_duration("1m"), description="How long the rule rests after it fired.")
    timeout: Annotated[Duration, Field(gt=0)] = Field(
        default=parse_duration("30s"), description="How long the command may take before it is ended."
    )


class LogSettings(Table):
    """[log]"""

    level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="The least important messages that are logged."
    )
    format: Literal["auto", "console", "journal"] = Field(
        default="auto", description="How messages look; auto is right under systemd and in a terminal."
    )


class Settings(BaseSettings):
    """All settings. `edge_agent.settings.loading.load` makes them from the file and the environment."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="EDGE_AGENT_", env_nested_delimiter="__")

    device: DeviceSettings = DeviceSettings()
    source: SourceSettings
    model: ModelSettings
    inference: InferenceSettings = InferenceSettings()
    telemetry: TelemetrySettings
    actions: list[ActionSettings] = Field(default=[], description="Rules on the results.")
    log: LogSettings = LogSettings()

    @field_validator("actions")
    @classmethod
    def _unique_names(cls, actions: list[ActionSettings]) -> list[ActionSettings]:
        names = [action.name for action in actions]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"the name {show(twice[0])} stands twice; each action needs its own")
        return actions

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - pydantic hands them over by these names
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Take the given values alone: the loader merges file and environment, to tell whose fault one is."""
        return (init_settings,)


@cache
def tables() -> dict[tuple[str, ...], type[BaseModel]]:
    """Return the class of every table by its path, among them `("actions",)` and `("actions", "when")`."""
    return dict(_tables((), Settings))


def _tables(path: tuple[str, ...], owner: type[BaseModel]) -> list[tuple[tuple[str, ...], type[BaseModel]]]:
    found = []
    for name, field in owner.model_fields.items():
        hint = get_args(field.annotation)[0] if get_origin(field.annotation) is list else field.annotation
        if isinstance(hint, type) and issubclass(hint, BaseModel):
            found += [((*path, name), hint), *_tables((*path, name), hint)]
    return found
