"""Videos for the tests: each picture has one colour of its own."""

from pathlib import Path
from typing import Any

import av
import numpy as np

from edge_agent.records import Sample

LEVELS = (40, 90, 140, 190)
COLOURS = [(red, green, 100) for red in LEVELS for green in LEVELS]
CODECS = {"h264": "libx264", "mpeg4": "mpeg4", "mjpeg": "mjpeg", "ffv1": "ffv1"}


def make_video(path: Path, codec: str | None = None, form: str | None = None, repeats: int = 1) -> Path:
    """Write pictures of all colours, 64x48, 25 per second; the codec is the file's stem unless it is given."""
    name = codec or (path.stem if path.stem in CODECS else "mjpeg" if path.suffix == ".avi" else "h264")
    with av.open(str(path), "w", format=form) as container:
        # Its type goes by the codec, of which this is a variable.
        stream: Any = container.add_stream(CODECS[name], rate=25)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "yuvj420p" if name == "mjpeg" else "yuv420p"
        # A key frame every five pictures; MPEG-4 would make one of every new colour.
        stream.options = {"g": "5"} | ({"sc_threshold": "1000000000"} if name == "mpeg4" else {})
        for colour in COLOURS * repeats:
            pixels = np.broadcast_to(np.array(colour, np.uint8), (48, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def colour_of(sample: Sample) -> tuple[int, int, int]:
    """Return the colour of a picture; codecs change it a little, but over the whole picture alike."""
    mean = sample.data.reshape(-1, 3).mean(axis=0)
    nearest = min(COLOURS, key=lambda colour: float(np.abs(mean - colour).max()))
    assert np.abs(sample.data.astype(int) - nearest).max() <= 12, (mean, nearest)
    return nearest


def damage(path: Path, *numbers: int, intact: float = 0.0) -> None:
    """Overwrite pictures of an AVI file, but for a share at their beginning."""
    content = bytearray(path.read_bytes())
    place, number = content.find(b"movi") + 4, 0
    while content[place : place + 4] == b"00dc":
        size = int.from_bytes(content[place + 4 : place + 8], "little")
        place += 8
        if number in numbers:
            begin = place + int(size * intact)
            content[begin : place + size] = b"\xa5" * (place + size - begin)
        place += size + size % 2
        number += 1
    assert number == len(COLOURS)
    path.write_bytes(content)
