"""Labels as people write them."""

from pathlib import Path
from typing import Any

import pytest

from edge_agent.inference.interpreter.labels import (
    MAX_FILE,
    LabelsError,
    fit_labels,
    is_background,
    object_labels,
    parse_labels,
    read_labels,
)


def test_one_label_a_line(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("normal\nwarning\r\n failure \n\n")
    assert read_labels(file) == ["normal", "warning", "failure"]


@pytest.mark.parametrize("text", ["0 person\n2 dog\n", "0  person\n2: dog\n", "\ufeff0 person\n2 dog".lstrip("\ufeff")])
def test_numbered_labels_name_their_output(text: Any) -> None:
    assert parse_labels(text, "labels.txt") == ["person", "1", "dog"]


def test_labels_that_only_sometimes_begin_with_a_number_are_labels() -> None:
    assert parse_labels("3 phase motor\nidle\n", "labels.txt") == ["3 phase motor", "idle"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "labels.txt: holds no labels"),
        ("a\n\nb\n", "labels.txt:2: an empty line between labels"),
        ("0 a\n0 b\n", "labels.txt: the same number stands before two labels"),
        ("0 a\n99999 b\n", "labels.txt: 2 labels, but their numbers go up to 99999"),
    ],
)
def test_what_is_wrong_is_said(text: Any, message: Any) -> None:
    with pytest.raises(LabelsError) as caught:
        parse_labels(text, "labels.txt")
    assert str(caught.value) == message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match=r"nothing\.txt: No such file or directory"):
        read_labels(tmp_path / "nothing.txt")
    binary = tmp_path / "model.tflite"
    binary.write_bytes(b"TFL3\xff\xfe\x80")
    with pytest.raises(LabelsError, match="not a text file in UTF-8"):
        read_labels(binary)
    huge = tmp_path / "huge.txt"
    with huge.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(LabelsError, match="larger than 4 MB"):
        read_labels(huge)


def test_labels_fit_or_are_refused() -> None:
    assert fit_labels(None, 2) == ["0", "1"]
    assert fit_labels(["a", "b"], 2) == ["a", "b"]
    with pytest.raises(LabelsError) as caught:
        fit_labels(["a", "b"], 3)
    assert str(caught.value) == "2 labels, but the model has 3 outputs; is the first label, 'background', missing?"
    with pytest.raises(LabelsError) as caught:
        fit_labels(["a", "b", "c"], 2)
    assert str(caught.value) == "3 labels, but the model has 2 outputs"


def test_control_characters_never_reach_a_terminal() -> None:
    assert fit_labels(["\x1b[31mred\x07", "b"], 2)[0] == "\ufffd[31mred\ufffd"


def test_objects_are_numbered_without_the_background() -> None:
    assert object_labels(["person", "bicycle"]) == ["person", "bicycle"]
    assert object_labels(["???", "person", "???", "car\x07"]) == ["person", "1", "car\ufffd"]
    assert object_labels(["background", "person"]) == ["person"]
    assert object_labels(parse_labels("0 person\n2 car\n", "coco.txt")) == ["person", "1", "car"]
    assert object_labels([]) == []
    assert not is_background("a background")
