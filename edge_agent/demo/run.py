"""`edge-agent demo`: the real daemon, on settings of its own, in a folder of its own."""

import json
import os
import shlex
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

from edge_agent.daemon import run as run_daemon
from edge_agent.directories import Directories

HERE = Path(__file__).parent
SETTINGS = HERE / "demo.toml"
MODEL = HERE / "vibration_classifier.tflite"
EVENTS = "events.jsonl"


def run(folder: Path | None) -> int:
    """Run until Ctrl-C, and say what was written; returns the exit status. A folder that is not given is temporary."""
    try:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            return _run(folder.absolute(), "were written to {file}")
        with tempfile.TemporaryDirectory(prefix="edge-agent-demo-") as temporary:
            return _run(Path(temporary), "were written to {file}, which is removed now (--state-dir DIR keeps it)")
    except OSError as error:
        where = error.filename or folder or "temporary folder"
        sys.stderr.write(f"edge-agent demo: {where}: {error.strerror}\n")
        return os.EX_CANTCREAT


def _run(folder: Path, fate: str) -> int:
    settings = folder / "edge-agent.toml"
    settings.write_text(SETTINGS.read_text().replace('"MODEL"', json.dumps(str(MODEL))))
    sys.stderr.write(
        f"The demo's settings are in {settings}; Ctrl-C ends it.\n"
        f"In another terminal: {shlex.join([*_program(), 'status', '--state-dir', str(folder)])}\n"
    )
    status = run_daemon(settings, Directories(folder))
    _summarise(folder / EVENTS, fate)
    return status


def _program() -> list[str]:
    """Return how this program is called from anywhere: in a clone the shell does not find it."""
    return ["edge-agent"] if shutil.which("edge-agent") else [sys.executable, "-m", "edge_agent"]


def _summarise(file: Path, fate: str) -> None:
    if not file.exists():
        return
    kinds, last = Counter[str](), b"none"
    with file.open("rb") as lines:
        for line in lines:
            try:
                kind = json.loads(line)["kind"]
            except ValueError:
                continue  # torn by the sudden end of a demo before this one
            kinds[kind] += 1
            last = line.rstrip() if kind == "result" else last
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    what_became = fate.format(file=file)
    sys.stderr.write(f"{kinds.total()} events ({counted}) {what_became}; the last result:\n{last.decode()}\n")
