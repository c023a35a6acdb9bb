"""Whether the queue's directory can be used, and when it is tried again."""

from pathlib import Path

import structlog

_MAX_BACKOFF = 64  # ticks between two tries of a store that fails
_FAILURES_OF_DAMAGE = 8  # in succession: then it may be the file and not the disk

log = structlog.get_logger()


class Trouble:
    """Counts failures of the store. `reason` says what is wrong, in words, or None."""

    def __init__(self, directory: Path) -> None:
        self.reason: str | None = None
        self._directory = directory
        self._failures = self._skip = 0

    @property
    def waiting(self) -> bool:
        """Whether the store is left alone for now."""
        return self._skip > 0

    def tick(self, *, closing: bool) -> None:
        self._skip = 0 if closing else max(0, self._skip - 1)

    def looks_like_damage(self) -> bool:
        """Return once in a while, while the store fails again and again, that the file is to be looked through."""
        if self._failures < _FAILURES_OF_DAMAGE:
            return False
        self._failures = 0
        return True

    def failed(self, error: Exception, memory: int) -> None:
        """Note a failure; `memory` is how many bytes of events can be kept without the store."""
        if self.reason is None:
            log.error("the queue cannot use its directory", directory=str(self._directory), error=str(error))
        self.reason = f"cannot use {self._directory}: {error}; events are kept in memory, at most {memory >> 20} MB"
        self._skip = min(2**self._failures, _MAX_BACKOFF)
        self._failures = min(self._failures + 1, _FAILURES_OF_DAMAGE)

    def over(self) -> None:
        if self.reason is not None:
            log.info("the queue can use its directory again", directory=str(self._directory))
        self.reason = None
        self._failures = 0
