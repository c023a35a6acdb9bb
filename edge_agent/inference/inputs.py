"""From a sample to a model's input tensor."""

from typing import Any

import numpy as np
import numpy.typing as npt

from edge_agent.inference.quantization import Quantizer

Array = npt.NDArray[Any]

_IMAGE_RANK = 4


class InputMismatch(ValueError):
    """The sample does not fit the model's input; the message says what was expected and what came."""


class ModelInput:
    """Turns samples into the model's input tensor.

    A uint8 sample of shape (height, width, 3) is an image: it is resized to the model's input and, as Coral's own
    tools do, handed to a uint8 model as it is, to an int8 model shifted by 128, and to a float model as
    (pixel - mean) / std. Any other sample is float32 with as many values as the input has, quantised if need be.
    """

    def __init__(self, details: dict[str, Any], *, resize: str, mean: float, std: float) -> None:
        self.index: int = details["index"]
        self.shape = tuple(int(size) for size in details["shape"])
        self.dtype = np.dtype(details["dtype"])
        self._resize = resize
        self._mean, self._std = np.float32(mean), np.float32(std)
        self._size = int(np.prod(self.shape))
        self._quantizer = self._make_quantizer(*details["quantization"])

    def _make_quantizer(self, scale: float, zero_point: int) -> Quantizer | None:
        if self.dtype == np.float32:
            return None
        if self.dtype not in (np.dtype(np.uint8), np.dtype(np.int8)) or scale <= 0:
            raise InputMismatch(
                f"the model's input is {self.dtype} with scale {scale}; only float32 and quantised "
                "uint8 and int8 inputs can be fed"
            )
        return Quantizer(self.shape, self.dtype, scale, zero_point)

    @property
    def takes_images(self) -> bool:
        """Whether the input has the shape of an image, (1, height, width, 1 or 3)."""
        return len(self.shape) == _IMAGE_RANK and self.shape[0] == 1 and self.shape[3] in {1, 3}

    def __str__(self) -> str:
        return f"{self.dtype} of shape {'x'.join(map(str, self.shape))}"

    def empty(self) -> Array:
        """Return an input tensor of zeros, to warm a model up with."""
        return np.zeros(self.shape, self.dtype)

    def prepare(self, data: Array) -> tuple[Array, float]:
        """Return the input tensor and the share (0..1) of values outside the model's range.

        Raises InputMismatch. The returned array may be overwritten by the next call.
        """
        if data.dtype == np.uint8 and data.ndim == _IMAGE_RANK - 1:
            return self._prepare_image(data), 0.0
        if data.size != self._size:
            raise InputMismatch(f"the model takes {self._size} values ({self}), the source gives {data.size}")
        values = data.reshape(self.shape)
        if self._quantizer is None:
            values = values.astype(np.float32, copy=False)
            missing = np.isnan(values)
            return np.where(missing, np.float32(0), values), float(np.count_nonzero(missing)) / values.size
        return self._quantizer.quantize(values)

    def _prepare_image(self, pixels: Array) -> Array:
        if not self.takes_images:
            raise InputMismatch(f"the model takes {self._size} values ({self}), the source gives images")
        _, height, width, channels = self.shape
        if pixels.shape != (height, width, channels):
            pixels = resize_image(pixels, width, height, grey=channels == 1, way=self._resize)
        pixels = pixels.reshape(self.shape)
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
    return np.asarray(image.resize((width, height), Image.Resampling[way.upper()]))
