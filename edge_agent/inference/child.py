"""What the worker and the throw-away children have in common: environment and exit status."""

import os
import signal

# Children talk neither to systemd nor to the cloud.
_WITHHELD = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "CREDENTIALS_DIRECTORY",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


def child_environment() -> dict[str, str]:
    """Return the environment for a child: the agent's, without what is none of its business."""
    environment = {name: value for name, value in os.environ.items() if name not in _WITHHELD}
    # NumPy's linear algebra is not used; its threads and their stacks would be kept for nothing.
    environment.setdefault("OPENBLAS_NUM_THREADS", "1")
    return environment


def describe_exit(status: int) -> str:
    """Say how a process ended; `status` as in `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
