"""What the Edge TPU's compiler has written into a model: its own version, and the oldest runtime that can run it.

The options of the operator `edgetpu-custom-op` are a FlexBuffer: a map in which the key "4" holds a package
(tflite/custom_op_data.cc of libedgetpu). That is a FlatBuffer with the identifier DWN1 (executable/executable.fbs of
libedgetpu). A FlexBuffer is read from its end: type and width of its root are the last two bytes, and offsets lead
backwards; the length of a string or vector stands before it, the types of a map's values behind them (FlexBuffers
internals, flatbuffers.dev). The file may be damaged, so each offset is checked before it is followed.
"""

from pathlib import Path

import msgspec

from edge_agent.inference.accelerators.devices import CUSTOM_OP
from edge_agent.inference.interpreter.flatbuffer import DamagedError, Table
from edge_agent.inference.interpreter.labels import clean

NEWEST_RUNTIME = 14
"""The `RuntimeVersion` of the last libedgetpu (api/runtime_version.h); all builds since 2021 have it."""
_MODEL, _PACKAGE = b"TFL3", b"DWN1"
_OPERATOR_CODES, _SUBGRAPHS, _CUSTOM_CODE, _OPERATORS = 1, 2, 1, 3
_OPCODE_INDEX, _CUSTOM_OPTIONS = 0, 5
_MIN_RUNTIME_VERSION, _COMPILER_VERSION = 0, 4
_STRING, _MAP = 5, 9
_EXECUTABLE = b"4"
_MAX_KEYS = 100


class EdgeTpuPackage(msgspec.Struct, frozen=True):
    """`compiler` is the version of edgetpu_compiler, `runtime` the oldest `RuntimeVersion` that runs the package.

    The models that Google has compiled itself have no version there, but `cl/`.
    """

    compiler: str
    runtime: int

    def __str__(self) -> str:
        compiler = self.compiler if any(map(str.isdigit, self.compiler)) else "of an unknown version"
        return f"compiled by edgetpu_compiler {compiler}, for an Edge TPU runtime of version {self.runtime} or later"


def read_package(path: Path) -> EdgeTpuPackage | None:
    """Return what the first package in the file says of itself, or None where nothing is understood.

    Raises OSError.
    """
    content = path.read_bytes()
    try:
        options = _custom_options(content)
        return None if options is None else _package(_executable(options))
    except DamagedError:
        return None


def _custom_options(content: bytes) -> bytes | None:
    model = Table.root(content, _MODEL)
    codes = [code.text(_CUSTOM_CODE) for code in model.tables(_OPERATOR_CODES)]
    for operator in model.table_at(_SUBGRAPHS, 0).tables(_OPERATORS):
        index = operator.number(_OPCODE_INDEX, "I")
        if index < len(codes) and codes[index] == CUSTOM_OP:
            return operator.data(_CUSTOM_OPTIONS, len(content))
    return None


def _package(content: bytes) -> EdgeTpuPackage | None:
    package = Table.root(content, _PACKAGE)
    compiler = clean(package.text(_COMPILER_VERSION))
    runtime = package.number(_MIN_RUNTIME_VERSION, "i")
    return EdgeTpuPackage(compiler, runtime) if runtime > 0 else None


def _executable(options: bytes) -> bytes:
    """Return what the map has under the key "4". Raises DamagedError."""
    if len(options) <= 2:  # noqa: PLR2004  type and width
        raise DamagedError("there is nothing before the type of its root")
    kind, width, root = options[-2] >> 2, options[-1], len(options) - 2 - options[-1]
    if kind != _MAP or width not in {1, 2, 4, 8}:
        raise DamagedError("it is no map")
    return _value(options, root - _number(options, root, width), 1 << (options[-2] & 3))


def _value(options: bytes, values: int, width: int) -> bytes:
    """Return the string of a map that begins at `values`, with items of `width` bytes. Raises DamagedError."""
    count, key_width = _number(options, values - width, width), _number(options, values - 2 * width, width)
    keys = values - 3 * width - _number(options, values - 3 * width, width)
    if count > _MAX_KEYS or key_width not in {1, 2, 4, 8}:
        raise DamagedError("it has no keys that are understood")
    for i in range(count):
        at = keys + i * key_width
        key = at - _number(options, at, key_width)
        kind = _number(options, values + count * width + i, 1)
        if key >= 0 and options[key : key + 2] == _EXECUTABLE + b"\0" and kind >> 2 == _STRING:
            return _string(options, values + i * width, width, 1 << (kind & 3))
    raise DamagedError("it holds no package")


def _string(options: bytes, at: int, width: int, length_width: int) -> bytes:
    start = at - _number(options, at, width)
    length = _number(options, start - length_width, length_width)
    if start + length > len(options):
        raise DamagedError("it is cut short")
    return options[start : start + length]


def _number(options: bytes, at: int, width: int) -> int:
    if not 0 <= at <= len(options) - width:
        raise DamagedError("its offsets lead nowhere")
    return int.from_bytes(options[at : at + width], "little")
