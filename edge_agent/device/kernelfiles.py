"""Small files of /sys and /proc. That one is not there is an answer: the device does not have that sensor."""

import errno
from pathlib import Path

import structlog

log = structlog.get_logger()

# The driver has no value now: the speed of a link that is down, the temperature of a sensor that is switched off.
_NO_VALUE = (errno.EINVAL, errno.ENODATA, errno.EAGAIN, errno.EOPNOTSUPP)
# As much as any of them holds; sysfs itself gives no more than a page.
_LONGEST = 65536


class KernelFiles:
    """Reads below `root`. What cannot be read is absent, and told of in the log once."""

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._told: set[str] = set()

    def path(self, path: str) -> Path:
        """Return where a file is."""
        return self._root / path

    def text(self, path: str) -> str | None:
        """Return what stands in a file, without blanks and NULs around it; None where there is nothing to read."""
        try:
            with (self._root / path).open("rb") as file:
                content = file.read(_LONGEST)
        except (FileNotFoundError, NotADirectoryError, ProcessLookupError):
            return None
        except OSError as error:
            if error.errno not in _NO_VALUE:
                self._tell(path, error.strerror or str(error))
            return None
        return content.decode("utf-8", errors="replace").strip(" \t\r\n\0")

    def number(self, path: str) -> int | None:
        """Return the whole number in a file, or None."""
        text = self.text(path)
        if text is None:
            return None
        try:
            return int(text)
        except ValueError:
            self._tell(path, f"{text[:40]!r} is no number")
            return None

    def field(self, path: str, place: int) -> float | None:
        """Return the number that stands in a file at a place (from 0) between blanks, or None."""
        text = self.text(path)
        if text is None:
            return None
        try:
            return float(text.split()[place])
        except (ValueError, IndexError):
            self._tell(path, f"{text[:40]!r} has no number {place}")
            return None

    def names(self, folder: str) -> list[str]:
        """Return what is in a folder, sorted; empty where there is none."""
        try:
            return sorted(entry.name for entry in (self._root / folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            self._tell(folder, error.strerror or str(error))
            return []

    def exists(self, path: str) -> bool:
        """Tell whether there is such a file, folder or link."""
        return (self._root / path).exists()

    def _tell(self, path: str, reason: str) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("a sensor cannot be read, and is left out", file=str(self._root / path), reason=reason)
