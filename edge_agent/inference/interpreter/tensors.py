"""What a model says of one of its input or output tensors."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class TensorInfo(msgspec.Struct, frozen=True):
    """One tensor. A quantised one holds q for the real number (q - zero_point) * scale; `scale` is 0 for all others.

    `name` is the one that a signature gives it, and else the tensor's own. `also` are further names that it goes by.
    `per_axis`: it has a scale for each row, which the 8-bit specification allows for weights only.
    """

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: Any
    scale: float = 0.0
    zero_point: int = 0
    per_axis: bool = False
    also: tuple[str, ...] = ()

    @classmethod
    def of(cls, details: dict[str, Any], signature: str = "", title: str = "") -> "TensorInfo":
        """Read what the runtime says of a tensor; `signature` and `title` are names from elsewhere in the file."""
        scale, zero_point = details["quantization"]
        name = str(details["name"])
        return cls(
            index=int(details["index"]),
            name=signature or name,
            shape=tuple(int(size) for size in details["shape"]),
            dtype=np.dtype(details["dtype"]),
            scale=float(scale),
            zero_point=int(zero_point),
            per_axis=len(details["quantization_parameters"]["scales"]) > 1,
            also=tuple(each for each in (title, name) if each),
        )

    def __str__(self) -> str:
        return f"{self.dtype} of shape {self.dimensions}"

    @property
    def dimensions(self) -> str:
        """The shape as people write it."""
        return "x".join(map(str, self.shape)) or "a single number"

    @property
    def size(self) -> int:
        """How many values it holds."""
        return int(np.prod(self.shape))

    @property
    def quantized(self) -> bool:
        """Whether it holds 8-bit integers that stand for real numbers."""
        return self.dtype in (np.dtype(np.uint8), np.dtype(np.int8)) and self.scale > 0

    @property
    def fault(self) -> str | None:
        """Why its values cannot be told, or None."""
        if self.per_axis:
            return "it has a scale for each row, which only weights may have"
        if self.dtype.kind not in "fiub":
            return f"it holds {self.dtype}, which are no numbers"
        return None

    def real(self, values: Array) -> Array:
        """Return the real numbers, float64, that the tensor's values stand for."""
        if self.scale <= 0 or self.dtype.kind == "f":
            return values.astype(np.float64)
        return (values.astype(np.float64) - self.zero_point) * float(np.float32(self.scale))

    def raw(self, real: Array) -> Array:
        """Return the tensor whose values come closest to these real numbers: the way back from `real`."""
        if self.dtype.kind == "f":
            return real.reshape(self.shape).astype(self.dtype)
        if self.scale > 0:
            real = real / float(np.float32(self.scale)) + self.zero_point
        limits = np.iinfo(self.dtype)
        return np.clip(np.rint(real), limits.min, limits.max).reshape(self.shape).astype(self.dtype)

    @property
    def same_shape(self) -> tuple[int, ...]:
        """The shape without dimensions of one, in which an output often differs from the input that it answers."""
        return tuple(size for size in self.shape if size != 1)
