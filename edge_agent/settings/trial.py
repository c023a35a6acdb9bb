"""What a new model is watched for once it is in use; see `edge_agent.models.rollout.trial`."""

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Le, doc

from edge_agent.settings.kinds import Number, Table, Whole
from edge_agent.settings.units import Duration, parse_duration


@dataclass(frozen=True, kw_only=True)
class TrialSettings(Table):
    """[model.trial]: what a new model is watched for after it was taken into use, before there is no way back."""

    time: Annotated[
        Duration, doc("How long a new model is watched, with the one before it kept ready; 0 for not at all.")
    ] = parse_duration("10m")
    samples: Annotated[
        Annotated[Whole, Ge(1)] | None,
        doc("After so many results the trial is over, too; without it the time alone decides."),
    ] = None
    max_failed: Annotated[
        Number,
        Ge(0),
        Le(1),
        doc("How much larger the share of samples that cannot be worked on may be than before; 1 for any."),
    ] = 0.01
    max_latency: Annotated[
        Number,
        Ge(0),
        doc("How many times longer a run of the model may take than before (95 % of the runs); 0 for any time."),
    ] = 3.0
    max_clipped: Annotated[
        Number,
        Ge(0),
        Le(1),
        doc("How much larger the share of input values out of the model's range may be than before; 1 for any."),
    ] = 0.2
    max_shift: Annotated[
        Number,
        Ge(0),
        Le(1),
        doc("How far the shares of the predictions may move, beyond how far they moved before; 1 for any."),
    ] = 0.5
