"""Reads files of samples row by row, whatever their size.

The format is told from the content: the signature of a .npy file, else a line of JSON, else CSV. A place in a file
is text: `LINE:OFFSET` in a text file, so that going on at the end of a large file takes no longer than at its
start, and the row's number in a .npy file.
"""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from edge_agent.sources.formats import MAX_LINE, Format, recognise, shape_words

NPY_SIGNATURE = b"\x93NUMPY"
# So many lines tell the dialect; among so many rows one must be usable; a head longer than that is cut short.
DIALECT_LINES = 10
PROBE_ROWS = 1000
HEAD_BYTES = 1024 * 1024


class BadRow(ValueError):
    """A row that cannot be used. The message says which, and what is wrong with it."""


class Rows(Protocol):
    """The rows of one pass over a file."""

    @property
    def place(self) -> str:
        """Where the row last read ends."""

    def go_on_after(self, place: str) -> None:
        """Continue behind a place of an earlier pass; from the start, if there is no such place any more."""

    def read(self) -> npt.NDArray[Any] | None:
        """Return the next row, None at the end. Raises BadRow, OSError or ValueError (the file is unusable)."""

    def pass_over(self) -> str | None:
        """Go on behind the next row, and say which it was; None at the end. Raises OSError or ValueError."""

    def close(self) -> None:
        """Close the file."""


def open_rows(path: Path) -> Rows:
    """Open a file of samples. Raises OSError, or ValueError when it has no row of values."""
    with path.open("rb") as file:
        is_array = file.read(len(NPY_SIGNATURE)) == NPY_SIGNATURE
    return ArrayRows(path) if is_array else TextRows(path)


class TextRows:
    """CSV or JSON lines. Rows are float32 and have the shape of the first usable row of the file."""

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("rb")
        self._line = 0
        self._offset = 0
        self._header = 0
        self._shape: tuple[int, ...] | None = None
        try:
            self._format = self._recognise()
            self._shape = self._first_shape()
        except BaseException:
            self.close()
            raise

    @property
    def place(self) -> str:
        """Line number and byte offset behind the row last read."""
        return f"{self._line}:{self._offset}"

    def go_on_after(self, place: str) -> None:
        """Continue behind a place."""
        line, _, offset = place.partition(":")
        known = line.isdecimal() and offset.isdecimal() and self._ends_a_line(int(offset))
        self._seek(*((int(line), int(offset)) if known else (0, 0)))

    def read(self) -> npt.NDArray[Any] | None:
        """Return the next row."""
        text = self._next_line()
        if text is None:
            return None
        try:
            values = self._format.values(text)
        except ValueError as error:
            raise BadRow(f"{self._name}:{self._line}: {error}") from None
        if self._shape not in {None, values.shape}:
            expected, found = shape_words(self._shape or ()), shape_words(values.shape)
            raise BadRow(f"{self._name}:{self._line}: expected {expected} values as in the first row, found {found}")
        return values

    def pass_over(self) -> str | None:
        """Go on behind the next line that has something in it."""
        return f"{self._name}:{self._line}" if self._next_line() is not None else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _ends_a_line(self, offset: int) -> bool:
        self._file.seek(max(offset - 1, 0))
        around = self._file.read(2)
        # The last line may do without its newline.
        return around[:1] == b"\n" or len(around) == 1

    def _seek(self, line: int, offset: int) -> None:
        self._file.seek(offset)
        self._line, self._offset = line, offset

    def _next_line(self) -> str | None:
        while line := self._file.readline(MAX_LINE + 1):
            self._line += 1
            self._offset += len(line)
            if len(line) > MAX_LINE:
                raise ValueError(f"{self._name}:{self._line}: the line is longer than {MAX_LINE >> 20} MiB")
            text = line.decode("utf-8", "replace").rstrip("\r\n").removeprefix("\ufeff")
            if self._line != self._header and text.strip():
                return text
        return None

    def _recognise(self) -> Format:
        head: list[str] = []
        first = 0
        while len(head) < DIALECT_LINES and self._offset < HEAD_BYTES:
            text = self._next_line()
            if text is None:
                break
            first = first or self._line
            head.append(text)
        if not head:
            raise ValueError(f"{self._name} is empty")
        if any("\0" in text for text in head):
            raise ValueError(f"{self._name} is neither CSV or JSON lines in UTF-8 nor a .npy file")
        try:
            found = recognise(head)
        except ValueError as error:
            raise ValueError(f"{self._name}:{first}: {error}") from None
        self._header = first if found.header else 0
        return found

    def _first_shape(self) -> tuple[int, ...]:
        self._seek(0, 0)
        reason = f"{self._name} has no row of values"
        for number in range(PROBE_ROWS):
            try:
                values = self.read()
            except BadRow as error:
                reason = reason if number else f"{reason}; the first is {error}"
                continue
            if values is None:
                break
            self._seek(0, 0)
            return values.shape
        raise ValueError(reason)


class ArrayRows:
    """A .npy file, mapped into memory: one sample for each entry of the first axis.

    Rows are uint8 if they are images of shape (height, width, 3), otherwise float32.
    """

    def __init__(self, path: Path) -> None:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"{path.name} is no complete .npy file of numbers: {error}") from error
        if array.dtype.kind not in "biuf":
            raise ValueError(f"{path.name} holds {array.dtype}; expected whole numbers or floating point")
        if array.ndim == 0 or not array.size:
            raise ValueError(f"{path.name} has no rows")
        is_images = array.dtype == np.uint8 and array.shape[3:] == (3,)
        self._dtype = np.uint8 if is_images else np.float32
        self._array = array if array.ndim > 1 else array[:, np.newaxis]
        self._row = 0

    @property
    def place(self) -> str:
        """How many rows were read."""
        return str(self._row)

    def go_on_after(self, place: str) -> None:
        """Continue behind a place."""
        known = place.isdecimal() and int(place) <= len(self._array)
        self._row = int(place) if known else 0

    def read(self) -> npt.NDArray[Any] | None:
        """Return a copy of the next row."""
        if self._row >= len(self._array):
            return None
        with np.errstate(over="ignore"):
            values = np.array(self._array[self._row], dtype=self._dtype)
        self._row += 1
        return values

    def pass_over(self) -> str | None:
        """Go on behind the next row."""
        if self._row >= len(self._array):
            return None
        self._row += 1
        return f"row {self._row}"

    def close(self) -> None:
        """Let go of the mapping."""
        self._array = np.empty((0, 1))
