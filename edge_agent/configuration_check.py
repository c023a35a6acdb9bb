"""Checks the settings, in a process that ends with the answer: `python -m edge_agent.configuration_check FILE`.

The environment variables EDGE_AGENT_… of this process are read over the file. The answer is an
`edge_agent.configuration.Answer` as JSON on the standard output.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec

from edge_agent.configuration import Answer, Configuration
from edge_agent.inference.checks.source_check import check_source, source_faults
from edge_agent.inference.checks.source_options import SourceCheck
from edge_agent.inference.child import die_with_parent
from edge_agent.inference.interpreter.labels import LabelsError, read_labels
from edge_agent.settings.document import Document, read
from edge_agent.settings.faults import Fault, NotSetUp, SettingsError
from edge_agent.settings.loading import check


async def check_configuration(path: Path, environ: Mapping[str, str] = os.environ) -> Answer:
    """Read and check everything the file says. Raises SettingsError with all faults at once, NotSetUp among them.

    If nothing is wrong but that the source is out of reach now, the answer has both that fault and the configuration.
    """
    document = read(path, environ)
    faults: list[Fault] = []
    settings, incomplete = None, None
    try:
        settings = check(document)
    except NotSetUp as error:
        incomplete = error
    except SettingsError as error:
        faults += error.faults
    source = await _check_source(document)
    found = source_faults(document, source)
    absent = found if all(fault.absent for fault in source.faults) else []
    faults += [] if absent else found
    labels = _read_labels(document, faults)
    if incomplete is not None and not faults:
        raise incomplete
    if faults or settings is None:
        raise SettingsError(faults + absent + (incomplete.faults if incomplete else []))
    settings = replace(settings, source=replace(settings.source, options=source.options))
    return Answer(absent, Configuration(settings, source.reference, labels))


async def _check_source(document: Document) -> SourceCheck:
    plugin = document.at(("source", "plugin"))
    if not isinstance(plugin, str) or not plugin:
        return SourceCheck([])
    given = {key: value for key, value in document.at(("source",)).items() if key != "plugin"}
    return await check_source(plugin, given, document.folder)


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


async def _answer(path: Path) -> Answer:
    task = asyncio.current_task()
    if task is not None:
        # Ends the plugin's check first, and this process with it.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await check_configuration(path)
    except SettingsError as error:
        return Answer(error.faults, complete=not isinstance(error, NotSetUp))


def main() -> None:
    """Check the file named on the command line."""
    die_with_parent()
    answer = asyncio.run(_answer(Path(sys.argv[1])))
    json.dump(msgspec.to_builtins(answer), sys.stdout)


if __name__ == "__main__":
    main()
