"""What a model file says of itself: the names of its signature, labels, and how its input is normalised.

The names stand in the model's own FlatBuffer (schema.fbs of TensorFlow Lite). Labels and normalisation are TensorFlow
Lite Metadata (metadata_schema.fbs of tflite-support, identifier M001): a FlatBuffer within the first one, in the
buffer "TFLITE_METADATA", and files in a ZIP archive that is appended to the model. A model runs without all that, so
what is damaged is left out with a remark.
"""

import math
import mmap
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from edge_agent.inference.interpreter.flatbuffer import DamagedError, Table
from edge_agent.inference.interpreter.labels import MAX_FILE, LabelsError, clean, parse_labels

if TYPE_CHECKING:
    from zipfile import ZipFile

_MODEL = b"TFL3"
_SUBGRAPHS, _BUFFERS, _METADATA, _SIGNATURES = 2, 4, 6, 7
_INPUTS, _OUTPUTS = 1, 2
_METADATA_NAME = "TFLITE_METADATA"

_MODEL_METADATA = b"M001"
_SUBGRAPH_METADATA = 3
_INPUT_METADATA, _OUTPUT_METADATA = 2, 3
_PROCESS_UNITS, _ASSOCIATED_FILES = 4, 6
_FILE_TYPE, _FILE_LOCALE = 2, 3
_NORMALIZATION = 1
_LABEL_FILES = {2, 3}  # TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS

# An archive of labels has a few files; zipfile reads its whole table of contents into memory, whatever number that has.
_MAX_ENTRIES = 1000
_MAX_CONTENTS = 1 << 20
_END_OF_ZIP, _END_SIZE, _LONGEST_COMMENT = b"PK\x05\x06", 22, 65535
# Stands before that where the numbers in it do not count, as they are too small for the archive.
_ZIP64, _ZIP64_SIZE = b"PK\x06\x07", 20


class Description(msgspec.Struct):
    """What the file says. Names are by the number of the tensor: `signature` are for programs, `titles` for people.

    `mean` and `std` have one value, or one for each channel, and are empty where nothing is said.
    """

    signature: dict[int, str] = {}
    titles: dict[int, str] = {}
    labels: list[str] | None = None
    mean: list[float] = []
    std: list[float] = []
    remarks: list[str] = []


def describe(path: str) -> Description:
    """Read what the model file says of itself. Raises OSError; all else that is wrong becomes a remark."""
    found = Description()
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        try:
            model = Table.root(content, _MODEL)
            found.signature = _signature_names(model)
            metadata = _find_metadata(model)
            if metadata is not None:
                _read_metadata(metadata, model, file, found)
        except DamagedError as error:
            found.remarks.append(f"the metadata of the model is damaged and left out: {error}")
    return found


def _signature_names(model: Table) -> dict[int, str]:
    # Several signatures of the same graph would name its tensors differently; the first one counts.
    for signature in model.tables(_SIGNATURES):
        if signature.number(4, "I") == 0:
            entries = signature.tables(0) + signature.tables(1)
            return {entry.number(1, "I"): clean(entry.text(0)) for entry in entries}
    return {}


def _find_metadata(model: Table) -> Table | None:
    for entry in model.tables(_METADATA):
        if entry.text(0) == _METADATA_NAME:
            buffer = model.table_at(_BUFFERS, entry.number(1, "I"))
            subgraphs = Table.root(buffer.data(0), _MODEL_METADATA).tables(_SUBGRAPH_METADATA)
            return subgraphs[0] if subgraphs else None
    return None


def _read_metadata(metadata: Table, model: Table, file: BinaryIO, found: Description) -> None:
    graph = model.table_at(_SUBGRAPHS, 0)
    inputs, outputs = metadata.tables(_INPUT_METADATA), metadata.tables(_OUTPUT_METADATA)
    for tensors, numbers in ((inputs, graph.numbers(_INPUTS, "i")), (outputs, graph.numbers(_OUTPUTS, "i"))):
        # It is about exactly these tensors, in this order.
        if len(tensors) == len(numbers):
            titles = {number: clean(tensor.text(0)) for number, tensor in zip(numbers, tensors, strict=True)}
            found.titles |= {number: title for number, title in titles.items() if title}
    _read_normalization(inputs, found)
    names = [name for tensor in outputs for name in _label_files(tensor)]
    if names:
        _read_packed_labels(file, names[0], found)


def _read_normalization(inputs: list[Table], found: Description) -> None:
    for unit in (unit for tensor in inputs for unit in tensor.tables(_PROCESS_UNITS)):
        options = unit.table(1) if unit.number(0, "B") == _NORMALIZATION else None
        if options is None:
            continue
        mean, std = options.numbers(0, "f"), options.numbers(1, "f")
        if mean and std and all(map(math.isfinite, mean + std)) and min(std) > 0:
            found.mean, found.std = mean, std
        else:
            found.remarks.append(f"the normalisation in the model is left out: mean {mean}, std {std}")
        return


def _label_files(tensor: Table) -> list[str]:
    files = [file for file in tensor.tables(_ASSOCIATED_FILES) if file.number(_FILE_TYPE, "b") in _LABEL_FILES]
    # Of several languages the one that is not named is the model's own.
    return [file.text(0) for file in sorted(files, key=lambda file: file.text(_FILE_LOCALE))]


def _read_packed_labels(file: BinaryIO, name: str, found: Description) -> None:
    shown = clean(name)
    try:
        text = _unpack(file, name).decode("utf-8-sig")
        found.labels = parse_labels(text, shown)
    except UnicodeDecodeError:
        found.remarks.append(f"the labels packed in the model are left out: {shown}: not a text file in UTF-8")
    except (LabelsError, DamagedError) as error:
        found.remarks.append(f"the labels packed in the model are left out: {error}")


def _unpack(file: BinaryIO, name: str) -> bytes:
    """Return a file of the archive at the end of the model. Raises DamagedError."""
    import zipfile  # noqa: PLC0415  few models have an archive
    import zlib  # noqa: PLC0415  likewise

    _check_size_of_contents(file)
    try:
        with zipfile.ZipFile(file) as archive:
            content = _read_bounded(archive, name)
    except KeyError:
        raise DamagedError(f"{clean(name)} is not in the model's archive") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, OSError) as error:
        # zipfile raises RuntimeError for encrypted files and unknown methods, the last two for offsets out of bounds.
        raise DamagedError(f"{clean(name)}: {clean(str(error))}") from error
    if len(content) > MAX_FILE:
        raise DamagedError(f"{clean(name)}: larger than {MAX_FILE // 1024 // 1024} MB, which is no labels file")
    return content


def _read_bounded(archive: "ZipFile", name: str) -> bytes:
    """Read no more than `MAX_FILE` and one byte, whatever size the archive claims."""
    import zipfile  # noqa: PLC0415  few models have an archive

    # With the other methods zipfile unpacks all that it has read at once: gigabytes out of a few kilobytes.
    if archive.getinfo(name).compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError("packed by another method than deflate")
    with archive.open(name) as packed:
        return packed.read(MAX_FILE + 1)


def _check_size_of_contents(file: BinaryIO) -> None:
    size = file.seek(0, 2)
    file.seek(max(0, size - _END_SIZE - _LONGEST_COMMENT - _ZIP64_SIZE))
    tail = file.read()
    at = tail.rfind(_END_OF_ZIP)
    if at < 0 or len(tail) - at < _END_SIZE:
        raise DamagedError("the model has no archive at its end")
    entries, contents = struct.unpack_from("<HI", tail, at + 10)
    if entries > _MAX_ENTRIES:
        raise DamagedError(f"the model's archive has {entries} files, which are no labels")
    if contents > _MAX_CONTENTS or tail[: at - _ZIP64_SIZE + len(_ZIP64)].endswith(_ZIP64):
        raise DamagedError("the model's archive is larger than one of labels")
