"""Image files: one, those of a folder, or those that match a pattern; also the ones that arrive later.

Files are taken in the order of their names at the start, afterwards in the order in which they arrive. A file that is
written again is a new image. A damaged image is left out, counted and named.

A position is a file name; going on continues with the names that sort behind it.
"""

import errno
import os
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
import numpy.typing as npt
from annotated_types import Ge, Le, doc
from PIL import Image, ImageOps, UnidentifiedImageError

from edge_agent.records import Sample
from edge_agent.sources.base import Pacer, Source, SourceEnded, SourceError, describe, printable
from edge_agent.sources.folder import Arrivals, Selection, Version

Pixels = npt.NDArray[np.uint8]

# What cameras and people produce. Pillow knows more formats, some of which run other programs.
FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
# Pillow has mode "I" for 32 bits, and for the 16 bits of these, which know no more.
_16_BITS = {"PNG", "PPM"}
# The safety net under inotify. A file is taken when two scans saw it unchanged.
SCAN_INTERVAL = 30.0


def decode(file: BinaryIO) -> Pixels:
    """Return the image as RGB of shape (height, width, 3), upright. Pillow raises nearly anything on damage."""
    with Image.open(file, formats=FORMATS) as image:
        # In place: else an image that stands upright already, as nearly all do, would be copied.
        ImageOps.exif_transpose(image, in_place=True)
        upright: Image.Image = image
        if image.mode.startswith("I;16") or (image.mode == "I" and image.format in _16_BITS):
            # Pillow would cut off everything above 255.
            upright = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if upright.mode in {"I", "F"}:
            raise ValueError("its pixels are 32-bit numbers; expected 8 or 16 bits")
        # `convert` would copy an image that is RGB already.
        return np.asarray(upright if upright.mode == "RGB" else upright.convert("RGB"))


class Images(Source):
    """Image files as uint8 arrays of shape (height, width, 3). Never live: each waits for the model."""

    @dataclass(frozen=True, kw_only=True)
    class Options:
        """Options in the [source] table."""

        path: Annotated[
            Path, doc("A file, a folder, or a pattern for the names in a folder, such as /srv/camera/*.jpg.")
        ]
        rate: Annotated[float, Ge(0), Le(1000), doc("Images per second; 0: as fast as possible.")] = 0.0
        repeat: Annotated[bool, doc("Begin again after the last one.")] = False
        watch: Annotated[bool, doc("Take images that arrive later, too, each as soon as it is complete.")] = True

        def check(self) -> None:
            """Look for the folder and for a first image. Raises ValueError, or OSError where there is none now."""
            if not self.selection().scan() and not self.watch:
                raise FileNotFoundError(errno.ENOENT, "no image there, and watch = false", str(self.path))

        def selection(self) -> Selection:
            """Return what `path` means. Raises ValueError."""
            return Selection.of(self.path, SUFFIXES)

    def __init__(
        self, options: Options, *, pacer: Pacer | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(options)
        self.live = False
        self._options = options
        self._pacer = pacer or Pacer(options.rate)
        self._clock = clock
        self._arrivals: Arrivals | None = None
        # A single image played again and again need not be decoded each time.
        self._decoded: tuple[Version, Pixels] | None = None
        # What was passed over; unlike `_done` also when all files are played again.
        self._deadly: dict[str, Version] = {}

    def open(self, resume: str | None) -> None:
        """Begin to watch, list what is there, and go on after `resume`."""
        self.close()
        # Pillow only warns of images up to twice its limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            self._selection = self._options.selection()
            self._folder_id = self._selection.folder_id()
            if self._options.watch:
                self._arrivals = Arrivals(self._selection)
            found = self._selection.scan()
        except (OSError, ValueError) as error:
            raise _unreadable(error) from error
        self._next_scan = self._clock() + SCAN_INTERVAL
        done = {name: version for name, version in found.items() if resume and printable(name) <= resume}
        self._pending = OrderedDict.fromkeys(name for name in found if name not in done)
        # What was worked on or refused, in which version; and what the last scan saw of the rest.
        self._done = done
        self._unsure: dict[str, Version] = {}
        # Whether this round through the files has had any image: a round without must not be repeated at once.
        self._fruitful = bool(done)

    def pass_over(self) -> None:
        """Leave out the next file as it is now. A damaged one counts, too: finding out means decoding it."""
        with suppress(SourceEnded):  # `read` tells it
            while (name := self._next_name(0.0)) is not None:
                version = self._version(name)
                if version is not None and version not in (self._done.get(name), self._deadly.get(name)):
                    self._done[name] = self._deadly[name] = version
                    self.skip_deadly(name)
                    return

    def read(self, timeout: float) -> Sample | None:
        """Return the next image that can be decoded."""
        give_up = self._clock() + timeout
        if not self._pacer.wait(timeout):
            return None
        while True:
            name = self._next_name(max(0.0, give_up - self._clock()))
            if name is None:
                return None
            pixels = self._load(name)
            if pixels is not None:
                self._fruitful = True
                self._pacer.step()
                return Sample(pixels, time.monotonic_ns(), printable(name))
            if self._clock() >= give_up:
                return None

    def close(self) -> None:
        """End the watching."""
        if self._arrivals is not None:
            self._arrivals.stop()
            self._arrivals = None

    def _next_name(self, timeout: float) -> str | None:
        if self._arrivals is not None and self._clock() >= self._next_scan:
            self._scan_again()
        if not self._pending:
            self._pending.update(dict.fromkeys(self._more(timeout)))
        return self._pending.popitem(last=False)[0] if self._pending else None

    def _more(self, timeout: float) -> list[str]:
        names = self._arrivals.take(0) if self._arrivals is not None else []
        if names:
            return names
        if self._options.repeat and self._fruitful:
            self._fruitful = False
            self._done.clear()
            return list(self._scan())
        if self._arrivals is not None:
            return self._arrivals.take(min(timeout, max(0.0, self._next_scan - self._clock())))
        if self._options.repeat:
            reason = f"{self._options.path}: no image there can be used"
            raise SourceError(reason, "put images there, or set watch = true to wait for some")
        raise SourceEnded(f"{self._options.path}: all images were read")

    def _scan(self) -> dict[str, Version]:
        try:
            found, folder_id = self._selection.scan(), self._selection.folder_id()
        except OSError as error:
            raise _unreadable(error) from error
        if folder_id != self._folder_id:
            raise self._replaced()
        return found

    def _replaced(self) -> SourceError:
        reason = f"{self._selection.folder}: the folder was removed or replaced"
        return SourceError(reason, "nothing to do if it is there again: it is opened anew in a moment")

    def _scan_again(self) -> None:
        """Find files inotify did not tell of, once they do not change any more."""
        self._next_scan = self._clock() + SCAN_INTERVAL
        if self._arrivals is not None and not self._arrivals.alive:
            raise self._replaced()
        found = self._scan()
        self._done = {name: version for name, version in self._done.items() if name in found}
        rest = {name: version for name, version in found.items() if self._done.get(name) != version}
        self._pending.update((name, None) for name, version in rest.items() if self._unsure.get(name) == version)
        self._unsure = rest

    def _load(self, name: str) -> Pixels | None:
        """Return the image, or None: it was worked on before, or cannot be used."""
        try:
            return self._read_new(name)
        except Exception as error:  # noqa: BLE001  Pillow's decoders fail in any way on damaged files
            self.skip(f"{name}: {_explain(error)}")
            return None

    def _version(self, name: str) -> Version | None:
        """Return the version of a file, None when it is gone."""
        with suppress(OSError):
            return Version.of((self._selection.folder / name).stat())
        return None

    def _read_new(self, name: str) -> Pixels | None:
        path = self._selection.folder / name
        if not path.is_file():
            raise ValueError("no file, or no longer there")
        with path.open("rb") as file:
            version = Version.of(os.fstat(file.fileno()))
            if version in (self._done.get(name), self._deadly.get(name)):
                return None
            self._done[name] = version
            if self._decoded is not None and self._decoded[0] == version:
                return self._decoded[1]
            pixels = decode(file)
        if self._options.repeat:
            self._decoded = version, pixels
        return pixels


def _explain(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"no image in a known format ({', '.join(FORMATS)})"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return f"too large: it has more than {Image.MAX_IMAGE_PIXELS} pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__


def _unreadable(error: OSError | ValueError) -> SourceError:
    reason = describe(error) if isinstance(error, OSError) else str(error)
    return SourceError(reason, "see that the folder is there and that the service may read it")
