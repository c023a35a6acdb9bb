"""Another plugin of the same name."""

from dataclasses import dataclass

from edge_agent.records import Sample
from edge_agent.sources.base import Source


class Pump(Source):
    """Never made."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """None."""

    def read(self, timeout: float) -> Sample | None:
        """Return nothing."""
        return None
