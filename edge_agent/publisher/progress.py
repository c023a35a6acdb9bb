"""How far an upload is: a bar on a terminal, a line for each file anywhere else."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm


@contextmanager
def show_progress(name: str, size: int) -> Iterator[Callable[[int], None]]:
    """Show how far a file of `size` bytes is; yields what is to be told of each number of bytes."""
    if not sys.stderr.isatty():
        sys.stdout.write(f"{name}: {size_in_words(size)}\n")
        yield lambda _: None
        return
    # It would begin a thread that looks after bars which stand still.
    tqdm.monitor_interval = 0
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, file=sys.stderr) as bar:
        yield bar.update


def size_in_words(size: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"  # noqa: PLR2004  a million
