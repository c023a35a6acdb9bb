"""Tries a model file in a throw-away process before the worker that is at work may touch it.

A damaged file can crash the runtime instead of raising. `python -m edge_agent.inference.model_check FILE` builds
an interpreter and, unless the model needs an Edge TPU, runs it once on zeros; it prints the reason and exits with 1
when the file is refused. This module is imported by the agent, so the runtime is imported only in the child.
"""

import asyncio
import contextlib
import sys

from edge_agent.inference.child import child_environment, describe_exit

CHECK_DEADLINE = 60.0
_REFUSED = 1


async def check_model(path: str, *, deadline: float = CHECK_DEADLINE) -> str | None:
    """Return why the file cannot be used, or None when the runtime gets along with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m"),
        "edge_agent.inference.model_check",
        path,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(),
    )
    try:
        async with asyncio.timeout(deadline):
            output, _ = await process.communicate()
    except TimeoutError:
        return f"the runtime was not done with it after {deadline:.0f} s"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode == 0:
        return None
    said = output.decode(errors="replace").strip()
    if process.returncode == _REFUSED and said:
        return said
    return f"the runtime crashes on it ({describe_exit(process.returncode or 0)})"


def main() -> int:
    """Check the file named on the command line."""
    from edge_agent.inference.model import ModelRefused, try_file  # noqa: PLC0415  not in the agent's process

    try:
        try_file(sys.argv[1])
    except ModelRefused as refused:
        sys.stdout.write(f"{refused}\n")
        return _REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
