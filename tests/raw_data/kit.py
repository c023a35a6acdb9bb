"""What the worker does with pictures, for tests of what becomes of them."""

import os
from pathlib import Path

from edge_agent.raw_data.spool import Spool

JPEG = b"\xff\xd8picture\xff\xd9"


def hand_over(spool: Spool, number: int, data: bytes = JPEG) -> str:
    """Do what the worker does; the number is also the time, in seconds."""
    spool.handover.mkdir(parents=True, exist_ok=True)
    path = spool.handover / f"edge-001,2026-05-01,{number:06d}.000-{number:x}.jpg"
    path.write_bytes(data)
    os.utime(path, (number, number))
    return path.name


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []
