"""Who has an Edge TPU open, as far as the kernel tells."""

import os
from pathlib import Path

from edge_agent.inference.accelerators.lock import lock_holder

# Of a command line; enough for "python3 -m frigate".
_LONGEST_COMMAND = 60
THIS_SERVICE = "this service"


def find_owner(name: str, node: Path, root: Path, told: int = 0) -> str:
    """Say who has the device `name` open through `node`: this service, a process, or another program.

    Other users' processes show their open files to root alone. Of those only an edge-agent can be told, by its lock,
    and whom the driver names, `told`. That comes last: the number is one outside of all containers (gasket_core.c has
    it from task_struct.tgid), by which a process in a container does not know itself.
    """
    return describe_process(_process_with_open(node, root / "proc") or lock_holder(name, root) or told, root)


def describe_process(pid: int | None, root: Path) -> str:
    """Say in words which process this is; None or 0 is one that cannot be seen from here."""
    if not pid:
        return "another program"
    if os.getpid() in {pid, _parent(pid, root)}:
        return THIS_SERVICE
    command = _command(pid, root)
    if "edge_agent" in command:
        return f"another edge-agent (process {pid})"
    return f"process {pid} ({command})" if command else f"process {pid}"


def _process_with_open(node: Path, proc: Path) -> int | None:
    wanted = str(node)
    for process in proc.glob("[0-9]*"):
        try:
            if any(_target(link) == wanted for link in (process / "fd").iterdir()):
                return int(process.name)
        except OSError:  # it has ended, or is somebody else's
            continue
    return None


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # noqa: PTH115  thousands of them
    except OSError:
        return ""


def _parent(pid: int, root: Path) -> int | None:
    try:
        # The second field is the command in parentheses, and may hold any character.
        fields = (root / f"proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return int(fields[1])
    except (OSError, IndexError, ValueError):
        return None


def _command(pid: int, root: Path) -> str:
    try:
        raw = (root / f"proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    words = raw.replace(b"\0", b" ").decode(errors="replace").strip()
    return words if len(words) <= _LONGEST_COMMAND else words[: _LONGEST_COMMAND - 1] + "…"
