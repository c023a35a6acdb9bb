"""The packed records of a buffer, against records that are packed bit by bit from the same description."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sources.iio_scan import Layout, ScanType


@st.composite
def integer_types(draw: st.DrawFn) -> ScanType:
    storage = draw(st.sampled_from([8, 16, 32, 64]))
    bits = draw(st.integers(1, storage))
    shift = draw(st.integers(0, storage - bits))
    order, kind = draw(st.sampled_from("<>")), draw(st.sampled_from("su"))
    return ScanType(order, kind, bits, storage, draw(st.sampled_from([1, 1, 2, 4])), shift)


def written(kind: ScanType) -> str:
    """The description, as the kernel writes it."""
    repeat = f"X{kind.repeat}" if kind.repeat > 1 else ""
    return f"{'be' if kind.order == '>' else 'le'}:{kind.kind}{kind.bits}/{kind.storage}{repeat}>>{kind.shift}\n"


def packed(types: list[ScanType], scan: list[list[int]], noise: int) -> bytes:
    """One record, as a driver fills it: the bits around a value are anything."""
    record = bytearray()
    for kind, values in zip(types, scan, strict=True):
        record += b"\xaa" * (-len(record) % kind.size)
        for value in values:
            mask = (1 << kind.bits) - 1 << kind.shift
            stored = noise & ~mask & (1 << kind.storage) - 1 | value << kind.shift & mask
            record += stored.to_bytes(kind.storage // 8, "big" if kind.order == ">" else "little")
    return bytes(record + b"\x55" * (-len(record) % max(kind.size for kind in types)))


@given(st.data())
def test_what_was_packed_is_found_again(data: st.DataObject) -> None:
    types = data.draw(st.lists(integer_types(), min_size=1, max_size=5))
    assert [ScanType.parse(written(kind)) for kind in types] == types
    limits = [
        (-(1 << kind.bits - 1), (1 << kind.bits - 1) - 1) if kind.kind == "s" else (0, (1 << kind.bits) - 1)
        for kind in types
    ]
    scans = [
        [
            data.draw(st.lists(st.integers(*limit), min_size=kind.repeat, max_size=kind.repeat))
            for kind, limit in zip(types, limits, strict=True)
        ]
        for _ in range(data.draw(st.integers(1, 3)))
    ]
    noise = data.draw(st.integers(0, 2**64 - 1))
    layout = Layout(types)
    raw = b"".join(packed(types, scan, noise) for scan in scans)
    assert layout.record_bytes * len(scans) == len(raw)
    decoded = layout.decode(raw)
    assert [[column[i].tolist() for column in decoded] for i in range(len(scans))] == scans


def test_an_accelerometer_of_12_bits_in_the_upper_bits_of_a_word_with_the_time() -> None:
    types = [ScanType.parse("be:s12/16>>4")] * 3 + [ScanType.parse("le:s64/64>>0")]
    layout = Layout(types)
    assert layout.record_bytes == 16
    x, y, z, time = layout.decode(bytes.fromhex("7ff7 800f 0010 0000 0100000000000000"))
    assert [x.tolist(), y.tolist(), z.tolist(), time.tolist()] == [[[2047]], [[-2048]], [[1]], [[1]]]


def test_floating_point() -> None:
    [column] = Layout([ScanType.parse("le:f32/32X2>>0")]).decode(np.array([1.5, -2], "<f4").tobytes())
    assert column.tolist() == [[1.5, -2]]


def test_a_shift_that_is_none_may_be_left_out() -> None:
    assert ScanType.parse("le:u10/16") == ScanType("<", "u", 10, 16)


@pytest.mark.parametrize(
    "text", ["", "le:s12", "xe:s8/8>>0", "le:s24/24>>0", "le:s12/8>>0", "le:s12/16>>5", "le:f8/8>>0"]
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no known description|are not supported"):
        ScanType.parse(text)
