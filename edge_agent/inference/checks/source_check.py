"""Has the options of a source checked in a child process, `edge_agent.inference.checks.source_options`."""

import json
from collections.abc import Mapping
from pathlib import Path

from edge_agent.inference.checks.source_options import SourceCheck, SourceFault
from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.settings.document import Document
from edge_agent.settings.faults import Fault

MODULE = "edge_agent.inference.checks.source_options"
MAX_MESSAGE = 500


async def check_source(
    plugin: str,
    options: Mapping[str, object],
    base_dir: Path,
    *,
    timeout: float = 60.0,  # noqa: ASYNC109  passed on to `ask`
) -> SourceCheck:
    """Check a source's options in a child process. A child that crashes, hangs or talks nonsense is a fault."""
    request = {"plugin": plugin, "options": options, "base_dir": str(base_dir)}
    question = json.dumps(request, default=str).encode()
    try:
        return await ask(SourceCheck, MODULE, question=question, timeout=timeout)
    except NoAnswerError as error:
        return SourceCheck([SourceFault(("plugin",), f"the check of the plugin's options {error}")])


def source_faults(document: Document, found: SourceCheck) -> list[Fault]:
    """Return what the check found as faults of the table [source], with their lines."""
    return [document.fault(("source", *fault.path), _one_line(fault.message)) for fault in found.faults]


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_MESSAGE]
