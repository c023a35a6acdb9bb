"""Builds `faultio.c`, which says what it does, and the environment of a child in which files fail."""

import os
import subprocess
from pathlib import Path

from tests.standin.build import compiler

SOURCE = Path(__file__).with_name("faultio.c")
ROOT = Path(__file__).parents[2]


def why_not() -> str | None:
    """Why it cannot be built on this machine; None if it can."""
    return None if compiler() is not None else "no C compiler: install one, or name it in CC"


def build(folder: Path) -> Path:
    """Build the library in this folder and return its path."""
    library = folder / "faultio.so"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-fvisibility=hidden"]
    subprocess.run([str(compiler()), *flags, "-o", str(library), str(SOURCE), "-ldl"], check=True)
    return library


def environment(library: Path, folder: Path) -> dict[str, str]:
    """This process's environment, so changed that in a child files below `folder` fail when it says so."""
    return os.environ | {"LD_PRELOAD": str(library), "FAULTIO_ROOT": str(folder), "PYTHONPATH": str(ROOT)}
