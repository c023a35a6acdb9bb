"""What a roll-out tells of: changes, for events, and how it stands, for people."""

from typing import Literal

import msgspec

from edge_agent.models.release.releases import Release
from edge_agent.models.rollout.trial import TrialFigures
from edge_agent.records import LoadReport


class ShadowReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a shadow has done since the report before. `agreed` counts samples of which it said the same.

    `latency_ms` is what 95 % of its runs did not exceed.
    """

    samples: int
    agreed: int
    failed: int
    latency_ms: float


class RolloutChange(msgspec.Struct, frozen=True, kw_only=True):
    """Something has become of a release.

    "trial": it is in use, and watched. "committed": it stays. "rejected": refused before it was in use. "rolled_back":
    it was in use, and `previous` is again. "shadow": it runs beside the release in use, or has ended to.

    `part` is "twin" where that is all that is new, or all that was given up: no other version runs then. `reason` is
    why it was refused or has ended. `trial` is what the trial has come to, `shadow` what the shadow has.
    """

    state: Literal["trial", "committed", "rejected", "rolled_back", "shadow"]
    release: Release
    previous: Release | None
    report: LoadReport
    part: Literal["model", "twin"] = "model"
    reason: str = ""
    trial: TrialFigures | None = None
    shadow: ShadowReport | None = None


class RolloutStatus(msgspec.Struct, frozen=True, kw_only=True):
    """For people. `version` runs, `waiting` is to be tried; `next_poll` is in seconds from now.

    `refusal` is why the worker cannot take a model now, with its version, and empty if it can. `twin` is whether what
    runs has a twin for the CPU. `trial` is how far the trial of `version` is, `shadow` what runs beside it; both are
    empty if nothing is. `pin` and `hold` are the settings.
    """

    state: Literal["no model", "waiting for the worker", "on trial", "running", "stopped"]
    version: str | None
    waiting: str | None
    refusal: str
    last_poll: str
    failures: int
    next_poll: float | None
    rejected: str | None
    twin: bool = False
    trial: str = ""
    shadow: str = ""
    pin: str = ""
    hold: bool = False
