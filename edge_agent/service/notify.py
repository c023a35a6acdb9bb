"""Tells systemd how the service is doing (sd_notify). Without systemd, that is without $NOTIFY_SOCKET, nothing happens.

What systemd does not take at once goes out with the next notification: a full socket must not hold up the agent.
Child processes must not inherit $NOTIFY_SOCKET and $WATCHDOG_USEC: whoever starts one leaves them out.
"""

import os
import time
from collections.abc import Callable

import sdnotify
import structlog

_STATUS_INTERVAL = 1.0
_MAX_STATUS = 1024

log = structlog.get_logger()


class ServiceManager:
    """The conversation with systemd. `watchdog_interval` is how often to call `watchdog`, in seconds, if at all."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.watchdog_interval = _watchdog_interval()
        self._clock = clock
        self._notifier = _connect()
        self._unsent: dict[str, str] = {}
        self._status = ""
        self._status_sent = -_STATUS_INTERVAL

    def ready(self, status: str) -> None:
        """The service is up, or has finished a reload."""
        self._set_status(status)
        self._send(READY="1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`. Sent when it differs, and at most once a second.

        What comes sooner goes out with the next notification, for instance the next call a second later.
        """
        self._set_status(text)
        if "STATUS" in self._unsent and self._clock() - self._status_sent >= _STATUS_INTERVAL:
            self._send()

    def reloading(self) -> None:
        """The settings are being loaded again; `ready` must follow."""
        self._send(RELOADING="1", MONOTONIC_USEC=str(time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000))

    def stopping(self) -> None:
        """The service is going down."""
        self._send(STOPPING="1")

    def watchdog(self) -> None:
        """The service is alive."""
        self._send(WATCHDOG="1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for this much time from now on for the start, reload or stop that is under way."""
        self._send(EXTEND_TIMEOUT_USEC=str(round(seconds * 1_000_000)))

    def close(self) -> None:
        """Close the socket; nothing is sent any more."""
        if self._notifier:
            self._notifier.socket.close()
            self._notifier = None

    def _set_status(self, text: str) -> None:
        line = "".join(c if c.isprintable() else " " for c in text)[:_MAX_STATUS]
        if line != self._status:
            self._status = self._unsent["STATUS"] = line

    def _send(self, **assignments: str) -> None:
        self._unsent |= assignments
        if not self._notifier:
            self._unsent.clear()
            return
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            # sdnotify encodes as Latin-1, systemd reads UTF-8.
            self._notifier.notify(message.encode().decode("latin-1"))
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("systemd cannot be notified", error=str(error))
            return
        if "STATUS" in self._unsent:
            self._status_sent = self._clock()
        self._unsent.clear()


def _connect() -> sdnotify.SystemdNotifier | None:
    if not (address := os.environ.get("NOTIFY_SOCKET")):
        return None
    try:
        notifier = sdnotify.SystemdNotifier(debug=True)  # debug: raise, where it would otherwise keep silent
    except OSError as error:
        log.warning("systemd cannot be notified", socket=address, error=str(error))
        return None
    notifier.socket.settimeout(0)
    return notifier


def _watchdog_interval() -> float | None:
    """Half of what systemd allows, as sd_watchdog_enabled(3) recommends; None if it does not watch this process."""
    usec = os.environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) == 0 or os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    return int(usec) / 2_000_000
