import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, Source, SourceEnded, SourceError, build
from edge_agent.sources.recording import Recording
from edge_agent.sources.rows import open_rows
from edge_agent.testing import Clock

type_of_write = Callable[[str, str], Path]
type_of_read_all = Callable[[Source], list[Sample]]


def recording(path: Path, resume: str | None = None, **options: object) -> Recording:
    source = build(Recording, {"path": str(path)} | options)
    source.open(resume)
    return source


def values(path: Path, read_all: type_of_read_all) -> list[object]:
    source = recording(path)
    rows = [sample.data.tolist() for sample in read_all(source)]
    source.close()
    return rows


SAME = [[0.5, 1.0, 2.5], [-1.5, 0.0, 1000.0]]
SAME_IN_OTHER_WORDS = {
    "plain": "0.5,1,2.5\n-1.5,0,1e3\n",
    "no newline at the end": "0.5,1,2.5\n-1.5,0,1e3",
    "Windows": "\ufeff0.5,1,2.5\r\n-1.5,0,1e3\r\n",
    "empty lines": "\n\n0.5,1,2.5\n   \n\n-1.5,0,1e3\n\n",
    "blanks around": " 0.5 , 1, 2.5\n-1.5,0 ,1e3\n",
    "semicolons": "0.5;1;2.5\n-1.5;0;1e3\n",
    "decimal commas": "0,5;1;2,5\n-1,5;0;1000,0\n",
    "tabs": "0.5\t1\t2.5\n-1.5\t0\t1e3\n",
    "blanks": "0.5 1   2.5\n-1.5 0 1.000e+03\n",
    "quoted": '"0.5","1","2.5"\n"-1.5","0","1e3"\n',
    "quoted, with blanks": '"0.5", "1", "2.5"\n"-1.5", "0", "1e3"\n',
    "header": "x,y,z\n0.5,1,2.5\n-1.5,0,1e3\n",
    "header after empty lines": "\n\nx;y;z\n0.5;1;2.5\n-1.5;0;1e3\n",
    "pandas without index": "0,1,2\n0.5,1,2.5\n-1.5,0,1e3\n",
    "pandas with index": ",0,1,2\n0,0.5,1,2.5\n1,-1.5,0,1e3\n",
    "label": "x,y,z,Label\n0.5,1,2.5,normal\n-1.5,0,1e3,failure\n",
    "German logger": "Timestamp;x;y;z\n01.02.2026 10:00:00;0,5;1;2,5\n01.02.2026 10:00:01;-1,5;0;1000,0\n",
    "list in a cell": 'features,label\n"[0.5, 1, 2.5]",normal\n"[-1.5, 0, 1e3]",failure\n',
    "list in a cell, no header": '"[0.5, 1, 2.5]",normal\n"[-1.5, 0, 1e3]",failure\n',
    "JSON lines": "[0.5, 1, 2.5]\n\n[-1.5, 0, 1e3]\n",
    "JSON objects": '{"values": [0.5, 1, 2.5], "label": "normal"}\n{"values": [-1.5, 0, 1e3]}\n',
    "JSON under data": '{"t": 1, "data": [0.5, 1, 2.5]}\n {"t": 2, "data": [-1.5, 0, 1e3]}\n',
    "JSON under features": '{"features": [0.5, 1, 2.5]}\n{"features": [-1.5, 0, 1e3]}\n',
}


@pytest.mark.parametrize("text", SAME_IN_OTHER_WORDS.values(), ids=SAME_IN_OTHER_WORDS.keys())
def test_dialects(text: str, write: type_of_write, read_all: type_of_read_all) -> None:
    path = write("samples", text)
    build(Recording, {"path": str(path)})
    assert values(path, read_all) == SAME


def test_samples_are_float32(write: type_of_write) -> None:
    for text in ("1,2\n", "[1, 2]\n"):
        source = recording(write("samples", text))
        sample = source.read(1)
        assert sample is not None
        assert (sample.data.dtype.name, sample.data.shape) == ("float32", (2,))
        assert not source.live
        source.close()


@pytest.mark.parametrize(
    "text",
    [
        "a,b,c\n1,,3\n",
        "a,b,c\n1,NaN,3\n",
        "a,b,c\n1, ,3\n",
        "[1, null, 3]\n",
        "[1, NaN, 3]\n",
        '{"data": [1, NaN, 3]}\n',
        'features,label\n"[1, nan, 3]",normal\n',
    ],
)
def test_missing_values_become_nan(text: str, write: type_of_write, read_all: type_of_read_all) -> None:
    (row,) = values(write("samples", text), read_all)
    assert isinstance(row, list)
    assert row[0] == 1
    assert math.isnan(row[1])
    assert row[2] == 3


@pytest.mark.parametrize("text", ["1,1e39,-inf\n", "[1, 1e39, -Infinity]\n", '"[1, 1e999, -inf]"\n'])
def test_too_large_values_become_infinite(text: str, write: type_of_write, read_all: type_of_read_all) -> None:
    assert values(write("samples", text), read_all) == [[1, math.inf, -math.inf]]


def test_json_lists_may_be_nested(write: type_of_write, read_all: type_of_read_all) -> None:
    rows = [[[1, 2], [3, 4]], [[5, 6], [7, None]]]
    path = write("samples.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    source = recording(path)
    samples = read_all(source)
    source.close()
    assert [sample.data.shape for sample in samples] == [(2, 2), (2, 2)]
    assert samples[0].data.tolist() == rows[0]


LONG = ",".join("1" for _ in range(128))
BAD_ROWS = {
    "too short": (f"{LONG}\n{LONG[2:]}\n", "samples:2: expected 128 values as in the first row, found 127"),
    "too long": (f"{LONG}\n{LONG},1\n", "samples:2: expected 128 values as in the first row, found 129"),
    "short under a header": ("a,b,label\n1,2,x\n1,x\n", "samples:3: expected 3 columns as in the first row, found 2"),
    "word": ("1,2\n\n\n5,abc\n", "samples:4: 'abc' is no number"),
    "long word": (f"1,2\n3,{'a' * 99}\n", f"samples:2: '{'a' * 40}' is no number"),
    "no UTF-8": ("1,2\n3,\udce9\n", "samples:2: '\ufffd' is no number"),
    "stray carriage return": ('1,2\n"3\r",4\r5\n', "samples:2: '\"3\r\"' is no number"),
    "list too short": ('f\n"[1, 2]"\n"[1]"\n', "samples:3: expected 2 values as in the first row, found 1"),
    "list broken": ('f\n"[1, 2]"\n"[1, 2"\n', "samples:3: no JSON: Expecting ',' delimiter at column 6"),
    "list missing": (
        'f\n"[1, 2]"\n"7"\n',
        "samples:3: expected a list of numbers, or an object that has one under data, values or features",
    ),
    "JSON word": ('[1, 2]\n[1, "abc"]\n', "samples:2: 'abc' is no number"),
    "JSON truth": ("[1, 2]\n[1, true]\n", "samples:2: 'true' is no number"),
    "JSON object inside": ('[1, 2]\n[1, {"a": 1}]\n', "samples:2: '{\"a\": 1}' is no number"),
    "JSON half a surrogate": ('[1, 2]\n[1, "\\ud800"]\n', "samples:2: '\\ud800' is no number"),
    "JSON broken": ("[1, 2]\n[1, 2\n", "samples:2: no JSON: Expecting ',' delimiter at column 6"),
    "JSON empty": ("[1, 2]\n[]\n", "samples:2: it has no values"),
    "JSON other key": (
        '{"data": [1, 2]}\n{"dat": [1, 2]}\n',
        "samples:2: expected a list of numbers, or an object that has one under data, values or features",
    ),
    "JSON shape": ("[[1, 2]]\n[[1], [2]]\n", "samples:2: expected 1 x 2 values as in the first row, found 2 x 1"),
    "JSON ragged": ("[[1, 2]]\n[[1, 2], [3]]\n", "samples:2: its inner lists differ in length"),
    "JSON huge whole number": (f"[1, 2]\n[1, 1{'0' * 400}]\n", "samples:2: a whole number is too large"),
    "JSON too deep": (f"[1, 2]\n{'[' * 100_000}\n", "samples:2: no list of numbers: its lists are too deep"),
}


@pytest.mark.parametrize(("text", "problem"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_is_left_out_counted_and_named(
    text: str, problem: str, tmp_path: Path, read_all: type_of_read_all
) -> None:
    path = tmp_path / "samples"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    source = recording(path)
    rows = read_all(source)
    source.close()
    assert len(rows) == 1
    assert source.problems == {problem: 1}
    assert source.skipped == 1


def test_bad_rows_do_not_hold_up_the_reader(write: type_of_write) -> None:
    source = recording(write("samples", "1,2\n" + "x,y\n" * 3 + "3,4\n"))
    assert source.read(0) is not None
    assert [source.read(0) for _ in range(3)] == [None] * 3
    assert source.read(0) is not None
    source.close()


UNUSABLE = {
    "empty": ("", "samples is empty"),
    "only lines": ("\n\n", "samples is empty"),
    "only a header": ("a,b,c\n", "samples has no row of values"),
    "text column": (
        "a,state\n1,normal\n2,failure\n",
        "samples has no row of values; the first is samples:2: 'normal' is no number",
    ),
    "poem": (
        "Roses are red,\nviolets are blue\n",
        "samples has no row of values; the first is samples:2: 'violets' is no number",
    ),
    "no values": ("label\nnormal\n", "samples has no row of values; the first is samples:2: it has no values"),
    "binary": ("\x00\x01\x02\n", "samples is neither CSV or JSON lines in UTF-8 nor a .npy file"),
    "one JSON document": (
        "[\n[1, 2],\n[3, 4]\n]\n",
        "samples:1: the JSON is spread over several lines; each sample must stand in one line of its own",
    ),
}


@pytest.mark.parametrize(("text", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_an_unusable_file_is_an_error(text: str, message: str, write: type_of_write) -> None:
    path = write("samples", text)
    with pytest.raises(ValueError, match=r".") as fault:
        Recording.Options(path=path).check()
    assert str(fault.value) == message
    with pytest.raises(SourceError) as caught:
        recording(path)
    assert caught.value.reason == message
    assert caught.value.remedy == "the recording must be CSV, JSON lines or .npy with one sample per row"


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        Recording.Options(path=tmp_path / "none.csv").check()
    with pytest.raises(IsADirectoryError):
        Recording.Options(path=tmp_path).check()
    with pytest.raises(SourceError) as caught:
        recording(tmp_path / "none.csv")
    assert str(caught.value) == (
        f"{tmp_path}/none.csv: no such file or directory; see that the file is there and that the service may read it"
    )


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "endless"
    path.write_bytes(b"1,2\n3,")
    os.truncate(path, 200_000_000)
    tracemalloc.start()
    with pytest.raises(SourceError, match="endless:2: the line is longer than 16 MiB"):
        recording(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50_000_000


def test_check_accepts_a_good_file(write: type_of_write) -> None:
    Recording.Options(path=write("samples.csv", "a,b\nx,y\n1,2\n")).check()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "uint8", ">f4", "bool"])
def test_npy(dtype: str, tmp_path: Path, read_all: type_of_read_all) -> None:
    array = np.arange(12).reshape(4, 3).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    source = recording(tmp_path / "a.npy")
    samples = read_all(source)
    source.close()
    assert {sample.data.dtype.name for sample in samples} == {"float32"}
    assert np.array_equal([sample.data for sample in samples], array.astype("float32"))


def test_npy_of_images_stays_uint8(tmp_path: Path, read_all: type_of_read_all) -> None:
    array = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.save(tmp_path / "a.npy", array)
    source = recording(tmp_path / "a.npy")
    samples = read_all(source)
    assert {sample.data.dtype.name for sample in samples} == {"uint8"}
    assert np.array_equal([sample.data for sample in samples], array)


def test_npy_of_single_values_and_of_columns(tmp_path: Path, read_all: type_of_read_all) -> None:
    np.save(tmp_path / "one.npy", np.arange(3.0))
    assert values(tmp_path / "one.npy", read_all) == [[0], [1], [2]]
    np.save(tmp_path / "columns.npy", np.asfortranarray(np.arange(6.0).reshape(2, 3)))
    assert values(tmp_path / "columns.npy", read_all) == [[0, 1, 2], [3, 4, 5]]


def test_npy_that_cannot_be_used(tmp_path: Path) -> None:
    def reason(name: str, array: object = None) -> str:
        if array is not None:
            np.save(tmp_path / name, np.asarray(array))
        with pytest.raises(ValueError, match=r".") as caught:
            Recording.Options(path=tmp_path / name).check()
        return str(caught.value)

    assert reason("a.npy", ["x", "y"]) == "a.npy holds <U1; expected whole numbers or floating point"
    assert reason("b.npy", [1j]) == "b.npy holds complex128; expected whole numbers or floating point"
    assert reason("c.npy", 3.0) == "c.npy has no rows"
    assert reason("d.npy", np.zeros((0, 3))) == "d.npy has no rows"
    assert reason("e.npy", np.array([{}, []], dtype=object)).startswith("e.npy is no complete .npy file of numbers: ")
    np.save(tmp_path / "f.npy", np.zeros((1000, 3)))
    os.truncate(tmp_path / "f.npy", 5000)
    assert reason("f.npy").startswith("f.npy is no complete .npy file of numbers: ")
    (tmp_path / "g.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert reason("g.npy").startswith("g.npy is no complete .npy file of numbers: ")


@pytest.fixture(params=["csv", "jsonl", "npy"])
def ten_rows(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """Ten rows with the number of the row in them."""
    path = tmp_path / f"ten.{request.param}"
    if request.param == "npy":
        np.save(path, np.arange(10)[:, np.newaxis] * [1, 1])
    elif request.param == "jsonl":
        path.write_text("".join(f"[{n}, {n}]\n" for n in range(10)))
    else:
        path.write_text("a,b\n" + "".join(f"{n},{n}\n" for n in range(10)).rstrip())
    return path


@pytest.mark.parametrize("worked_on", [1, 5, 10, 11, 20, 23])
def test_goes_on_after_a_restart(worked_on: int, ten_rows: Path) -> None:
    source = recording(ten_rows, repeat=True)
    position = None
    for _ in range(worked_on):
        sample = source.read(1)
        assert sample is not None
        position = sample.position
    expected = [source.read(1) for _ in range(15)]
    source.close()

    again = recording(ten_rows, resume=position, repeat=True)
    resumed = [again.read(1) for _ in range(15)]
    again.close()

    assert [s.position for s in resumed if s] == [s.position for s in expected if s]
    assert [s.data[0] for s in resumed if s] == [(worked_on + n) % 10 for n in range(15)]


def test_ends_once_all_is_read_also_after_a_restart(ten_rows: Path, read_all: type_of_read_all) -> None:
    source = recording(ten_rows)
    last = read_all(source)[-1]
    with pytest.raises(SourceEnded, match=f"{ten_rows} was read to its end"):
        source.read(1)
    source.close()
    again = recording(ten_rows, resume=last.position)
    assert read_all(again) == []
    again.close()


@pytest.mark.parametrize("position", ["17", "0:", "0:3:4", "0:11:9999", "x:y", "camera.jpg", "0:-1:-5"])
def test_a_position_that_is_not_there_means_the_start(position: str, ten_rows: Path) -> None:
    if ten_rows.suffix == ".npy" and position == "0:":
        position = "0:99"
    source = recording(ten_rows, resume=position)
    sample = source.read(1)
    source.close()
    assert sample is not None
    assert sample.data[0] == 0


def test_repeat_takes_what_the_file_holds_by_then(write: type_of_write) -> None:
    source = recording(write("samples.csv", "1,2\n"), repeat=True)
    first = source.read(1)
    write("new.csv", "3;4;5\n").replace(source._options.path)
    second = source.read(1)
    assert first is not None
    assert second is not None
    assert (first.data.tolist(), second.data.tolist()) == ([1, 2], [3, 4, 5])
    assert (first.position, second.position) == ("0:1:4", "1:1:6")
    source._options.path.unlink()
    with pytest.raises(SourceError, match="no such file or directory"):
        source.read(1)
    source.close()


def test_a_file_that_fails_while_read_is_an_error(write: type_of_write) -> None:
    path = write("samples.csv", "1,2\n")
    source = recording(path)
    source.read(1)
    with path.open("ab") as file:
        file.write(b"1" * (17 * 1024 * 1024))
    with pytest.raises(SourceError, match=r"samples\.csv:2: the line is longer than 16 MiB"):
        source.read(1)
    source.close()


def test_rate(ten_rows: Path, clock: Clock) -> None:
    source = Recording(Recording.Options(path=ten_rows, rate=5), pacer=Pacer(5, clock=clock, sleep=clock.sleep))
    source.open(None)
    start = clock.now
    assert source.read(0.1) is not None
    assert source.read(0.1) is None
    for _ in range(9):
        assert source.read(1) is not None
    assert clock.now - start == pytest.approx(1.8)
    assert not source.live
    source.close()


def test_reading_before_opening_is_a_mistake(ten_rows: Path) -> None:
    with pytest.raises(RuntimeError, match="not open"):
        build(Recording, {"path": str(ten_rows)}).read(1)


@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_a_big_file_streams(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"big.{suffix}"
    row = ",".join(f"{n / 7:.6f}" for n in range(128))
    with path.open("w") as file:
        file.writelines([f"[{row}]\n" if suffix == "jsonl" else f"{row}\n"] * 3000)
    assert path.stat().st_size > 3_000_000

    tracemalloc.start()
    source = recording(path)
    while (sample := source.read(1)) and sample.position and not sample.position.startswith("0:3000:"):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    source.close()

    assert peak < 500_000


tables = arrays.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(2, 6)), elements=st.floats(width=32))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=tables, delimiter=st.sampled_from([",", ";", "\t", " "]), header=st.booleans())
def test_csv_round_trip(table: np.ndarray, delimiter: str, header: bool, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    names = delimiter.join(f"column{n}" for n in range(table.shape[1])) if header else ""
    np.savetxt(path, table, delimiter=delimiter, header=names, comments="", fmt="%.9g")
    assert_reads_back(path, table)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(table=tables, key=st.sampled_from([None, "data", "values", "features"]))
def test_json_lines_round_trip(table: np.ndarray, key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    rows = [row.tolist() for row in table]
    path.write_text("".join(json.dumps(row if key is None else {"label": 1, key: row}) + "\n" for row in rows))
    assert_reads_back(path, table)


def assert_reads_back(path: Path, table: np.ndarray) -> None:
    rows = open_rows(path)
    read = [rows.read() for _ in table]
    end = rows.read()
    rows.close()
    np.testing.assert_array_equal(np.array(read), table)
    assert end is None


@pytest.mark.parametrize("worked_on", [0, 4, 9])
def test_a_row_is_passed_over(worked_on: int, ten_rows: Path) -> None:
    source = recording(ten_rows, repeat=True)
    position = None
    for _ in range(worked_on):
        sample = source.read(1)
        assert sample is not None
        position = sample.position
    source.close()
    source.open(position)
    source.pass_over()
    after = source.read(1)
    assert after is not None
    # Behind the last row that is passed over comes the first one again.
    expected = (worked_on + 1) % 10
    assert after.data.ravel()[0] == first_value(ten_rows, expected)
    assert source.skipped == 1
    assert "has ended the worker twice and is left out" in next(iter(source.problems))
    source.close()


def first_value(path: Path, row: int) -> float:
    source = recording(path)
    for _ in range(row):
        source.read(1)
    sample = source.read(1)
    source.close()
    assert sample is not None
    value: float = sample.data.ravel()[0]
    return value


def test_at_the_end_there_is_nothing_to_pass_over(ten_rows: Path, read_all: type_of_read_all) -> None:
    source = recording(ten_rows)
    read_all(source)
    source.pass_over()
    assert source.skipped == 0
    with pytest.raises(SourceEnded):
        source.read(1)
    source.close()


def test_passing_over_begins_again_where_the_file_does(write: type_of_write) -> None:
    source = recording(write("a.csv", "1,1\n2,2\n"), repeat=True)
    for _ in range(2):
        source.read(1)
    source.pass_over()
    sample = source.read(1)
    assert sample is not None
    assert (sample.data.tolist(), sample.position) == ([2, 2], "1:2:8")
    assert list(source.problems) == ["a.csv:1 has ended the worker twice and is left out"]
    source.close()
