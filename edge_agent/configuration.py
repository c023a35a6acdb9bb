"""The settings as the parts need them: checked, complete, with the labels read."""

import asyncio
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_agent.inference.labels import LabelsError, read_labels
from edge_agent.inference.protocol import Configure
from edge_agent.inference.source_check import check_source, source_faults
from edge_agent.settings.document import Document, read
from edge_agent.settings.faults import Fault, SettingsError
from edge_agent.settings.loading import check
from edge_agent.settings.schema import Settings


@dataclass(frozen=True)
class Configuration:
    """Settings that have been found good. `options` are the source's, `labels` the names of the classes."""

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
    document = await asyncio.to_thread(read, path, environ)
    faults: list[Fault] = []
    settings = None
    try:
        settings = check(document)
    except SettingsError as error:
        faults += error.faults
    options = await _check_source(document, faults)
    labels = _read_labels(document, faults)
    if faults or settings is None:
        raise SettingsError(faults)
    return Configuration(settings, options, labels)


async def _check_source(document: Document, faults: list[Fault]) -> dict[str, object]:
    plugin = document.at(("source", "plugin"))
    if not isinstance(plugin, str) or not plugin:
        return {}
    given = {key: value for key, value in document.at(("source",)).items() if key != "plugin"}
    found = await check_source(plugin, given, document.folder)
    faults += source_faults(document, found)
    return found.options


def _read_labels(document: Document, faults: list[Fault]) -> list[str] | None:
    labels = document.at(("inference", "labels"))
    if isinstance(labels, list):
        return labels
    if not isinstance(labels, str) or not labels:
        return None
    try:
        return read_labels(Path(labels))
    except LabelsError as error:
        faults.append(document.fault(("inference", "labels"), str(error)))
        return None
