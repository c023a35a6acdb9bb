"""From a sample to a model's input tensor."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from edge_agent.inference.interpreter.quantization import Quantizer
from edge_agent.inference.interpreter.tensors import TensorInfo

Array = npt.NDArray[Any]

_IMAGE_RANK = 4
# What Ultralytics' tools put around a picture, and so what such detectors have learned to look past.
_BORDER = 114


class InputMismatch(ValueError):
    """The sample does not fit the model's input; the message says what was expected and what came."""


class Placement(msgspec.Struct, frozen=True):
    """Where in the model's input a picture of `width` x `height` pixels lies: shares (0..1) of the input's size."""

    width: int
    height: int
    left: float = 0.0
    top: float = 0.0
    right: float = 1.0
    bottom: float = 1.0


class Prepared(msgspec.Struct, frozen=True, gc=False):
    """The input tensor, the share (0..1) of values outside the model's range, and for a picture where it lies.

    The tensor may be overwritten when the next sample is prepared.
    """

    tensor: Any
    clipped: float
    placement: Placement | None = None


class ModelInput:
    """Turns samples into the model's input tensor.

    A uint8 sample of shape (height, width, 3) is an image: it is brought to the size of the model's input and, as
    Coral's own tools do, handed to a uint8 model as it is, to an int8 model shifted by 128, and to a float model as
    (pixel - mean) / std, where `mean` and `std` are one number, or one for each channel. `fit` "letterbox" keeps the
    proportions and puts a grey border around the picture. Any other sample is float32 with as many values as the
    input has, quantised if need be.
    """

    def __init__(
        self,
        tensor: TensorInfo,
        *,
        resize: str,
        fit: str = "stretch",
        mean: float | Sequence[float],
        std: float | Sequence[float],
    ) -> None:
        self.tensor = tensor
        self.index = tensor.index
        self.shape = tensor.shape
        self.dtype = tensor.dtype
        self._resize = resize
        self._letterbox = fit == "letterbox"
        self._mean, self._std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        self._size = tensor.size
        self._quantizer = self._make_quantizer()
        self._placement: Placement | None = None
        self._placed: tuple[tuple[int, ...], tuple[int, int] | None] = ((), None)
        self._area = (0, 0, 0, 0)
        self._canvas: Array | None = None

    def _make_quantizer(self) -> Quantizer | None:
        tensor = self.tensor
        if tensor.fault:
            raise InputMismatch(f"the model's input '{tensor.name}' cannot be fed: {tensor.fault}")
        if self.dtype == np.float32:
            return None
        if not tensor.quantized:
            raise InputMismatch(
                f"the model's input is {self.dtype} with scale {tensor.scale}; only float32 and quantised "
                "uint8 and int8 inputs can be fed"
            )
        return Quantizer(self.shape, self.dtype, tensor.scale, tensor.zero_point)

    @property
    def takes_images(self) -> bool:
        """Whether the input has the shape of an image, (1, height, width, 1 or 3)."""
        return len(self.shape) == _IMAGE_RANK and self.shape[0] == 1 and self.shape[3] in {1, 3}

    def __str__(self) -> str:
        return str(self.tensor)

    def empty(self) -> Prepared:
        """Return an input tensor of zeros, to warm a model up with."""
        return Prepared(np.zeros(self.shape, self.dtype), 0.0)

    def prepare(self, data: Array, size: tuple[int, int] | None = None) -> Prepared:
        """Return the input tensor for a sample's data. Raises InputMismatch."""
        if data.ndim == _IMAGE_RANK - 1 and data.dtype == np.uint8:
            return self._prepare_image(data, size)
        if data.size != self._size:
            raise InputMismatch(f"the model takes {self._size} values ({self}), the source gives {data.size}")
        values = data.reshape(self.shape)
        if self._quantizer is None:
            values = values.astype(np.float32, copy=False)
            missing = np.isnan(values)
            return Prepared(np.where(missing, np.float32(0), values), float(np.count_nonzero(missing)) / values.size)
        tensor, clipped = self._quantizer.quantize(values)
        return Prepared(tensor, clipped)

    def _prepare_image(self, picture: Array, size: tuple[int, int] | None) -> Prepared:
        if not self.takes_images:
            raise InputMismatch(f"the model takes {self._size} values ({self}), the source gives images")
        placement = self._placement
        if placement is None or self._placed != (picture.shape, size):
            placement = self._place(picture.shape[0], picture.shape[1], size)
            self._placed = (picture.shape, size)
        return Prepared(self._as_type(self._fitted(picture).reshape(self.shape)), 0.0, placement)

    def _place(self, height: int, width: int, before: tuple[int, int] | None) -> Placement:
        # The sizes of a source hardly ever change, so the layout and its border are made once.
        _, rows, columns, channels = self.shape
        inner_height, inner_width = rows, columns
        if self._letterbox:
            scale = min(rows / height, columns / width)
            inner_height, inner_width = max(1, round(height * scale)), max(1, round(width * scale))
        top, left = (rows - inner_height) // 2, (columns - inner_width) // 2
        bottom, right = top + inner_height, left + inner_width
        self._area = (top, bottom, left, right)
        bordered = (inner_height, inner_width) != (rows, columns)
        self._canvas = np.full((rows, columns, channels), _BORDER, np.uint8) if bordered else None
        full = before or (width, height)
        self._placement = Placement(*full, left / columns, top / rows, right / columns, bottom / rows)
        return self._placement

    def _fitted(self, picture: Array) -> Array:
        top, bottom, left, right = self._area
        size = (bottom - top, right - left, self.shape[3])
        if picture.shape != size:
            picture = resize_image(picture, size[1], size[0], grey=size[2] == 1, way=self._resize).reshape(size)
        if self._canvas is None:
            return picture
        self._canvas[top:bottom, left:right] = picture
        return self._canvas

    def _as_type(self, pixels: Array) -> Array:
        if self.dtype == np.uint8:
            return pixels
        if self.dtype == np.int8:
            return np.bitwise_xor(pixels, np.uint8(0x80)).view(np.int8)
        return (pixels - self._mean) / self._std


def resize_image(pixels: Array, width: int, height: int, *, grey: bool, way: str) -> Array:
    """Return the image (height, width, 3) in another size. `way` is nearest, bilinear or lanczos, as Pillow does it."""
    from PIL import Image  # noqa: PLC0415  5 MiB that a worker on a sensor need not carry

    image = Image.fromarray(pixels)
    if grey:
        image = image.convert("L")
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling[way.upper()])
    return np.asarray(image)
