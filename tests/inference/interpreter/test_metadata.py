"""What model files say of themselves, and what becomes of it when they are damaged."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.inference.interpreter.flatbuffer import DamagedError, Table
from edge_agent.inference.interpreter.metadata import Description, describe
from edge_agent.inference.interpreter.model import LoadedModel, build
from edge_agent.inference.latencies import StageLatencies
from edge_agent.inference.progress import ProgressPage, Reporter, Track
from edge_agent.inference.protocol import ModelOptions
from edge_agent.inference.runtime.runtimes import find_runtime
from edge_agent.records import ModelFile, Result, Sample
from tests.inference.conftest import DEMO_MODEL
from tests.inference.synthetic import Builder, Spec, slices, with_metadata

AXIS_LABELS, VALUE_LABELS, VOCABULARY = 2, 3, 5
LABELS = b"cold\nwarm\nhot\n"
LEFT_OUT = "the labels packed in the model are left out: "


def classifier(entry: Spec | None = None) -> Builder:
    return slices(entry or Spec("x", (1, 3)), [Spec("y", (1, 3))])


def described(content: bytes, folder: Path) -> Description:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return describe(str(path))


def built(content: bytes, folder: Path, release: list[str] | None = None, **options: Any) -> LoadedModel:
    path = folder / "model.tflite"
    path.write_bytes(content)
    model = ModelFile(str(path), "m", "v1", release)
    return build(find_runtime(), model, ModelOptions(**options), None, root=Path("/nowhere"))


def run(model: LoadedModel, data: Any) -> Result:
    page = ProgressPage.create()
    result = model.run(Sample(data, 1), Reporter(page, Track.INFERENCE), StageLatencies())
    page.close()
    model.close()
    return result


def names(model: LoadedModel) -> list[str]:
    return [score.label for score in run(model, np.array([0.1, 0.2, 0.7], np.float32)).scores]


# ------------------------------------------------------------------------------------------ what is there


def test_a_model_that_says_nothing(tmp_path: Path) -> None:
    assert described(classifier().bytes(), tmp_path) == Description()


def test_the_signature_names_the_demo_models_tensors() -> None:
    found = describe(str(DEMO_MODEL))
    assert list(found.signature.values()) == ["keras_tensor_10", "output_0"]
    assert found.remarks == []


def test_signature_names_show_in_raw_outputs_and_several_values(tmp_path: Path) -> None:
    model = slices(Spec("x", (1, 3)), [Spec("Identity", (1,)), Spec("Identity_1", (1, 2))])
    model.signature({"x": 0}, {"pressure\n": 0, "flow": 1})
    outputs = run(built(model.bytes(), tmp_path, task="raw"), np.zeros(3, np.float32)).outputs
    assert [output.name for output in outputs or []] == ["pressure\N{REPLACEMENT CHARACTER}", "flow"]


@pytest.mark.parametrize("kind", [AXIS_LABELS, VALUE_LABELS])
def test_labels_in_the_file_name_the_classes(tmp_path: Path, kind: int) -> None:
    content = with_metadata(classifier(), files={"labels.txt": LABELS}, labels=[("labels.txt", kind)])
    model = built(content, tmp_path)
    assert model.remarks == ()
    assert names(model) == ["hot", "warm", "cold"]


def test_the_release_goes_before_the_settings_and_these_before_the_file(tmp_path: Path) -> None:
    content = with_metadata(classifier(), files={"l": LABELS}, labels=[("l", AXIS_LABELS)])
    assert names(built(content, tmp_path, labels=["a", "b", "c"])) == ["c", "b", "a"]
    assert names(built(content, tmp_path, ["x", "y", "z"], labels=["a", "b", "c"])) == ["z", "y", "x"]


def test_a_file_of_another_kind_holds_no_labels(tmp_path: Path) -> None:
    content = with_metadata(classifier(), files={"v": LABELS}, labels=[("v", VOCABULARY)])
    assert described(content, tmp_path) == Description()


def image_model(folder: Path, mean: list[float], std: list[float], **options: Any) -> tuple[LoadedModel, Any]:
    """The model, and the values that it sees of an image of 10, 20, 30."""
    entry = Spec("image", (1, 2, 2, 3))
    content = with_metadata(slices(entry, [Spec("seen", (1, 12))]), mean=mean, std=std)
    model = built(content, folder, task="raw", **options)
    pixels = np.tile(np.array([10, 20, 30], np.uint8), (2, 2, 1))
    [seen] = run(model, pixels).outputs or []
    return model, seen.values[:3]


def test_the_files_normalisation_counts_where_the_settings_say_nothing(tmp_path: Path) -> None:
    model, seen = image_model(tmp_path, [10.0], [2.0])
    assert seen == [0.0, 5.0, 10.0]
    assert model.remarks == ()
    assert image_model(tmp_path, [10, 20, 30], [1, 1, 1])[1] == [0.0, 0.0, 0.0]
    assert image_model(tmp_path, [10.0], [2.0], image_mean=0.0, image_std=1.0)[1] == [10.0, 20.0, 30.0]
    assert image_model(tmp_path, [], [])[1] == pytest.approx([(10 - 127.5) / 127.5, -107.5 / 127.5, -97.5 / 127.5])


@pytest.mark.parametrize(("mean", "std"), [([1.0], [0.0]), ([float("nan")], [1.0]), ([1.0], []), ([1, 2], [1, 2])])
def test_a_normalisation_that_cannot_be_is_left_out(tmp_path: Path, mean: Any, std: Any) -> None:
    model, seen = image_model(tmp_path, mean, std)
    assert seen[0] == pytest.approx((10 - 127.5) / 127.5)
    assert model.remarks
    assert all(remark.startswith("the normalisation in the model is left out: ") for remark in model.remarks)


# ------------------------------------------------------------------------------------------ what is damaged


def refused_labels(content: bytes, folder: Path) -> str:
    model = built(content, folder)
    assert names(model) == ["2", "1", "0"]
    [remark] = model.remarks
    return remark


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"a\nb\nc\nd\n", "4 labels, but the model has 3 outputs"),
        (b"", "l.txt: holds no labels"),
        (b"a\xff\xfe\n", "l.txt: not a text file in UTF-8"),
        (b"a" * (4 * 1024 * 1024 + 1), "l.txt: larger than 4 MB, which is no labels file"),
    ],
)
def test_labels_that_cannot_be_used_are_left_out_with_a_remark(tmp_path: Path, text: bytes, reason: str) -> None:
    content = with_metadata(classifier(), files={"l.txt": text}, labels=[("l.txt", AXIS_LABELS)])
    assert refused_labels(content, tmp_path) == LEFT_OUT + reason


def test_an_archive_that_is_not_there_or_not_whole(tmp_path: Path) -> None:
    whole = with_metadata(classifier(), files={"l": LABELS}, labels=[("l", AXIS_LABELS)])
    start = whole.rindex(b"PK\x03\x04")
    cases = {
        "absent": (whole[:start], "the model has no archive at its end"),
        "cut": (whole[:-10], "the model has no archive at its end"),
        "other": (
            with_metadata(classifier(), files={"m": LABELS}, labels=[("l\x1b", 2)]),
            "l\ufffd is not in the model's",
        ),
        "damaged": (whole[: start + 36] + b"\xff\xff" + whole[start + 38 :], "l: "),
    }
    for name, (content, reason) in cases.items():
        assert refused_labels(content, tmp_path).startswith(LEFT_OUT + reason), name


def test_an_archive_with_too_many_files_is_not_even_listed(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        for number in range(1001):
            packed.writestr(f"{number}", "")
    content = with_metadata(classifier(), labels=[("0", AXIS_LABELS)]) + archive.getvalue()
    assert refused_labels(content, tmp_path) == f"{LEFT_OUT}the model's archive has 1001 files, which are no labels"


def peak(content: bytes, folder: Path) -> tuple[int, list[str]]:
    """How many bytes of memory it takes to read what the file says, and the remarks."""
    path = folder / "model.tflite"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        remarks = describe(str(path)).remarks
        return tracemalloc.get_traced_memory()[1], remarks
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_labels_that_unpack_to_gigabytes_take_a_few_megabytes(tmp_path: Path, method: int) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", method) as packed, packed.open("l", "w") as file:
        for _ in range(100):
            file.write(bytes(1_000_000))
    content = with_metadata(classifier(), labels=[("l", AXIS_LABELS)]) + archive.getvalue()
    assert len(archive.getvalue()) < 200_000
    memory, [remark] = peak(content, tmp_path)
    assert remark.startswith(f"{LEFT_OUT}l: ")
    assert memory < 16_000_000


def test_an_archive_may_claim_any_number_of_files(tmp_path: Path) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("l", LABELS)
        entry = packed.infolist()[0]
        packed.filelist = [entry] * 60_000
    made = bytearray(archive.getvalue())
    at = made.rindex(b"PK\x05\x06")
    made[at + 8 : at + 12] = struct.pack("<HH", 1, 1)
    model = with_metadata(classifier(), labels=[("l", AXIS_LABELS)])
    memory, [remark] = peak(model + made, tmp_path)
    assert remark == f"{LEFT_OUT}the model's archive is larger than one of labels"
    assert memory < 1_000_000
    # In the later format all these numbers stand elsewhere.
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("l", LABELS)
        packed.filelist = [packed.infolist()[0]] * 70_000
    later = bytearray(archive.getvalue())
    at = later.rindex(b"PK\x05\x06")
    later[at + 8 : at + 16] = struct.pack("<HHI", 0, 0, 0)
    memory, [remark] = peak(model + later, tmp_path)
    assert remark == f"{LEFT_OUT}the model's archive is larger than one of labels"
    assert memory < 1_000_000


def test_labels_do_not_bring_control_characters(tmp_path: Path) -> None:
    content = with_metadata(classifier(), files={"l": b"a\x07\nb\nc\n"}, labels=[("l", AXIS_LABELS)])
    assert described(content, tmp_path).labels == ["a\N{REPLACEMENT CHARACTER}", "b", "c"]


@pytest.mark.parametrize("damage", [lambda _: b"", lambda made: b"\0\0\0\0none" + made[8:], lambda made: made[:40]])
def test_damaged_metadata_is_left_out_with_a_remark(tmp_path: Path, damage: Any) -> None:
    content = with_metadata(classifier(), files={"l": LABELS}, labels=[("l", AXIS_LABELS)], damage=damage)
    model = built(content, tmp_path)
    assert names(model) == ["2", "1", "0"]
    [remark] = model.remarks
    assert remark.startswith("the metadata of the model is damaged and left out: ")


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_no_damage_is_more_than_a_remark(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    whole = bytearray(with_metadata(classifier(), files={"l": LABELS}, labels=[("l", 2)], mean=[1.0], std=[2.0]))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 4))
        whole[at : at + 4] = data.draw(st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\x7f"]))
    found = described(bytes(whole), tmp_path_factory.getbasetemp())
    assert len(found.remarks) <= 2


def test_offsets_that_lead_out_of_the_buffer_are_noticed() -> None:
    for root in (8, 1000, 2**31 - 1, 2**32 - 1):
        with pytest.raises(DamagedError):
            Table.root(struct.pack("<I", root) + b"TFL3" + struct.pack("<i", -(2**31)) * 4, b"TFL3").table(0)
