"""What the Edge TPU's compiler has left in a model, read from real ones, made ones and damaged ones."""

from pathlib import Path
from typing import Any

import flatbuffers  # type: ignore[import-untyped]  # it ships no types
import pytest
from ai_edge_litert import schema_py_generated as schema
from flatbuffers import flexbuffers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_agent.inference.interpreter.edgetpu_package import EdgeTpuPackage, read_package
from tests.inference.conftest import DEMO_MODEL, ROOT

SHARED = ROOT.parent / "shared/models"


def package(compiler: str, runtime: int) -> bytes:
    """A `Package` of libedgetpu's executable.fbs without code."""
    builder = flatbuffers.Builder(64)
    text = builder.CreateString(compiler)
    builder.StartObject(8)
    builder.PrependInt32Slot(0, runtime, 0)
    builder.PrependUOffsetTRelativeSlot(4, text, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"DWN1")
    return bytes(builder.Output())


def options(content: bytes, key: str = "4") -> bytes:
    """The options of the custom operator, as libedgetpu's custom_op_data.cc writes them."""
    builder = flexbuffers.Builder()
    with builder.Map():
        builder.Int("1", 1)
        builder.Key(key)
        builder._WriteBlob(content, append_zero=True, type_=flexbuffers.Type.STRING)
        builder.Int("5", 0)
    return bytes(builder.Finish())


def model(custom: bytes, name: bytes = b"edgetpu-custom-op") -> bytes:
    """A model of which all is one custom operator."""
    code, operator, graph, made = schema.OperatorCodeT(), schema.OperatorT(), schema.SubGraphT(), schema.ModelT()
    code.builtinCode = code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode = name
    operator.opcodeIndex, operator.inputs, operator.outputs, operator.customOptions = 0, [], [], list(custom)
    graph.operators, graph.tensors, graph.inputs, graph.outputs = [operator], [], [], []
    made.version, made.operatorCodes, made.subgraphs, made.buffers = 3, [code], [graph], [schema.BufferT()]
    builder = flatbuffers.Builder(256)
    builder.Finish(made.Pack(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def read(folder: Path, content: bytes) -> EdgeTpuPackage | None:
    path = folder / "model.tflite"
    path.write_bytes(content)
    return read_package(path)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the models are not in {SHARED}")
@pytest.mark.parametrize("name", ["mobilenet_v1_0.25_128_quant", "mobilenet_v2_1.0_224_quant"])
def test_real_models(name: str) -> None:
    found = read_package(SHARED / f"{name}_edgetpu.tflite")
    assert found == EdgeTpuPackage("cl/", 12)
    assert (
        str(found)
        == "compiled by edgetpu_compiler of an unknown version, for an Edge TPU runtime of version 12 or later"
    )
    assert read_package(SHARED / f"{name}.tflite") is None


@pytest.mark.parametrize("size", [1, 300, 70_000])
def test_offsets_of_each_width(tmp_path: Path, size: int) -> None:
    content = package("16.0.384591198", 14) + bytes(size)
    found = read(tmp_path, model(options(content)))
    assert found == EdgeTpuPackage("16.0.384591198", 14)
    assert "by edgetpu_compiler 16.0.384591198, for" in str(found)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no model at all",
        DEMO_MODEL.read_bytes(),
        model(b""),
        model(b"edgetpu stand-in"),
        model(options(b"no package")),
        model(options(package("16.0", 14), "8")),
        model(options(package("16.0", 0))),
        model(options(package("16.0", 14)), b"another-op"),
        model(flexbuffers.Dumps([1, 2, 3])),
    ],
)
def test_what_is_not_understood_is_unknown(tmp_path: Path, content: bytes) -> None:
    assert read(tmp_path, content) is None


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_damage_makes_it_unknown_at_worst(tmp_path: Path, data: Any) -> None:
    content = bytearray(model(options(package("16.0.384591198", 14))))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[at] = data.draw(st.integers(0, 255))
    del content[data.draw(st.integers(1, len(content))) :]
    found = read(tmp_path, bytes(content))
    assert found is None or found.runtime > 0
