"""Which kinds of tasks there are, for what is about some of them alone."""

from collections.abc import Sequence

from edge_agent.settings.showing import show

SCORED = ("classification", "detection")
VALUED = ("regression", "anomaly")
# A detector always has something to offer; below this it is hardly ever an object. Coral's examples begin here, too.
OBJECT_THRESHOLD = 0.4


def needs(tasks: Sequence[str], task: str) -> str:
    """Say that a key is for these tasks, and not for the one in the settings."""
    *others, last = map(show, tasks)
    wanted = f"{', '.join(others)} or {last}" if others else last
    return f"needs [inference].task {wanted}, not {show(task)}"
