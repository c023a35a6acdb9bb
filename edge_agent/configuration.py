"""The settings as the parts need them: checked, complete, with the labels read."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.inference.protocol import Configure
from edge_agent.inference.source_check import load_checked
from edge_agent.settings.schema import Settings


@dataclass(frozen=True)
class Configuration:
    """Settings that have been found good. `options` are the source's, `labels` the classes' names."""

    settings: Settings
    options: dict[str, object]
    labels: list[str] | None

    def worker(self) -> Configure:
        """Return what the worker has to know."""
        inference = self.settings.inference
        return Configure(
            plugin=self.settings.source.plugin,
            options=self.options,
            accelerator=inference.accelerator,
            device=inference.device,
            top_k=inference.top_k,
            resize=inference.resize,
            image_mean=inference.image_mean,
            image_std=inference.image_std,
            labels=self.labels,
            raw_data=self.settings.telemetry.raw_data,
        )


async def load_configuration(path: Path, environ: Mapping[str, str] = os.environ) -> Configuration:
    """Read and check everything the file says. Raises SettingsError with all faults at once."""
    settings, options, labels = await load_checked(path, environ)
    return Configuration(settings, options, labels)
