"""Labels of classes: given inline, one per line, or as `index label` lines as Coral's tools write them."""

import re
from collections.abc import Sequence
from pathlib import Path

MAX_FILE = 4 * 1024 * 1024
MAX_LENGTH = 200
_INDEXED = re.compile(r"\s*(\d{1,6})(?:\s*:\s*|\s+)(\S.*)")


class LabelsError(ValueError):
    """The labels cannot be used; the message says why and where."""


def read_labels(path: Path) -> list[str]:
    """Read a labels file. Raises LabelsError naming the file and, where it can, the line."""
    try:
        if path.stat().st_size > MAX_FILE:
            raise LabelsError(f"{path}: larger than {MAX_FILE // 1024 // 1024} MB, which is no labels file")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise LabelsError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LabelsError(f"{path}: not a text file in UTF-8") from error
    return parse_labels(text, str(path))


def parse_labels(text: str, name: str) -> list[str]:
    """Return the labels of a file's text, in the order of the model's outputs.

    If every line begins with a number, the numbers say which output a label belongs to; outputs without a line
    are named by their number. Otherwise each line is one label.
    """
    lines = [line.strip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise LabelsError(f"{name}: holds no labels")
    indexed = [_INDEXED.fullmatch(line) for line in lines if line]
    if all(indexed):
        return _from_index({int(match[1]): match[2] for match in indexed if match}, len(indexed), name)
    for number, line in enumerate(lines, start=1):
        if not line:
            raise LabelsError(f"{name}:{number}: an empty line between labels")
    return [clean(line) for line in lines]


def _from_index(labels: dict[int, str], lines: int, name: str) -> list[str]:
    if len(labels) != lines:
        raise LabelsError(f"{name}: the same number stands before two labels")
    size = max(labels) + 1
    if size > 10 * lines + 1000:
        raise LabelsError(f"{name}: {lines} labels, but their numbers go up to {size - 1}")
    return [clean(labels.get(index, str(index))) for index in range(size)]


def clean(label: str) -> str:
    """Make a label safe to show: no control characters, bounded length."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in label)[:MAX_LENGTH]


def fit_labels(labels: Sequence[str] | None, classes: int) -> list[str]:
    """Return one label per class; without labels the classes are named by their number.

    Raises LabelsError when there are more or fewer labels than classes.
    """
    if labels is None:
        return [str(index) for index in range(classes)]
    if len(labels) != classes:
        hint = ""
        if len(labels) == classes - 1:
            hint = "; is the first label, 'background', missing?"
        raise LabelsError(f"{len(labels)} labels, but the model has {classes} outputs{hint}")
    return [clean(label) for label in labels]


def is_background(label: str) -> bool:
    """Tell whether the label stands for what is no object, as TensorFlow's lists call their first class."""
    return label.strip().lower() in {"???", "background", "__background__"}


def object_labels(labels: Sequence[str]) -> list[str]:
    """Return the labels by the class numbers of TFLite_Detection_PostProcess, which do not count the background.

    Lists of COCO's classes have holes, which are named by their number.
    """
    first = 1 if labels and is_background(labels[0]) else 0
    return [str(index) if label == "???" else clean(label) for index, label in enumerate(labels[first:])]
