"""What the worker and the throw-away children have in common: command, environment, end, exit status."""

import os
import signal
import sys
import sysconfig
from pathlib import Path

import edge_agent

_PR_SET_PDEATHSIG = 1

# Children talk neither to systemd nor to the cloud.
_WITHHELD = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "CREDENTIALS_DIRECTORY",
    "GOOGLE_APPLICATION_CREDENTIALS",
)


# As much more likely to be killed for memory as half of all memory would make it; see proc_pid_oom_score_adj(5).
_OOM_SCORE_ADJ = 500


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of this program in a child.

    A program that heeds neither PYTHON… variables nor the user's own packages (`python -I`) has children that do
    not, either; `child_environment` tells them where the program lies.
    """
    own_packages = ["-s"] if sys.flags.no_user_site else []
    return [sys.executable, "-P", *own_packages, "-m", module, *arguments]


def child_environment() -> dict[str, str]:
    """Return the environment for a child: the agent's, without what is none of its business."""
    environment = {name: value for name, value in os.environ.items() if name not in _WITHHELD}
    if sys.flags.ignore_environment:
        environment = {name: value for name, value in environment.items() if not name.startswith("PYTHON")}
    home = str(Path(edge_agent.__file__).parents[1])
    if home not in (sysconfig.get_path("purelib"), sysconfig.get_path("platlib")):
        given = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{home}{os.pathsep}{given}" if given else home
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


def volunteer_for_oom_killer() -> None:
    """Make this process the first to go when memory runs out: the agent brings it back, and nobody the agent."""
    try:
        Path("/proc/self/oom_score_adj").write_text(f"{_OOM_SCORE_ADJ}\n", encoding="ascii")
    except OSError as error:  # where /proc may not be written the kernel decides by size alone
        sys.stderr.write(f"the worker could not volunteer for the OOM killer: {error}\n")


def describe_exit(status: int) -> str:
    """Say how a process ended; `status` as in `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
