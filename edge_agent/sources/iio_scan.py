"""The packed records that an industrial I/O device's buffer gives, one for each scan of its channels.

Documentation/ABI/testing/sysfs-bus-iio and Documentation/driver-api/iio/buffers.rst of Linux: a channel's
`scan_elements/*_type` reads `le:s12/16X2>>4`, that is byte order, signed or unsigned (or floating point), bits that
count, bits in the record, how many such values (`X`, if several), and how far the value is shifted. Each channel is
aligned to its own size, the whole record to the largest of them (`iio_compute_scan_bytes` in the kernel).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

_TYPE = re.compile(r"(be|le):([suf])(\d+)/(\d+)(?:X(\d+))?(?:>>(\d+))?")
_ORDERS = {"be": ">", "le": "<"}
_STORAGES = {"s": (8, 16, 32, 64), "u": (8, 16, 32, 64), "f": (16, 32, 64)}


@dataclass(frozen=True)
class ScanType:
    """How one channel lies in a record. `order` is NumPy's, `kind` is s, u or f, and `storage` is in bits."""

    order: str
    kind: str
    bits: int
    storage: int
    repeat: int = 1
    shift: int = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Understand what the kernel says. Raises ValueError."""
        found = _TYPE.fullmatch(text.strip())
        if not found:
            raise ValueError(f"'{text.strip()}' is no known description of a value")
        order, kind, bits, storage, repeat, shift = found.groups()
        parsed = cls(_ORDERS[order], kind, int(bits), int(storage), max(1, int(repeat or 1)), int(shift or 0))
        if parsed.storage not in _STORAGES[kind] or not 0 < parsed.bits <= parsed.storage - parsed.shift:
            raise ValueError(f"values of the kind '{text.strip()}' are not supported")
        return parsed

    @property
    def size(self) -> int:
        """How many bytes the channel takes, which it is aligned to as well."""
        return self.storage // 8 * self.repeat

    def dtype(self) -> np.dtype[Any]:
        """Return it as it is stored; a vector for several values."""
        kind = "f" if self.kind == "f" else "u"
        return np.dtype((f"{self.order}{kind}{self.storage // 8}", (self.repeat,)))

    def values(self, stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what the stored numbers mean: int64, uint64 or float64 of the same shape."""
        if self.kind == "f":
            return stored.astype(np.float64)
        raw = stored.astype(np.uint64) >> np.uint64(self.shift)
        unused = 64 - self.bits
        if self.kind == "u":
            return raw & np.uint64(2**64 - 1 >> unused)
        return (raw << np.uint64(unused)).view(np.int64) >> np.int64(unused)


class Layout:
    """The record of the channels that are enabled, in the order of their indices."""

    def __init__(self, types: Sequence[ScanType]) -> None:
        self._types = types
        offsets, end = [], 0
        for each in types:
            offsets.append(_aligned(end, each.size))
            end = offsets[-1] + each.size
        self.record_bytes = _aligned(end, max(each.size for each in types))
        self._dtype = np.dtype(
            {
                "names": [str(i) for i in range(len(types))],
                "formats": [each.dtype() for each in types],
                "offsets": offsets,
                "itemsize": self.record_bytes,
            }
        )

    def decode(self, data: bytes) -> list[npt.NDArray[Any]]:
        """Return one array of shape (records, repeat) for each channel. `data` are whole records."""
        records = np.frombuffer(data, self._dtype)
        return [each.values(records[str(i)]) for i, each in enumerate(self._types)]


def _aligned(offset: int, size: int) -> int:
    return -(-offset // size) * size
