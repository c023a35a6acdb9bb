"""Builds the stand-in for the Edge TPU's driver, and the environment in which a child process finds it.

`edgetpu_standin.c` says what the stand-in does and which variables steer it.
"""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SOURCE = Path(__file__).with_name("edgetpu_standin.c")
LIBRARY_NAME = "libedgetpu.so.1"


def why_not() -> str | None:
    """Why the stand-in cannot be built on this machine; None if it can."""
    if compiler() is None:
        return "no C compiler: install one, or name it in CC"
    if platform.architecture()[0] != "64bit":
        return "the stand-in knows the layouts of 64-bit systems only"
    return None


def build(folder: Path) -> Path:
    """Builds `libedgetpu.so.1` in this folder; returns its path. RuntimeError with what the compiler said."""
    library = folder / LIBRARY_NAME
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-shared", "-fPIC", "-fvisibility=hidden"]
    command = [str(compiler()), *flags, f"-Wl,-soname,{LIBRARY_NAME}", "-o", str(library), str(SOURCE), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} cannot be built: {done.stderr}")
    return library


def environment(
    folder: Path,
    mode: str = "ok",
    *,
    after: int = 0,
    delay_ms: int = 100,
    devices: Sequence[tuple[str, Path]] = (),
    state: Path | str = "",
    log: Path | str = "",
) -> dict[str, str]:
    """This process's environment, so changed that a child finds the stand-in in `folder`, in this mode.

    `devices` are type and node of each, in the driver's order; without any there is one, of both types.
    """
    others = os.environ.get("LD_LIBRARY_PATH", "")
    return os.environ | {
        "LD_LIBRARY_PATH": f"{folder}:{others}" if others else str(folder),
        "EDGETPU_STANDIN_MODE": mode,
        "EDGETPU_STANDIN_AFTER": str(after),
        "EDGETPU_STANDIN_DELAY_MS": str(delay_ms),
        "EDGETPU_STANDIN_DEVICES": ",".join(f"{kind}={node}" for kind, node in devices),
        "EDGETPU_STANDIN_STATE": str(state),
        "EDGETPU_STANDIN_LOG": str(log),
    }


def read_log(path: Path) -> list[dict[str, Any]]:
    """What happened, in order, in all processes that had this file for their log."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def compiler() -> str | None:
    """The C compiler, if there is one."""
    return shutil.which(os.environ.get("CC") or "cc")
