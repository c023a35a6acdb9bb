"""Learns from lines as they come how they become values: what `rows` does for files, which can be read twice.

The first line that has values decides the format (see `formats`) and the shape. A program may greet before it measures,
and of what comes from a serial port the first line is often cut short, so what was learned is given up after some lines
that do not fit.
"""

from contextlib import suppress

from edge_agent.sources.formats import Floats, Format, recognise, shape_words

# So many lines in a row that do not fit mean that what was learned is wrong, or not right any more.
PATIENCE = 3


class Dialect:
    """Of one run of a program."""

    def __init__(self) -> None:
        self._header: str | None = None
        self._format: Format | None = None
        self._shape: tuple[int, ...] = ()
        self._strangers = 0

    def values(self, text: str) -> Floats | None:
        """Return the values of a line that is not empty, None for a header. Raises ValueError."""
        if self._format is None:
            return self._learn(text)
        try:
            values = self._fitting(self._format, text)
        except ValueError:
            self._strangers += 1
            if self._strangers >= PATIENCE:
                self._format = None
            raise
        self._strangers = 0
        return values

    def _fitting(self, found: Format, text: str) -> Floats:
        values = found.values(text)
        if values.shape != self._shape:
            expected, came = shape_words(self._shape), shape_words(values.shape)
            raise ValueError(f"expected {expected} values as in the lines before, found {came}")
        return values

    def _learn(self, text: str) -> Floats | None:
        header, self._header = self._header, None
        if header is not None:
            with suppress(ValueError):  # no header then, but a greeting
                return self._adopt(recognise([header, text]), text)
        found = recognise([text])
        if not found.header:
            return self._adopt(found, text)
        self._header = text
        if header is not None:
            raise ValueError(f"'{text:.40}' has no values")
        return None

    def _adopt(self, found: Format, text: str) -> Floats:
        values = found.values(text)
        self._format, self._shape, self._strangers = found, values.shape, 0
        return values
