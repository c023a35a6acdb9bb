import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.telemetry.queue import journal
from edge_agent.telemetry.queue.journal import Committed, Done, Header, Journal, Put
from edge_agent.telemetry.queue.losses import Loss
from edge_agent.telemetry.queue.seqs import first_seqs

HEADER = Header(
    boot_id="boot-1",
    epoch=7,
    base=0,
    next_seqs=first_seqs(),
    stored=[0, 0, 4, 5],
    saved_ends=first_seqs(),
    losses=[Loss("damaged", 2, -1, 1)],
    reports=[(3, Loss("expired", 2, 1, 2))],
    done=[(4, 6)],
)


def begin(directory: Path, header: Header = HEADER) -> Journal:
    writer = Journal(directory)
    fd = writer.prepare()
    assert fd is not None
    writer.begin(fd, header)
    return writer


def put(writer: Journal, seq: int, events: list[bytes], *, reported: tuple[Loss, ...] = ()) -> None:
    writer.append(journal.put_frame(seq, len(events), b"\n".join(events), 10, 20, reported=reported))


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    put(writer, 1, [b"a", b"", b"c"], reported=(Loss("expired", 1, 2, 3),))
    writer.append(journal.frame(Done([(1, 2)], Loss("rejected", 1, 10, 20))))
    writer.append(journal.frame(Committed([0, 0, 1, 4], first_seqs(5))))
    writer.close()
    [(number, path)] = journal.find([tmp_path, tmp_path / "missing"])
    file = journal.read(number, path)
    assert (file.number, file.clean, file.header) == (1, True, HEADER)
    assert file.records == [
        HEADER,
        Put(1, [b"a", b"", b"c"], 10, 20, [Loss("expired", 1, 2, 3)]),
        Done([(1, 2)], Loss("rejected", 1, 10, 20)),
        Committed([0, 0, 1, 4], first_seqs(5)),
    ]


def test_files_are_found_oldest_first(tmp_path: Path) -> None:
    for name in ("journal-10", "journal-9", "journal-x", "queue.db"):
        (tmp_path / name).touch()
    assert [number for number, _ in journal.find([tmp_path, tmp_path])] == [9, 10]


@pytest.mark.parametrize("missing", [1, 5, 60])
def test_a_torn_end_costs_only_the_last_record(tmp_path: Path, missing: int) -> None:
    writer = begin(tmp_path)
    put(writer, 1, [b"first"])
    put(writer, 2, [b"x" * 100])
    writer.close()
    path = tmp_path / "journal-1"
    os.truncate(path, path.stat().st_size - missing)
    file = journal.read(1, path)
    assert not file.clean
    assert [record.events for record in file.records if isinstance(record, Put)] == [[b"first"]]


@settings(max_examples=300, deadline=None)
@given(flips=st.lists(st.integers(0, 10**9), min_size=1, max_size=5))
def test_flipped_bits_cost_only_the_records_they_hit(
    tmp_path_factory: pytest.TempPathFactory, flips: list[int]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal-1"
    writer = begin(path.parent)
    for seq in range(1, 101):
        put(writer, seq, [b'{"number": %d}' % seq])
    writer.close()
    data = bytearray(path.read_bytes())
    for flip in flips:
        data[flip // 8 % len(data)] ^= 1 << flip % 8
    path.write_bytes(data)
    puts = [record for record in journal.read(1, path).records if isinstance(record, Put)]
    assert all(put.events == [b'{"number": %d}' % put.seq] for put in puts)
    assert len(puts) >= 100 - len(flips)


def test_a_record_that_cannot_be_written_ends_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "MAX_SIZE", 1000)
    writer = begin(tmp_path)
    put(writer, 1, [b"fits"])
    assert not writer.failed
    put(writer, 2, [b"x" * 2000])
    put(writer, 3, [b"would fit, but comes after a hole"])
    assert writer.failed
    assert "journal-1" in str(writer.trouble)
    file = journal.read(1, tmp_path / "journal-1")
    assert not file.clean
    assert [record.seq for record in file.records if isinstance(record, Put)] == [1]
    fd = writer.prepare()
    assert fd is not None
    writer.begin(fd, HEADER)
    assert (writer.failed, writer.trouble) == (False, None)
    writer.close()


def test_files_are_given_up_oldest_first_and_only_when_not_needed(tmp_path: Path) -> None:
    writer = Journal(tmp_path)
    for next_seq in (1, 10, 20, 30):
        fd = writer.prepare()
        assert fd is not None
        writer.begin(fd, msgspec.structs.replace(HEADER, next_seqs=[*first_seqs()[:3], next_seq]))
    assert writer.take_sealed([None, None, None, 9]) == []
    assert writer.take_sealed([first_seqs()[0] - 1, None, None, None]) == []
    given = writer.take_sealed([None, first_seqs(7)[1], None, 20])
    assert [sealed.number for sealed in given] == [1, 2]
    journal.remove(given)
    journal.remove(writer.take_sealed([None] * 4))
    assert [path.name for path in tmp_path.iterdir()] == ["journal-4"]
    writer.close()


def test_an_ended_journal_shows_whether_numbers_follow(tmp_path: Path) -> None:
    for torn in (True, False):
        writer = begin(tmp_path)
        writer.end(first_seqs(), torn=torn)
        put(writer, 1, [b"not written"])
        file = journal.read(1, tmp_path / "journal-1")
        assert (file.clean, file.records) == (not torn, [HEADER])
        writer.close()
