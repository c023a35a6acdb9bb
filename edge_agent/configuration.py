"""The settings as the parts need them: checked, complete, with the labels read.

The check needs pydantic and runs plugin code, neither of which the agent's process may hold for as long as it lives.
It is done by `python -m edge_agent.configuration_check FILE`, which answers with `Answer` as JSON and ends.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import structlog

from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import child_environment
from edge_agent.inference.protocol import Configure, ModelOptions, RawDataOptions
from edge_agent.settings.faults import Fault, NotSetUp, SettingsError
from edge_agent.settings.raw_data import RawDataSettings
from edge_agent.settings.schema import PREFIX, Settings

log = structlog.get_logger()

MODULE = "edge_agent.configuration_check"
# Above the time limit for the check of the plugin's options, which tells more; loading pydantic from a slow SD card
# takes its time, too.
CHECK_DEADLINE = 120.0
# The check needs a moment to end the check of the plugin's options, when it is told to end.
CHECK_GRACE = 1.0


@dataclass(frozen=True)
class Configuration:
    """Settings that have been found good.

    The options of the source are complete. `source` is its class, as "module:Class", and `labels` the names of the
    classes.
    """

    settings: Settings
    source: str
    labels: list[str] | None

    def worker(self, device: str, handover: Path) -> Configure:
        """Return what the worker of this device has to know. `handover` is the folder for pictures that are kept."""
        inference, raw_data = self.settings.inference, self.settings.telemetry.raw_data
        model = ModelOptions(
            accelerator=inference.accelerator,
            device=inference.device,
            device_options=inference.device_options,
            task=inference.task,
            threshold=inference.threshold,
            iou_threshold=inference.iou_threshold,
            low=inference.limits.low,
            high=inference.limits.high,
            fit=inference.fit,
            top_k=inference.top_k,
            resize=inference.resize,
            image_mean=inference.image_mean,
            image_std=inference.image_std,
            labels=self.labels,
            raw_data=0 if raw_data.chooses else raw_data.values,
        )
        return Configure(
            plugin=self.source,
            options=self.settings.source.options,
            model=model,
            runtime=inference.runtime,
            raw_data=_raw_data_options(raw_data, device, handover) if raw_data.chooses else None,
        )


def _raw_data_options(raw_data: RawDataSettings, device: str, handover: Path) -> RawDataOptions:
    return RawDataOptions(
        device=device,
        handover=str(handover),
        daily_budget=raw_data.daily_budget,
        values=raw_data.values,
        images=str(raw_data.images) if raw_data.images is not None else "",
        max_confidence=raw_data.max_confidence,
        max_margin=raw_data.max_margin,
        min_clipped=raw_data.min_clipped,
        one_in=raw_data.one_in,
    )


@dataclass(frozen=True)
class Answer:
    """What the check found: faults or a configuration, or both if the only fault is a source out of reach.

    `complete` is false if the faults are a NotSetUp.
    """

    faults: list[Fault]
    configuration: Configuration | None = None
    complete: bool = True


async def load_configuration(
    path: Path,
    environ: Mapping[str, str] = os.environ,
    *,
    source_must_be_there: bool = True,
    timeout: float = CHECK_DEADLINE,  # noqa: ASYNC109  that of the child, whose answer then tells what it did
) -> Configuration:
    """Read and check everything the file says. Raises SettingsError with all faults at once, NotSetUp among them.

    At boot a disk or a sensor may come later than the agent: `source_must_be_there` false takes that for no fault.
    """
    try:
        answer = await ask(
            Answer, MODULE, str(path), environment=_environment(environ), timeout=timeout, grace=CHECK_GRACE
        )
    except NoAnswerError as error:
        raise SettingsError([Fault(str(path), None, "", f"the check of the settings {error}")]) from error
    if not answer.complete:
        raise NotSetUp(answer.faults)
    if answer.configuration is None or (answer.faults and source_must_be_there):
        raise SettingsError(answer.faults)
    for fault in answer.faults:
        log.warning("the source is not ready yet", fault=str(fault))
    return answer.configuration


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    inherited = {name: value for name, value in child_environment().items() if not name.upper().startswith(PREFIX)}
    return inherited | {name: value for name, value in environ.items() if name.upper().startswith(PREFIX)}
