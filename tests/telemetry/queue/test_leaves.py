"""Rows read from the pages of a file are those that SQLite reads, and damage costs rows and nothing else."""

import contextlib
import random
import sqlite3
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.telemetry.queue import leaves

PAGE = 4096
KEYS = st.integers(-(1 << 63), (1 << 63) - 1)
NUMBERS = st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(-300, 300)
# Around the sizes at which a value leaves its page.
SIZES = st.integers(0, 300) | st.integers(3900, 4100) | st.integers(8000, 8300) | st.integers(0, 60_000)


def write(path: Path, rows: Mapping[int, tuple[int | None, bytes]], gone: set[int]) -> None:
    """Make a file with the rows, after those that are `gone` were there, too."""
    path.unlink(missing_ok=True)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA auto_vacuum=INCREMENTAL")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, number INTEGER, data BLOB NOT NULL)")
        db.execute("BEGIN")
        db.executemany("INSERT INTO t VALUES (?, ?, ?)", [(key, *values) for key, values in rows.items()])
        db.executemany("DELETE FROM t WHERE id = ?", [(key,) for key in gone])
        db.execute("COMMIT")


def read(path: Path) -> dict[int, tuple[object, ...]]:
    return {key: tuple(values[1:]) for key, values in leaves.rows(path, lambda _: True) if len(values) == 3}


@settings(max_examples=60)
@given(
    rows=st.dictionaries(KEYS, st.tuples(st.none() | NUMBERS, SIZES), min_size=1, max_size=60),
    gone=st.randoms(use_true_random=False),
)
def test_the_rows_are_those_of_sqlite(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[int, tuple[int | None, int]], gone: random.Random
) -> None:
    path = tmp_path_factory.mktemp("leaves") / "t.db"
    full = {key: (number, random.Random(key).randbytes(size)) for key, (number, size) in rows.items()}
    deleted = {key for key in full if gone.random() < 0.5}
    write(path, full, deleted)
    assert read(path) == {key: values for key, values in full.items() if key not in deleted}


def test_only_what_is_wanted_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.db"
    write(path, {key: (key, b"x" * 5000) for key in range(1, 400)}, set())
    assert sorted(key for key, _ in leaves.rows(path, lambda key: key % 7 == 0)) == list(range(7, 400, 7))


def test_a_file_of_no_page_has_no_row(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert list(leaves.rows(tmp_path / "empty", lambda _: True)) == []


@pytest.mark.parametrize("seed", range(10))
def test_damage_costs_rows_and_nothing_else(tmp_path: Path, seed: int) -> None:
    path, dice = tmp_path / "t.db", random.Random(seed)
    rows = {key: (key, dice.randbytes(dice.choice((50, 3000, 9000)))) for key in range(1, 200)}
    write(path, rows, set())
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        for _ in range(size // PAGE // 4):
            file.seek(dice.randrange(size))
            file.write(dice.randbytes(dice.choice((1, 2, 200))))
    found = read(path)
    assert sum(found.get(key) == values for key, values in rows.items()) > len(rows) // 3
