"""Golden samples as a file: what is read again, and what is refused before it costs memory."""

import io
import struct
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.inference.golden import Golden, GoldenError, read_golden, write_golden

INPUT = np.arange(12, dtype=np.float32).reshape(3, 4)
OUTPUT = np.eye(3, dtype=np.float32)


def packed(path: Path, **content: Any) -> Path:
    """A file as numpy itself writes it."""
    with path.open("wb") as file:
        np.savez_compressed(file, **{"input": INPUT, "output_0": OUTPUT} | content)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(GoldenError) as caught:
        read_golden(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(left: Golden, right: Golden) -> bool:
    pairs = zip((left.input, *left.outputs), (right.input, *right.outputs), strict=True)
    return left.labels == right.labels and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs
    )


@st.composite
def samples(draw: st.DrawFn) -> Golden:
    count = draw(st.integers(1, 5))
    shapes = arrays.array_shapes(min_dims=0, max_dims=3, max_side=3).map(lambda shape: (count, *shape))
    # A missing value of a sample is NaN.
    pictures = arrays.arrays(np.uint8, (count, 2, 1, 3))
    entry = draw(pictures | arrays.arrays(np.float32, shapes))
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    outputs = draw(st.lists(arrays.arrays(np.float32, shapes, elements=finite), min_size=1, max_size=3))
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=5)
    labels = draw(st.just([]) | st.lists(text, min_size=count, max_size=count))
    return Golden(entry, tuple(outputs), tuple(labels))


@given(samples())
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, wanted: Golden) -> None:
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    write_golden(path, wanted)
    first = path.read_bytes()
    assert same(read_golden(path), wanted)
    write_golden(path, wanted)
    assert path.read_bytes() == first


def test_a_file_of_numpy_itself_is_read(tmp_path: Path) -> None:
    pictures = np.asfortranarray(np.arange(36, dtype=np.uint8).reshape(3, 2, 2, 3))
    path = packed(tmp_path / "golden.npz", input=pictures, output_1=OUTPUT[:, :1], label=np.array(["a", "", "b"]))
    found = read_golden(path)
    assert same(found, Golden(pictures, (OUTPUT, OUTPUT[:, :1]), ("a", "", "b")))
    assert len(found) == 3


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"input": np.float32(1.0)}, "has 0 samples, where 1 to 1000 are wanted"),
    ({"input": np.zeros((1001, 1), np.uint8)}, "has 1001 samples, where 1 to 1000 are wanted"),
    ({"input": INPUT.astype(np.float64)}, "input is no array of uint8, float32 or text"),
    ({"input": INPUT.astype(">f4")}, "input is no array of uint8, float32 or text"),
    ({"input": np.array([{}], object)}, "input is no array of uint8, float32 or text"),
    ({"input": np.zeros(3, [("a", "<f4")])}, "input is no array of uint8, float32 or text"),
    ({"input": np.array(["a", "b", "c"])}, "input is <U1 of shape 3, where pictures, uint8 (N, height, width, 3), or"),
    ({"input": np.zeros((3, 0), np.float32)}, "input is float32 of shape 3x0, where pictures, uint8"),
    ({"input": np.zeros((3, 2, 2, 1), np.uint8)}, "input is uint8 of shape 3x2x2x1, where pictures, uint8"),
    ({"output_0": OUTPUT[:2]}, "output_0 is float32 of shape 2x3, where 3 rows of float32 are wanted"),
    ({"output_0": OUTPUT.astype(np.uint8)}, "output_0 is uint8 of shape 3x3, where 3 rows of float32 are wanted"),
    ({"output_0": np.full((3, 1), np.inf, np.float32)}, "output_0 holds values that are no numbers"),
    ({"output_2": OUTPUT}, "has no output_1"),
    ({"label": np.array(["a"])}, "has 3 samples, and 1 labels"),
    ({"label": np.array([], np.str_)}, "has 3 samples, and 0 labels"),
    ({"label": np.array([["a"], ["b"], ["c"]])}, "label is no list of text"),
    ({"label": np.zeros(3, np.uint8)}, "label is no list of text"),
    ({"label": np.array([97, 0x110000, 98], np.uint32).view("<U1")}, "label is no list of text"),
    ({"label": np.array([97, 0xD800, 98], np.uint32).view("<U1")}, "label is no list of text"),
    ({"../output_0": OUTPUT}, "holds '../output_0.npy', which is not one of input, output_0, ..., label"),
    ({"input\x1b[2J": OUTPUT}, r"holds 'input\x1b[2J.npy', which is not one of"),
]


@pytest.mark.parametrize(("content", "reason"), WRONG, ids=[reason[:40] for _, reason in WRONG])
def test_what_is_wrong_is_told_in_a_line(tmp_path: Path, content: dict[str, Any], reason: str) -> None:
    assert refusal(packed(tmp_path / "golden.npz", **content)).startswith(reason)


def test_files_that_are_none(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.npz") == "cannot be read: No such file or directory"
    assert refusal(tmp_path) == "cannot be read: Is a directory"
    for content in (b"", b"PK", b"x" * 100):
        (tmp_path / "x").write_bytes(content)
        assert refusal(tmp_path / "x") == "is no .npz file as numpy.savez writes it, or is cut short"
    whole = packed(tmp_path / "golden.npz").read_bytes()
    (tmp_path / "x").write_bytes(whole[:-5])
    assert refusal(tmp_path / "x") == "is no .npz file as numpy.savez writes it, or is cut short"


def test_nothing_that_could_not_be_read_again_is_written(tmp_path: Path) -> None:
    for wrong in (
        Golden(INPUT, ()),
        Golden(INPUT[:0], (OUTPUT[:0],)),
        Golden(INPUT, (OUTPUT,) * 65),
        Golden(INPUT, (OUTPUT,), ("a",)),
        Golden(np.zeros((17, 1 << 20), np.float32), (np.zeros((17, 1), np.float32),)),
    ):
        with pytest.raises(GoldenError):
            write_golden(tmp_path / "golden.npz", wrong)
        assert not (tmp_path / "golden.npz").exists()


# ------------------------------------------------------------------------------------------ what would cost memory


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = packed(tmp_path / "golden.npz", input=np.zeros((3, 32 << 20), np.uint8))
    assert path.stat().st_size < 1 << 20
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("something was unpacked"))
    assert refusal(path) == "would take 96 MiB of memory, more than 64"


def test_a_file_is_in_memory_once(tmp_path: Path) -> None:
    size = 16 << 20
    noise = np.random.default_rng(1).integers(0, 256, (4, 1024, size // 4 // 1024 // 3, 3), np.uint8)
    path = packed(tmp_path / "golden.npz", input=noise, output_0=np.zeros((4, 1), np.float32))
    tracemalloc.start()
    try:
        read_golden(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * size


def test_a_directory_that_understates_its_files_does_not_help(tmp_path: Path) -> None:
    path = packed(tmp_path / "golden.npz", input=np.zeros((3, 32 << 20), np.uint8))
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = struct.pack("<I", 128 + 300)  # uncompressed size
    path.write_bytes(data)
    assert refusal(path) == "is damaged: Bad CRC-32 for file 'input.npy'"


def test_a_header_that_overstates_its_array_does_not_help(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "golden.npz", "w") as archive:
        header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (999999999, 999999999), }\n"
        archive.writestr("input.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    assert refusal(tmp_path / "golden.npz") == "input has another size than its shape says"


def test_a_large_directory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("the directory was read"))
    for patch in (
        struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 67, 67, 100, 0, 0),
        struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, 1 << 30, 0, 0),
        struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1) + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, 100, 0, 0),
    ):
        (tmp_path / "golden.npz").write_bytes(b"x" * 100 + patch)
        assert refusal(tmp_path / "golden.npz") == "holds something else than up to 66 arrays"


def whole_file() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, input=INPUT, output_0=OUTPUT, label=np.array(["a", "b", "c"]))
    return file.getvalue()


WHOLE = whole_file()


@example([(526, 1)])  # the directory's entry of the labels is swallowed by the one before it
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_damage_is_an_error_and_no_crash(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    data = bytearray(WHOLE)
    for at, value in changes:
        data[at] = value
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    path.write_bytes(data)
    try:
        found = read_golden(path)
    except GoldenError:
        return
    # What is not noticed has not touched the arrays: each has its checksum.
    assert same(found, Golden(INPUT, (OUTPUT,), ("a", "b", "c")))
