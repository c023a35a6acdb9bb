import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from edge_agent.telemetry.queue.queue import Loss, Priority, QueueLocked
from tests.telemetry.queue.queue_kit import BIG, MB, Disk, drain, left_for_dead, lost, put, run, ticks


@pytest.fixture(params=[True, False], ids=["runtime directory", "state directory"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(tmp_path, runtime=request.param)


# -- order, numbers, batches


def test_events_come_out_as_they_went_in(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 2500) + put(queue, 1) + [b""]
            queue.put(queue.next_number, [b""], 1, 1)
            await ticks(queue)  # to the store
            events += put(queue, 10)
            assert (queue.depth, queue.accepted) == (2512, 2512)
            assert await drain(queue, 999) == events
            assert (queue.depth, queue.acked) == (0, 2512)
            await ticks(queue)
            assert queue.size == 0

    run(body())


def test_put_refuses_what_would_break_the_order(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            put(queue, 3)
            with pytest.raises(ValueError, match="next event has number 4, not 5"):
                queue.put(5, [b"x"], 1, 1)
            with pytest.raises(ValueError, match="newline"):
                queue.put(4, [b"x\ny"], 1, 1)
            queue.put(4, [], 1, 1)
            assert queue.next_number == 4
        with pytest.raises(RuntimeError, match="closed"):
            queue.put(4, [b"x"], 1, 1)

    run(body())


def test_take_keeps_to_its_limits_and_gives_at_least_one(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 10, size=100)
            first = await queue.take(3, BIG)
            second = await queue.take(BIG, 250)
            third = await queue.take(BIG, 1)
            assert first is not None
            assert second is not None
            assert third is not None
            assert [first.events, second.events, third.events] == [events[:3], events[3:5], events[5:6]]
            for batch in (third, first, second):
                queue.ack(batch)
            assert await drain(queue) == events[6:]

    run(body())


def test_small_groups_of_the_store_are_taken_together(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = []
            for _ in range(20):
                events += put(queue, 5)
                await ticks(queue)
            events += put(queue, 5)
            batch = await queue.take(1000, BIG)
            assert batch is not None
            assert batch.events == events

    run(body())


@pytest.mark.parametrize("stored", [True, False])
def test_released_events_come_again_in_their_place(disk: Disk, stored: bool) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 30)
            if stored:
                await ticks(queue)
            first, second = await queue.take(10, BIG), await queue.take(10, BIG)
            assert first is not None
            assert second is not None
            await ticks(queue)
            queue.reject(second, 4, "poison")
            queue.release(second)
            queue.release(first)
            assert await drain(queue, 7) == events[:14] + events[15:]
            with pytest.raises(ValueError, match="handed back"):
                queue.ack(first)
            with pytest.raises(ValueError, match="handed back"):
                queue.release(second)

    run(body())


@pytest.mark.parametrize("size", [50, 500])
def test_what_is_out_is_not_loaded_with_the_group_it_stands_in(disk: Disk, size: int) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 5 * size)
            first, second = await queue.take(size, BIG), await queue.take(3 * size, BIG)
            assert first is not None
            assert second is not None
            queue.release(first)
            await ticks(queue)
            third, fourth = await queue.take(10, BIG), await queue.take(size, BIG)
            assert third is not None
            assert fourth is not None
            assert third.events == events[:10]
            assert fourth.events == events[10:size] + events[4 * size : 4 * size + 10]
            queue.release(second)
            queue.ack(third)
            queue.release(fourth)
            assert await drain(queue, 30) == events[10:]
            assert (queue.depth, queue.losses()) == (0, [])

    run(body())


def test_wait_returns_when_there_is_something_to_take(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            waiting = asyncio.create_task(queue.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            put(queue, 1)
            await waiting
            batch = await queue.take(10, BIG)
            assert batch is not None
            assert await queue.take(10, BIG) is None
            waiting = asyncio.create_task(queue.wait())
            await asyncio.sleep(0)
            assert not waiting.done()
            queue.release(batch)
            await waiting

    run(body())


# -- what reaches the card


def test_nothing_is_written_to_the_store_while_events_are_sent_in_time(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    async def body() -> None:
        async with disk.queue() as queue:
            before = card(disk)
            for _ in range(50):
                put(queue, 100)
                batch = await queue.take(1000, BIG)
                assert batch is not None
                await queue.tick()
                queue.ack(batch)
            await ticks(queue)
            assert card(disk) == before
            assert len(disk.journals()) == 1

    run(body())


def card(disk: Disk) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in disk.state.iterdir()}


def test_run_ticks_until_everything_is_stored_and_then_sleeps(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            queue.configure(max_size=BIG, commit_interval=0.001)
            running = asyncio.create_task(queue.run())
            put(queue, 100)
            while queue._keeper.accounts.unsaved.is_set():  # noqa: ASYNC110  # it is what the loop itself waits for
                await asyncio.sleep(0.001)
            copy = disk.copy(journals=False)
            running.cancel()
        async with copy.queue() as queue:
            assert queue.depth == 100

    run(body())


def test_a_long_interval_does_not_fill_the_journal(tmp_path: Path) -> None:
    """Events are sent at once, but come so fast that the journal would reach its limit before the next tick."""
    disk = Disk(tmp_path)

    async def body() -> None:
        async with disk.queue() as queue:
            queue.configure(max_size=256 * MB, commit_interval=3600)
            before = card(disk)
            running = asyncio.create_task(queue.run())
            for _ in range(1000):
                put(queue, 100, size=1000)
                batch = await queue.take(100, BIG)
                assert batch is not None
                queue.ack(batch)
                await asyncio.sleep(0)
                assert queue.trouble is None
            assert sum(path.stat().st_size for path in disk.journals()) < 64 * MB
            assert card(disk) == before
            running.cancel()

    run(body())


def test_a_cancelled_tick_is_finished_all_the_same(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 100)
            await queue.tick()
            for _ in range(5):
                journal = queue._keeper._journal.number
                tick = asyncio.create_task(queue.tick())
                while queue._keeper._journal.number == journal:  # noqa: ASYNC110  # the store is at work then
                    await asyncio.sleep(0)
                tick.cancel()
                events += put(queue, 10)
            assert await drain(queue) == events
            await ticks(queue)
            assert (queue.depth, queue.size, queue.trouble) == (0, 0, None)

    run(body())


def test_space_is_given_back_when_the_backlog_is_sent(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            for _ in range(6):
                put(queue, 20, noise=20_000)
                await ticks(queue)
            await drain(queue)
            await ticks(queue)
        assert disk.database.stat().st_size < MB

    run(body())


# -- ending and starting again


def test_a_clean_end_keeps_everything_and_the_numbers_go_on(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 1500)
            batch = await queue.take(100, BIG)
            assert batch is not None
            queue.reject(batch, 7, "poison")
            epoch = queue.epoch
        assert disk.journals() == []
        async with disk.queue(boot_id="boot-2") as queue:
            assert (queue.epoch, queue.next_number, queue.depth) == (epoch, 1501, 1499)
            assert lost(queue) == {"rejected": 1}
            assert await drain(queue) == events[:7] + events[8:]

    run(body())


def test_a_killed_agent_goes_on_where_it_was(disk: Disk) -> None:
    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events = put(queue, 100)
            await ticks(queue)
            events += put(queue, 100)
            batch = await queue.take(50, BIG)
            assert batch is not None
            queue.ack(batch)
            taken = await queue.take(50, BIG)
            assert taken is not None
            queue.reject(taken, 0, "poison")
            queue.count_loss("source_overrun", 3, 5, 6)
            epoch = queue.epoch
            copy = disk.copy()
        async with copy.queue() as queue:
            assert (queue.epoch, queue.next_number, queue.depth) == (epoch, 201, 149)
            assert lost(queue) == {"rejected": 1, "source_overrun": 3}
            assert await drain(queue) == events[51:]

    run(body())


def test_a_power_cut_costs_one_interval_at_most_and_no_id_comes_twice(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    async def body() -> None:
        ids: set[bytes] = set()
        needed: set[bytes] = set()
        epochs: list[int] = []
        current = disk
        for cut in range(6):
            async with left_for_dead(current.queue(boot_id=f"boot-{cut}")) as queue:
                epochs.append(queue.epoch)
                backlog = set(await drain(queue))
                assert backlog >= needed
                needed = set(put(queue, 20))
                await ticks(queue, 2)
                young = put(queue, 20)
                await ticks(queue, cut % 2)
                assert not ids & {*needed, *young}
                ids |= {*needed, *young}
                current = current.copy(journals=False)
        assert epochs == sorted(set(epochs))

    run(body())


def test_a_clock_that_stands_still_or_goes_back_never_repeats_an_epoch(tmp_path: Path) -> None:
    async def body() -> None:
        disk = Disk(tmp_path)
        epochs: list[int] = []
        for time in (5.0, 5.0, 0.0, 4.0):
            clock = iter([time]).__next__
            async with left_for_dead(disk.queue(boot_id=f"boot {len(epochs)}", clock=clock)) as queue:
                put(queue, 1)
                epochs.append(queue.epoch)
                disk = disk.copy(journals=False)
        assert epochs == [5000, 5001, 5002, 5003]

    run(body())


def test_a_journal_that_survives_a_power_cut_is_used(tmp_path: Path) -> None:
    disk = Disk(tmp_path, runtime=False)

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events, epoch = put(queue, 20), queue.epoch
            copy = disk.copy()
        async with copy.queue(boot_id="boot-2") as queue:
            assert queue.epoch > epoch
            assert queue.next_number == 1
            assert await drain(queue) == events

    run(body())


def test_a_journal_without_its_end_begins_a_new_epoch(tmp_path: Path) -> None:
    disk = Disk(tmp_path)

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events, epoch = put(queue, 20) + put(queue, 20), queue.epoch
            copy = disk.copy()
        data = copy.journals()[-1].read_bytes()
        copy.journals()[-1].write_bytes(data[:-1])
        async with copy.queue() as queue:
            assert queue.epoch > epoch
            assert lost(queue) == {}
            assert await drain(queue) == events[:20]

    run(body())


def test_close_keeps_to_its_deadline(disk: Disk) -> None:
    async def body() -> None:
        queue = disk.queue()
        await queue.open()
        events = put(queue, 100)
        held = asyncio.Event()
        loop = asyncio.get_running_loop()
        hang = queue._keeper._thread.submit(lambda: asyncio.run_coroutine_threadsafe(held.wait(), loop).result())
        await queue.close(deadline=0.01)
        held.set()
        await asyncio.wrap_future(hang)
        await loop.run_in_executor(None, queue._keeper._thread.shutdown)
        async with disk.queue() as queue:
            assert await drain(queue) == events

    run(body())


def test_two_agents_cannot_share_a_directory(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue():
            with pytest.raises(QueueLocked, match=f"process {os.getpid()}"):
                await disk.queue().open()
        async with disk.queue():
            pass

    run(body())


# -- losses


def test_the_oldest_events_are_dropped_when_the_queue_is_full_and_counted(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue(max_size=200_000) as queue:
            for ms in range(1, 41):
                events = put(queue, 10, ms=ms, noise=1000)
                await ticks(queue)
            assert queue.size <= 200_000
            (loss,) = queue.losses()
            assert loss == Loss("queue_full", queue.dropped, 1, queue.dropped // 10)
            assert queue.depth + queue.dropped == 400
            assert queue.oldest_ms == queue.dropped // 10 + 1
            copy = disk.copy()
            left = await drain(queue)
            assert len(left) == 400 - queue.dropped
            assert left[-10:] == events
        async with copy.queue() as queue:
            assert queue.losses() == [loss]
            assert await drain(queue) == left

    run(body())


def test_what_is_out_is_not_dropped(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue(max_size=3000) as queue:
            put(queue, 10, size=100)
            await ticks(queue)
            batch = await queue.take(5, BIG)
            assert batch is not None
            for _ in range(30):
                put(queue, 1, noise=500)
                await ticks(queue)
            dropped = queue.dropped
            queue.ack(batch)
            left = await drain(queue)
            assert len(left) + dropped + 5 == 40
            assert lost(queue) == {"queue_full": dropped}

    run(body())


def test_a_smaller_limit_counts_at_once(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            for _ in range(10):
                put(queue, 1, noise=1000)
                await ticks(queue)
            queue.configure(max_size=3100, commit_interval=1)
            await ticks(queue)
            assert (queue.depth, lost(queue)) == (3, {"queue_full": 7})

    run(body())


def test_losses_are_struck_off_with_the_event_that_reports_them(disk: Disk) -> None:
    def build(number: int, losses: Sequence[Loss]) -> list[bytes]:
        return [f"{number + i} {loss.cause} {loss.count}".encode() for i, loss in enumerate(losses)]

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            assert queue.report_losses(build, 1) == 0
            queue.count_loss("source_overrun", 3, 5, 6)
            queue.count_loss("source_overrun", 4, 2, 3)
            queue.count_loss("expired", 1, 9, 9)
            assert queue.losses() == [Loss("source_overrun", 7, 2, 6), Loss("expired", 1, 9, 9)]
            before = disk.copy()
            assert queue.report_losses(build, 10) == 2
            after = disk.copy()
            await ticks(queue)
            saved = disk.copy(journals=False)
        async with before.queue() as queue:
            assert (lost(queue), queue.depth) == ({"source_overrun": 7, "expired": 1}, 0)
        for copy in (after, saved):
            async with copy.queue() as queue:
                assert queue.losses() == []
                assert await drain(queue) == [b"1 source_overrun 7", b"2 expired 1"]

    run(body())


def test_rejected_events_are_kept_within_bounds(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            for _ in range(60):
                queue.put(queue.next_number, [b"x" * 30_000, b"y"], 1, 1)
                batch = await queue.take(2, BIG)
                assert batch is not None
                queue.reject(batch, 0, "too long")
                with pytest.raises(ValueError, match="rejected before"):
                    queue.reject(batch, 0, "again")
                queue.ack(batch)
                await queue.tick()
            assert (queue.acked, queue.dropped, lost(queue)) == (60, 60, {"rejected": 60})
        files = sorted(disk.state.glob("rejected*.jsonl"))
        assert len(files) == 2
        assert sum(path.stat().st_size for path in files) <= MB
        assert files[0].read_text().startswith('{"reason":"too long","event":"xxx')

    run(body())


# -- a disk that does not work


def test_a_state_directory_that_fails_is_trouble_and_nothing_more(tmp_path: Path) -> None:
    """A file stands where the folder should be, as it would after a mistake; later it is taken away."""
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")

    async def body() -> None:
        async with disk.queue() as queue:
            assert queue.trouble is not None
            assert str(disk.state) in queue.trouble
            events = put(queue, 10)
            await ticks(queue, 3)
            events += put(queue, 10)
            disk.state.unlink()
            await ticks(queue, 70)
            assert queue.trouble is None
            assert queue.size < 1000
            epoch = queue.epoch
        async with disk.queue() as queue:
            assert (queue.epoch, queue.next_number) == (epoch, 21)
            assert await drain(queue) == events

    run(body())


def test_a_backlog_that_can_be_read_again_later_comes_first(tmp_path: Path) -> None:
    async def body() -> None:
        first = Disk(tmp_path)
        async with left_for_dead(first.queue()) as queue:
            old = put(queue, 10)
            await ticks(queue)
            old += put(queue, 10)
            disk = first.copy()
        hidden = disk.state.rename(disk.root / "hidden")
        disk.state.write_text("in the way")
        async with disk.queue(clock=lambda: 1_800_000_000.0) as queue:
            new = put(queue, 5)
            assert queue.depth == 5
            disk.state.unlink()
            hidden.rename(disk.state)
            await ticks(queue, 3)
            assert (queue.depth, queue.trouble, lost(queue)) == (25, None, {})
            copy = disk.copy()
            assert await drain(queue) == old + new
        async with copy.queue() as queue:
            assert await drain(queue) == old + new

    run(body())


@pytest.mark.parametrize("saved", [True, False])
def test_an_agent_that_could_not_read_the_backlog_takes_nothing_from_its_books(tmp_path: Path, saved: bool) -> None:
    """It was killed as well, and had sent most of its own: between its numbers and those before nothing is missing."""

    async def body() -> None:
        first = Disk(tmp_path)
        async with left_for_dead(first.queue()) as queue:
            events = put(queue, 3)
            queue.count_loss("source_overrun", 5, 1, 2)
            await ticks(queue, 3 if saved else 0)
            events += put(queue, 3)
            second = first.copy()
        hidden = second.state.rename(tmp_path / "hidden")
        second.state.write_text("in the way")
        async with left_for_dead(second.queue(max_size=100_000, clock=lambda: 1_800_000_000.0)) as queue:
            for _ in range(10):
                put(queue, 10, size=936)
                await drain(queue)
                await queue.tick()
            queue.count_loss("sample_failed", 2, 1, 2)
            events += put(queue, 2)
            third = second.copy()
        hidden.rename(third.state)
        async with third.queue(clock=lambda: 1_900_000_000.0) as queue:
            assert lost(queue) == {"source_overrun": 5, "sample_failed": 2}
            assert await drain(queue) == events

    run(body())


def test_a_journal_that_cannot_be_written_keeps_the_events_and_ends_the_epoch(tmp_path: Path) -> None:
    """The folder of the journal disappears for a while."""
    disk, away = Disk(tmp_path), tmp_path / "away"
    runtime = tmp_path / "run"

    async def body() -> None:
        async with left_for_dead(disk.queue()) as queue:
            events = put(queue, 10)
            runtime.rename(away)
            await ticks(queue)
            assert queue.trouble is not None
            assert "journal-" in queue.trouble
            events += put(queue, 10)
            await queue.tick()
            away.rename(runtime)
            copy = disk.copy()
            await queue.tick()
            assert queue.trouble is None
            epoch = queue.epoch
        async with copy.queue() as queue:
            assert queue.epoch > epoch
            assert await drain(queue) == events

    run(body())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB, of which 700 KB are taken by `filler`."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"cannot mount a small file system: {mount.stderr.decode().strip()}")
    (folder / "filler").write_bytes(bytes(700_000))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("runtime", [True, False], ids=["runtime directory", "state directory"])
def test_a_full_disk_costs_nothing_once_there_is_room_again(small_disk: Path, tmp_path: Path, runtime: bool) -> None:
    disk = Disk(tmp_path, runtime=runtime)
    disk.state = small_disk

    async def body() -> None:
        async with disk.queue() as queue:
            events, troubles = [], set()
            for _ in range(60):
                events += put(queue, 10, noise=1000)
                await queue.tick()
                troubles.add(queue.trouble)
            assert any("full" in (trouble or "") or "space" in (trouble or "") for trouble in troubles)
            assert queue.depth == 600
            (small_disk / "filler").unlink()
            await ticks(queue, 70)
            assert queue.trouble is None
            assert queue.size < 700_000 + MB
            assert await drain(queue) == events
            assert queue.losses() == []

    run(body())


def test_a_full_disk_at_the_start_is_no_reason_not_to_start(small_disk: Path, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.state = small_disk

    async def body() -> None:
        async with disk.queue() as queue:
            events, epoch = put(queue, 100, noise=1000), queue.epoch
        free = os.statvfs(small_disk)
        (small_disk / "more").write_bytes(bytes(free.f_bavail * free.f_bsize))
        async with disk.queue(boot_id="boot-2") as queue:
            assert queue.epoch > epoch
            assert await drain(queue) == events

    run(body())


def test_a_file_that_may_not_grow(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes writes fail in the middle, of the journal too."""
    child = Path(__file__).with_name("queue_limited_child.py")
    command = [sys.executable, str(child), str(tmp_path / "state"), str(tmp_path)]
    subprocess.run(command, check=True, cwd=child.parents[2])


def test_memory_is_bounded_when_the_store_fails(tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")

    async def body() -> None:
        async with disk.queue(max_size=100_000) as queue:
            events = []
            for ms in range(1, 31):
                events += put(queue, 10, ms=ms, size=936)
                await queue.tick()
            assert queue.size == 100_000
            assert queue.losses() == [Loss("queue_full", 200, 1, 20)]
            assert sum(path.stat().st_size for path in disk.journals()) < 150_000
            copy = disk.copy()
            assert await drain(queue) == events[200:]
        async with copy.queue() as queue:  # the record of the loss and the events agree
            assert lost(queue) == {"queue_full": 200}
            assert await drain(queue) == events[200:]

    run(body())


def _open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_store_that_fails_for_long_costs_no_files_and_no_more_room_than_is_unsent(tmp_path: Path) -> None:
    """An alarm of the first minute keeps its place; what came after it is dropped, or sent."""
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")

    async def body() -> None:
        async with disk.queue(max_size=100_000) as queue:
            await ticks(queue)
            before = _open_files()
            alarm = put(queue, 1, priority=Priority.ALARM)
            events = []
            for ms in range(1, 201):
                events += put(queue, 10, ms=ms, size=936)
                await queue.tick()
                assert _open_files() <= before
                assert sum(path.stat().st_size for path in disk.journals()) < 250_000
            copy, kept = disk.copy(), queue.depth
            assert len(disk.journals()) < 50
            assert await drain(queue) == alarm + events[1 - kept :]
            for _ in range(200):
                put(queue, 1, size=936)
                await queue.tick()
                assert await drain(queue)
            assert sum(path.stat().st_size for path in disk.journals()) < 20_000
        async with copy.queue() as queue:  # killed, with all that was unsent, and nothing twice
            assert lost(queue) == {"queue_full": len(events) + 1 - kept}
            assert await drain(queue) == alarm + events[1 - kept :]
            assert put(queue, 1)

    run(body())


def test_a_full_journal_leaves_no_file_for_each_try(small_disk: Path, tmp_path: Path) -> None:
    disk = Disk(tmp_path)
    disk.state.write_text("in the way")
    disk.runtime = small_disk

    async def body() -> None:
        async with disk.queue() as queue:
            events = put(queue, 1)
            with contextlib.suppress(OSError), (small_disk / "rest").open("wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            for _ in range(30):
                events += put(queue, 1, size=1000)
                await queue.tick()
            assert "journal-" in str(queue.trouble)
            assert len(disk.journals()) < 5
            (small_disk / "rest").unlink()
            await queue.tick()
            assert "journal-" not in str(queue.trouble)
            events += put(queue, 1)
            copy = disk.copy()
            disk.state.unlink()
            await ticks(queue, 70)
            assert (queue.trouble, lost(queue)) == (None, {})
            assert await drain(queue) == events
        async with copy.queue() as queue:  # killed before the store came back: what no file had is counted
            found = await drain(queue)
            assert set(found) <= set(events)
            assert lost(queue) == {"damaged": len(events) - len(found)}

    run(body())


def test_max_size_bounds_the_memory_between_two_ticks(disk: Disk) -> None:
    async def body() -> None:
        async with disk.queue() as queue:
            queue.configure(max_size=MB, commit_interval=60)
            for _ in range(100):
                put(queue, 10, size=10_000)
            assert queue.size <= MB
            assert queue.depth + queue.dropped == 1000

    run(body())


def test_nothing_seems_to_wait_for_decades_or_for_less_than_no_time(tmp_path: Path) -> None:
    async def body() -> None:
        now = [100.0]
        async with Disk(tmp_path).queue(monotonic=lambda: now[0]) as queue:
            assert queue.oldest_age(0) is None
            put(queue, 1, ms=5000)
            assert queue.oldest_age(65_000) == 60
            assert queue.oldest_age(1000) == 0
            now[0] += 90  # and the clock, which began in 1970, is set
            assert queue.oldest_age(1_767_225_600_000) == 90

    run(body())
