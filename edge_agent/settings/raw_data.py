"""[telemetry.raw_data]: which part of the input is kept for retraining, and what of it leaves the device."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Gt, Le, doc

from edge_agent.settings.checks import Parse
from edge_agent.settings.conditions import OBJECT_THRESHOLD
from edge_agent.settings.kinds import Number, Table, Whole
from edge_agent.settings.location import Location, parse_folder
from edge_agent.settings.tasks import SCORED, VALUED, needs
from edge_agent.settings.units import Size, parse_size

if TYPE_CHECKING:
    from edge_agent.settings.lines import KeyPath
    from edge_agent.settings.schema import Settings

# The keys that choose samples, and the tasks whose results they can be about.
RULES = {
    "max_confidence": SCORED,
    "max_margin": ("classification",),
    "min_clipped": (*SCORED, *VALUED, "raw"),
    "one_in": (*SCORED, *VALUED, "raw"),
}


@dataclass(frozen=True, kw_only=True)
class RawDataSettings(Table):
    """[telemetry.raw_data]. A rule that is given and met chooses the sample; without a rule every sample is chosen."""

    values: Annotated[
        Whole,
        Ge(0),
        Le(1000),
        doc("How many of the first input values go into the event of a chosen sample; without a rule, into each."),
    ] = 0
    images: Annotated[
        Location | None,
        Parse(parse_folder),
        doc(
            "Where pictures of chosen samples go as JPEG files: gs://BUCKET/PREFIX, file:///FOLDER or a path; without "
            "it no picture leaves the device."
        ),
    ] = None
    max_confidence: Annotated[
        Annotated[Number, Ge(0), Le(1)] | None,
        doc("Chooses samples whose best class or object has this score or less."),
    ] = None
    max_margin: Annotated[
        Annotated[Number, Ge(0), Le(1)] | None,
        doc("Chooses samples whose best two classes are no further apart than this, for the task classification."),
    ] = None
    min_clipped: Annotated[
        Annotated[Number, Gt(0), Le(1)] | None,
        doc("Chooses samples with at least this share of their values, from 0 to 1, outside the model's range."),
    ] = None
    one_in: Annotated[
        Annotated[Whole, Ge(1)] | None, doc("Chooses one sample in so many, by chance, whatever the model says of it.")
    ] = None
    daily_budget: Annotated[
        Size,
        Ge(parse_size("10kB")),
        doc("How much of chosen samples may leave the device in any 24 hours, values and pictures together."),
    ] = parse_size("5MB")

    @property
    def chooses(self) -> bool:
        """Whether a rule is given."""
        return bool(rules_of(self))


def as_table(value: object) -> object:
    """Read the short form `raw_data = 64`: so many values of every sample."""
    return value if isinstance(value, dict) else {"values": value}


def rules_of(raw_data: RawDataSettings) -> list[str]:
    """Return the keys that are rules and were given."""
    return [rule for rule in RULES if getattr(raw_data, rule) is not None]


def complete(raw_data: RawDataSettings) -> RawDataSettings:
    """Return it as it is. Raises ValueError if samples would be chosen for nothing, or all pictures be uploaded."""
    rules = rules_of(raw_data)
    if rules and not raw_data.values and raw_data.images is None:
        raise ValueError(f"{rules[0]} chooses samples, but neither values nor images says what to keep of them")
    if raw_data.images is not None and not rules:
        raise ValueError(f"images needs a rule that chooses them: {', '.join(RULES)}")
    return raw_data


def unmet(settings: "Settings") -> "Iterator[tuple[KeyPath, str]]":
    """Yield place and message for each rule that no sample can ever meet with the settings of the model."""
    for rule in rules_of(settings.telemetry.raw_data):
        if (why := _never(rule, settings)) is not None:
            yield ("telemetry", "raw_data", rule), why


def _never(rule: str, settings: "Settings") -> str | None:
    inference, limit = settings.inference, settings.telemetry.raw_data.max_confidence
    if inference.task not in RULES[rule]:
        return needs(RULES[rule], inference.task)
    if rule == "max_margin" and inference.top_k == 1:
        return "needs the best two classes: [inference].top_k must be at least 2, not 1"
    threshold = OBJECT_THRESHOLD if inference.threshold is None else inference.threshold
    if rule == "max_confidence" and inference.task == "detection" and limit is not None and limit < threshold:
        return f"no object has a score of {limit:g} or less: [inference].threshold, {threshold:g}, leaves it out"
    return None
