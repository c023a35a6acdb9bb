"""Golden samples: inputs of a model with the outputs that are expected of it, in one file.

The file is an `.npz` as `numpy.savez` writes it, a zip archive of NumPy arrays: `input` (N, ...), each row of it as
`Sample.data`; `output_0`, `output_1`, ... (N, ...), float32, the real numbers of the model's outputs in their order,
without those that are its state; and, where labels are known, `label` (N), empty for a sample without one.

It comes from the network, so nothing in it is believed: there is no pickle in it that could be run, and what it would
take in memory is known from the zip directory before anything is unpacked.
"""

import math
import re
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MAX_SAMPLES = 1000
MAX_SIZE = 64 * 1024 * 1024
"""Bytes, unpacked."""
MAX_OUTPUTS = 64

# End of central directory record: PKWARE's APPNOTE.TXT, 4.3.16. Without a comment, it is the end of the file.
_END = struct.Struct("<4s4H2IH")
_ZIP64_LOCATOR = 20
# Each array has one entry, of 46 bytes and its name, and perhaps the extra field of zip64.
_MAX_DIRECTORY = (MAX_OUTPUTS + 2) * 128
# Of the NumPy format (numpy.lib.format), what savez writes: magic, version, length of the header, and the header.
_MAGIC = b"\x93NUMPY"
_LENGTH = {1: struct.Struct("<H"), 2: struct.Struct("<I"), 3: struct.Struct("<I")}
_MAX_HEADER = 10_000
_HEADER = re.compile(
    r"\{'descr': '(\|u1|<f4|<U[1-9]\d{0,5})', 'fortran_order': (True|False), 'shape': \(((?:\d{1,9},? ?)*)\),? *\}\s*"
)
_PICTURES_RANK = 4
_PIECE = 1 << 20
_LAST_POINT, _SURROGATES = 0x10FFFF, range(0xD800, 0xE000)
_NAME = re.compile(r"input|label|output_(0|[1-9]\d?)")


class GoldenError(ValueError):
    """These are no golden samples, or not of this model; the message goes on behind their name and a colon."""


class Golden(msgspec.Struct, frozen=True):
    """Golden samples: `input` are pictures, uint8 (N, height, width, 3), or values, float32 (N, ...).

    Each of `outputs` is float32 (N, ...).

    `labels` is empty, or has an entry for each sample: the prediction that is right, or an empty string.
    """

    input: Any
    outputs: tuple[Any, ...]
    labels: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.input)


def read_golden(path: str | Path) -> Golden:
    """Read a file. Raises GoldenError."""
    try:
        with Path(path).open("rb") as file:
            entries = _check_end(file)
            with zipfile.ZipFile(file) as archive:
                arrays = _read_all(archive, entries)
    except OSError as error:
        raise GoldenError(f"cannot be read: {error.strerror or error}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError, OverflowError) as error:
        raise GoldenError(f"is damaged: {error}") from error
    return _assembled(arrays)


def write_golden(path: str | Path, golden: Golden) -> None:
    """Write a file; the same samples give the same bytes. Raises GoldenError for what could not be read again."""
    arrays = {"input": golden.input, **{f"output_{at}": each for at, each in enumerate(golden.outputs)}}
    if golden.labels:
        arrays["label"] = np.array(golden.labels, np.str_)
    _check(golden)
    _check_size(sum(array.nbytes for array in arrays.values()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            # Its own ZipInfo has no time of day.
            entry = zipfile.ZipInfo(f"{name}.npy")
            entry.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(entry, "w") as member:
                np.lib.format.write_array(member, np.ascontiguousarray(array), allow_pickle=False)


def _check_end(file: IO[bytes]) -> int:
    """Look at the size of the zip directory, which zipfile reads whole, and return how many entries it has."""
    size = file.seek(0, 2)
    file.seek(max(0, size - _END.size - _ZIP64_LOCATOR))
    end = file.read()
    if not end[-_END.size :].startswith(b"PK\x05\x06"):
        raise GoldenError("is no .npz file as numpy.savez writes it, or is cut short")
    _, _, _, here, entries, directory, _, comment = _END.unpack(end[-_END.size :])
    # The directory of a zip64 archive is elsewhere, and may be larger than is said here.
    if comment or b"PK\x06\x07" in end or here != entries or directory > _MAX_DIRECTORY or entries > MAX_OUTPUTS + 2:
        raise GoldenError(f"holds something else than up to {MAX_OUTPUTS + 2} arrays")
    file.seek(0)
    return int(entries)


def _read_all(archive: zipfile.ZipFile, count: int) -> dict[str, Array]:
    entries = archive.infolist()
    if len(entries) != count:  # a wrong length in one of them has swallowed others, and the labels may go unnoticed
        raise GoldenError(f"is damaged: it holds {count} arrays, and {len(entries)} are found")
    _check_size(sum(entry.file_size for entry in entries))
    arrays: dict[str, Array] = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name in arrays or name + ".npy" != entry.filename or not _NAME.fullmatch(name):
            raise GoldenError(f"holds {entry.filename[:40]!a}, which is not one of input, output_0, ..., label")
        if entry.flag_bits & 1 or entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
            raise GoldenError(f"{name} is packed in a way that numpy.savez does not use")
        with archive.open(entry) as member:
            arrays[name] = _read_array(name, member, entry.file_size)
    return arrays


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise GoldenError(f"would take {size / (1 << 20):.0f} MiB of memory, more than {MAX_SIZE >> 20}")


def _read_array(name: str, member: IO[bytes], size: int) -> Array:
    """Read one array of `size` bytes with its header. Python's zipfile gives no more, whatever is packed."""
    magic = member.read(len(_MAGIC) + 2)
    length = _LENGTH.get(magic[-2]) if magic[: len(_MAGIC)] == _MAGIC and len(magic) == len(_MAGIC) + 2 else None
    head = member.read(length.size) if length is not None else b""
    if length is None or len(head) != length.size or length.unpack(head)[0] > _MAX_HEADER:
        raise GoldenError(f"{name} is no NumPy array")
    text = member.read(length.unpack(head)[0])
    found = _HEADER.fullmatch(text.decode("latin-1"))
    if found is None:
        raise GoldenError(f"{name} is no array of uint8, float32 or text: {text[:60].decode('ascii', 'replace')!a}")
    kind, fortran, shape = np.dtype(found[1]), found[2] == "True", tuple(map(int, re.findall(r"\d+", found[3])))
    count = math.prod(shape)
    if count * kind.itemsize != size - len(magic) - len(head) - len(text):
        raise GoldenError(f"{name} has another size than its shape says")
    data = bytearray(count * kind.itemsize)
    # In pieces: zipfile would have all of it in memory three times over.
    with memoryview(data) as view:
        for start in range(0, len(data), _PIECE):
            piece = member.read(_PIECE)
            if len(piece) != len(view[start : start + _PIECE]):
                raise GoldenError(f"{name} is cut short")
            view[start : start + _PIECE] = piece
    if member.read(1):  # which also compares the checksum
        raise GoldenError(f"{name} is longer than it says")
    return np.frombuffer(data, kind).reshape(shape, order="F" if fortran else "C")


def _assembled(arrays: dict[str, Array]) -> Golden:
    outputs = len([name for name in arrays if name.startswith("output_")])
    wanted = ["input", *(f"output_{at}" for at in range(outputs))]
    if missing := [name for name in wanted if name not in arrays]:
        raise GoldenError(f"has no {missing[0]}")
    labels: tuple[str, ...] = ()
    if "label" in arrays:
        labels = _text(arrays["label"])
    golden = Golden(arrays["input"], tuple(arrays[name] for name in wanted[1:]), labels)
    _check(golden, labels_given="label" in arrays)
    return golden


def _text(array: Array) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind != "U":
        raise GoldenError("label is no list of text")
    # NumPy does not look at the numbers before it makes text of them.
    points = array.view(np.uint32)
    if ((points > _LAST_POINT) | ((points >= _SURROGATES.start) & (points < _SURROGATES.stop))).any():
        raise GoldenError("label is no list of text")
    return tuple(array.tolist())


def _check(golden: Golden, *, labels_given: bool = False) -> None:
    count = golden.input.shape[0] if golden.input.ndim else 0
    if not 0 < count <= MAX_SAMPLES:
        raise GoldenError(f"has {count} samples, where 1 to {MAX_SAMPLES} are wanted")
    if not 0 < len(golden.outputs) <= MAX_OUTPUTS:
        raise GoldenError(f"has {len(golden.outputs)} outputs, where 1 to {MAX_OUTPUTS} are wanted")
    pictures = golden.input.dtype == np.uint8 and golden.input.ndim == _PICTURES_RANK and golden.input.shape[3] == 3  # noqa: PLR2004  red, green and blue
    if not (pictures or golden.input.dtype == np.float32) or not golden.input.size:
        wanted = "pictures, uint8 (N, height, width, 3), or values, float32, are wanted"
        raise GoldenError(f"input is {_described(golden.input)}, where {wanted}")
    for at, output in enumerate(golden.outputs):
        if output.dtype != np.float32 or not output.size or output.shape[:1] != (count,):
            raise GoldenError(f"output_{at} is {_described(output)}, where {count} rows of float32 are wanted")
        if not np.isfinite(output).all():
            raise GoldenError(f"output_{at} holds values that are no numbers")
    if len(golden.labels) != count and (golden.labels or labels_given):
        raise GoldenError(f"has {count} samples, and {len(golden.labels)} labels")


def _described(array: Array) -> str:
    return f"{array.dtype} of shape {'x'.join(map(str, array.shape)) or 'a single number'}"
