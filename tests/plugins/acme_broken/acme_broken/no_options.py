"""Its options name a type that does not exist."""

from dataclasses import dataclass

from edge_agent.records import Sample
from edge_agent.sources.base import Source


class Sensor(Source):
    """Never made."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        port: "SerialPort"  # type: ignore[name-defined]  # noqa: F821  that is what is wrong with it

    def read(self, timeout: float) -> Sample | None:
        """Return nothing."""
        return None
