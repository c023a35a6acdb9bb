"""How a line of a text file becomes numbers: CSV in its many dialects, and JSON lines.

CSV
  The delimiter is a tab, semicolon, comma or blanks, whichever cuts the first lines into equally many cells.
  Beside semicolons and tabs, numbers may have a decimal comma. A first row without any number is a header; so is
  0, 1, 2, ... as pandas numbers its columns. Every column is a value, except those the header calls `label` or
  `timestamp`, or gives no name at all. A cell with a JSON list ("[0.1, 0.2]") holds all values of the row.
  An empty cell is a value that is not there: NaN.
JSON lines
  A list of numbers (nested, if the sample has more than one dimension), or an object that has one under `data`,
  `values` or `features`. null is NaN.
"""

import csv
import json
import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol, Self

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

# A longer line is no row of values but a file of another kind; it must not fill the memory.
MAX_LINE = 16 * 1024 * 1024
# The csv module refuses cells above 128 KiB: a list of some 6,000 values.
csv.field_size_limit(MAX_LINE)

LIST_KEYS = ("data", "values", "features")
NO_VALUES = ("", "label", "timestamp")

_PYTHON_SPELLING = {"nan": "NaN", "inf": "Infinity"}


class Format(Protocol):
    """What is known of a text file: whether its first row is a header, and how a row is read."""

    @property
    def header(self) -> bool:
        """Whether the first row names the columns."""

    def values(self, text: str) -> Floats:
        """Return the values of a row. Raises ValueError saying what is wrong with it."""


def recognise(lines: list[str]) -> Format:
    """Choose the format from the first lines of a file, at least one, none of them empty. Raises ValueError."""
    if lines[0].strip() in {"[", "{"}:
        raise ValueError("the JSON is spread over several lines; each sample must stand in one line of its own")
    return JsonFormat() if lines[0].lstrip()[0] in "[{" else CsvFormat.recognise(lines)


class JsonFormat:
    """JSON lines."""

    header = False

    def values(self, text: str) -> Floats:
        """Return the values of a row, in the shape its lists have."""
        return _from_json(text)


@dataclass(frozen=True)
class CsvFormat:
    """One dialect of CSV. `columns` are those with values, None for all; `list_column` has them as a JSON list."""

    delimiter: str
    header: bool
    width: int
    columns: list[int] | None
    list_column: int | None
    decimal_comma: bool

    @classmethod
    def recognise(cls, lines: list[str]) -> Self:
        """Choose the dialect from the first lines."""
        delimiter = _delimiter(lines)
        first, *others = (_split(line, delimiter) for line in lines)
        header = _is_header(first)
        rows = others if header else [first, *others]
        named = [i for i, name in enumerate(first) if name.strip().casefold() not in NO_VALUES]
        columns = named if header and len(named) < len(first) else None
        lists = (i for cells in rows[:1] for i, cell in enumerate(cells) if cell.lstrip().startswith("["))
        has_points = any("." in cell for cells in rows for cell in _pick(cells, columns))
        return cls(
            delimiter=delimiter,
            header=header,
            width=len(first),
            columns=columns,
            list_column=next(lists, None),
            decimal_comma=delimiter != "," and not has_points,
        )

    def values(self, text: str) -> Floats:
        """Return the values of a row."""
        cells = _split(text, self.delimiter)
        if len(cells) != self.width:
            what = "columns" if self.header or self.list_column is not None else "values"
            raise ValueError(f"expected {self.width} {what} as in the first row, found {len(cells)}")
        if self.list_column is not None:
            return _from_json(cells[self.list_column])
        cells = _pick(cells, self.columns)
        if self.decimal_comma:
            cells = [cell.replace(",", ".") for cell in cells]
        return _array(_floats(cells))


def _pick(cells: list[str], columns: list[int] | None) -> list[str]:
    return cells if columns is None else [cells[i] for i in columns if i < len(cells)]


def _delimiter(lines: list[str]) -> str:
    for candidate in ("\t", ";", ",", " "):
        widths = {len(_split(line, candidate)) for line in lines}
        if len(widths) == 1 and widths != {1}:
            return candidate
    # One of the first rows is short or long: then what the very first has decides.
    return next((candidate for candidate in "\t;," if candidate in lines[0]), ",")


def _split(text: str, delimiter: str) -> list[str]:
    if '"' in text:
        # A stray carriage return makes no CSV: then the quotes stay, and the cell is no number.
        with suppress(csv.Error):
            return next(csv.reader([text], delimiter=delimiter, skipinitialspace=True))
    return text.split() if delimiter == " " else text.split(delimiter)


def _is_header(cells: list[str]) -> bool:
    names = [cell.strip() for cell in cells if cell.strip()]
    if len(names) > 1 and names == [str(i) for i in range(len(names))]:
        return True
    return bool(names) and not any(_is_value(name) for name in names)


def _is_value(cell: str) -> bool:
    if cell.startswith("["):
        return True
    try:
        float(cell.replace(",", "."))
    except ValueError:
        return False
    return True


def _floats(cells: list[str]) -> list[float]:
    try:
        return [float(cell) for cell in cells]
    except ValueError:
        return [_float(cell) for cell in cells]


def _float(cell: str) -> float:
    try:
        return float(cell) if cell.strip() else math.nan
    except ValueError:
        raise ValueError(f"'{cell:.40}' is no number") from None


class _Keyed(msgspec.Struct):
    data: list[float | None] | None = None
    values: list[float | None] | None = None
    features: list[float | None] | None = None


_FLAT = msgspec.json.Decoder(list[float | None])
_KEYED = msgspec.json.Decoder(_Keyed)


def _from_json(text: str) -> Floats:
    try:
        if text.startswith("["):
            return _array(_FLAT.decode(text))
        keyed = _KEYED.decode(text)
        return _array(keyed.data or keyed.values or keyed.features or _lists(text))
    except msgspec.DecodeError:
        # Nested lists, NaN as most programs write it, or an error that deserves a better message.
        return _array(_lists(text))


def _lists(text: str) -> object:
    spelled = re.sub(r"\b(nan|inf)\b", lambda match: _PYTHON_SPELLING[match[1]], text)
    try:
        value = json.loads(spelled)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON: {error.msg} at column {error.pos + 1}") from None
    except RecursionError:
        raise ValueError("no list of numbers: its lists are too deep") from None
    if isinstance(value, dict):
        value = next((value[key] for key in LIST_KEYS if key in value), None)
    if not isinstance(value, list):
        keys = f"{', '.join(LIST_KEYS[:-1])} or {LIST_KEYS[-1]}"
        raise ValueError(f"expected a list of numbers, or an object that has one under {keys}")  # noqa: TRY004
    return _numbers(value)


def _numbers(value: object) -> object:
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        shown = value if isinstance(value, str) else json.dumps(value)
        raise ValueError(f"'{shown:.40}' is no number")  # noqa: TRY004
    return value


def _array(numbers: object) -> Floats:
    try:
        # What is too large for float32 becomes infinite, and is counted as clipped further on.
        with np.errstate(over="ignore"):
            array = np.array(numbers, dtype=np.float32)
    except OverflowError:
        raise ValueError("a whole number is too large") from None
    except ValueError:
        raise ValueError("its inner lists differ in length") from None
    if not array.size:
        raise ValueError("it has no values")
    return array


def shape_words(shape: tuple[int, ...]) -> str:
    """Return a shape as it is written in messages: 3 x 128."""
    return " x ".join(str(length) for length in shape)
