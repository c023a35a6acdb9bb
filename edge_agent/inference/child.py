"""What the worker and the throw-away children have in common: environment, end with the parent, exit status."""

import os
import signal

_PR_SET_PDEATHSIG = 1

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


def die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies: then nobody is left to work for."""
    import ctypes  # noqa: PLC0415  the parent imports this module too

    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def describe_exit(status: int) -> str:
    """Say how a process ended; `status` as in `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
