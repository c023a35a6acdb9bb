"""The queue and the sender against what one would take otherwise: `python -m tests.bench queue`, as root.

Every figure of a device is what the kernel counts for the block device under an ext4 of its own. Turns are
interleaved, so that all meet the same machine.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.bench.publisher import counting_server
from tests.bench.queue_turn import PER_SECOND
from tests.telemetry import loopdisk
from tests.telemetry.loopdisk import LoopDisk
from tests.telemetry.queue import queue_open_child
from tests.telemetry.queue.test_queue_kill import check_kills

ROOT = Path(__file__).parents[2]
WAYS = ("ours", "sqlite", "persist-queue", "guide")
TURNS = 5
BURST_SECONDS = 2.0
PACED_SECONDS = 120.0
DRAIN_EVENTS = 200_000
DRAIN_WAYS = ("ours", "client", "stub")
PUTS = 10_000
KILLS = 50  # for each of two places of the journal
GIGABYTE = 1_000_000_000
HOUR = 3600.0


def turn(*arguments: object, **environ: str) -> dict[str, float]:
    """Run one turn, and return what it prints."""
    answer = subprocess.run(_command(*arguments), check=True, stdout=subprocess.PIPE, cwd=ROOT, env=_env(**environ))
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tests.bench.queue_turn", *map(str, arguments)]


def _env(**environ: str) -> dict[str, str]:
    return {**os.environ, **environ}


def measure() -> dict[str, Any]:
    """Measure everything. Takes about ten minutes."""
    if reason := loopdisk.why_not():
        return {"not_measured": reason}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with counting_server(folder) as (address, _):
            report: dict[str, Any] = {"burst": burst(folder, address), "drain": drain(folder, address)}
        report["paced"] = paced(folder)
        report["put"] = puts(folder)
        report["kills"] = kills(folder)
        report["open"] = open_backlog(folder)
    return report


def medians(turns: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Return the median of each figure, by way."""
    return {
        way: {key: statistics.median(one[key] for one in found) for key in found[0]} for way, found in turns.items()
    }


def burst(folder: Path, address: str) -> dict[str, Any]:
    """Measure how many events a second each way makes safe, and what that costs."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for number in range(TURNS):
        for way in WAYS:
            with LoopDisk(folder / f"burst-{way}-{number}", 512) as disk:
                before = disk.written()
                found = turn(way, "burst", disk.path, BURST_SECONDS, PUBSUB_EMULATOR_HOST=address)
                turns[way].append(found | {"device_bytes": (disk.written() - before) / found["events"]})
    return medians(turns)


def drain(folder: Path, address: str) -> dict[str, Any]:
    """Measure how fast a backlog is sent, against requests that have nothing to do with a queue."""
    turns: dict[str, list[dict[str, float]]] = {way: [] for way in DRAIN_WAYS}
    for number in range(TURNS):
        for way in DRAIN_WAYS:
            place = folder / f"drain-{way}-{number}"
            place.mkdir()
            turns[way].append(turn(way, "drain", place, DRAIN_EVENTS, PUBSUB_EMULATOR_HOST=address))
    ratios = {
        way: sorted(ours["rate"] / other["rate"] for ours, other in zip(turns["ours"], turns[way], strict=True))
        for way in DRAIN_WAYS[1:]
    }
    return medians(turns) | {"ratios": ratios}


def paced(folder: Path) -> dict[str, dict[str, float]]:
    """Measure MB an hour on the device at 50 events a second, all side by side on disks of their own."""
    with contextlib.ExitStack() as stack:
        running = []
        for way in WAYS[:3]:
            for network in ("online", "offline"):
                disk = stack.enter_context(LoopDisk(folder / f"paced-{way}-{network}", 256))
                command = _command(way, "paced", disk.path, PACED_SECONDS, network)
                process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT))
                assert process.stdout is not None
                process.stdout.readline()  # its files are there
                running.append((way, network, disk, disk.written(), process))
        found: dict[str, dict[str, float]] = {way: {} for way in WAYS[:3]}
        for way, network, disk, before, process in running:
            assert process.wait() == 0
            found[way][network] = (disk.written() - before) / 1e6 * HOUR / PACED_SECONDS
    found["payload"] = dict.fromkeys(("online", "offline"), 300 * PER_SECOND * HOUR / 1e6)
    return found


def puts(folder: Path) -> dict[str, dict[str, Any]]:
    """Measure how long a put takes while the disk is well, slow, frozen, full, read-only and dead."""
    conditions: dict[str, tuple[Callable[[LoopDisk], None], Callable[[LoopDisk], None]]] = {
        "well": (_nothing, _nothing),
        "20 writes a second": (lambda disk: _throttle(disk, 20), lambda disk: _throttle(disk, 0)),
        "frozen": (LoopDisk.freeze, LoopDisk.thaw),
        "full": (LoopDisk.fill, LoopDisk.free),
        "read-only": (LoopDisk.remount_read_only, _nothing),
        "dead": (LoopDisk.cut_power, _nothing),
    }
    found = {
        name: _puts(folder / f"puts-{number}", "memory", *pair)
        for number, (name, pair) in enumerate(conditions.items())
    }
    found["well, journal on the disk, too"] = _puts(folder / "puts-disk", "disk", _nothing, _nothing)
    return found


def _puts(
    folder: Path, where: str, begin: Callable[[LoopDisk], None], finish: Callable[[LoopDisk], None]
) -> dict[str, Any]:
    with LoopDisk(folder, 64) as disk:
        command = _command("ours", "puts", disk.path, where, PUTS)
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            begin(disk)
            try:
                process.stdin.write("\n")
                process.stdin.flush()
                found: dict[str, Any] = json.loads(process.stdout.readline())
            finally:
                finish(disk)
            process.stdin.write("\n")
    return found


def _nothing(_: LoopDisk) -> None:
    """Leave the disk as it is."""


def _throttle(disk: LoopDisk, per_second: int) -> None:
    """Bound the writes a second of the device, where the kernel can; 0: no bound (blkio controller of cgroup v1)."""
    control = Path("/sys/fs/cgroup/blkio/blkio.throttle.write_iops_device")
    if control.exists():
        number = Path(f"/sys/block/{disk.device}/dev").read_text().strip()
        control.write_text(f"{number} {per_second}")


def kills(folder: Path) -> dict[str, int]:
    """Kill the queue 100 times in the middle of its work; fails where anything is lost."""
    accepted = 0
    for number, with_runtime in enumerate((True, False)):
        place = folder / f"kills-{number}"
        place.mkdir()
        accepted += check_kills(place, KILLS, with_runtime=with_runtime)
    return {"kills": 2 * KILLS, "accepted": accepted, "lost": 0}


def open_backlog(folder: Path) -> dict[str, dict[str, float]]:
    """Measure the opening of a backlog of 1 GB, not in the page cache, against that of an empty queue."""
    with _runtime() as runtime:
        places = {"empty": folder / "open-empty", "1 GB": folder / "open-full"}
        for name, place in places.items():
            _fill(place, runtime, GIGABYTE if name == "1 GB" else 0)
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in places}
        for _ in range(TURNS):
            for name, place in places.items():
                _forget(place / "queue.db")
                command = [sys.executable, queue_open_child.__file__, str(place), str(runtime)]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, cwd=ROOT)
                turns[name].append({k: v for k, v in json.loads(answer.stdout).items() if k != "oldest"})
    return medians(turns) | {"file": {"bytes": (places["1 GB"] / "queue.db").stat().st_size}}


@contextlib.contextmanager
def _runtime() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        yield Path(name)


def _fill(place: Path, runtime: Path, size: int) -> None:
    """Store so many bytes of events that cannot be compressed."""
    script = "import sys; from tests.bench.queue import fill; fill(*sys.argv[1:])"
    subprocess.run([sys.executable, "-c", script, str(place), str(runtime), str(size)], check=True, cwd=ROOT)


def fill(place: str, runtime: str, size: str) -> None:
    """Put events until the store is that large."""
    import asyncio  # noqa: PLC0415  this runs in a process of its own

    from edge_agent.telemetry.queue.queue import Queue  # noqa: PLC0415

    async def work() -> None:
        queue = Queue(
            Path(place), runtime_directory=Path(runtime), max_size=1 << 40, commit_interval=1, boot_id="boot-1"
        )
        async with queue:
            while queue.size < int(size):
                noise = os.urandom(3_000_000).replace(b"\n", b" ")
                queue.put(queue.next_number, [noise[i : i + 300] for i in range(0, len(noise), 300)], 1, 1)
                await queue.tick()

    asyncio.run(work())


def _forget(file: Path) -> None:
    """Drop a file from the page cache."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def show(report: dict[str, Any]) -> None:
    """Print the figures for a person, the bars beside them."""
    if reason := report.get("not_measured"):
        print(f"queue         not measured: {reason}")
        return
    for way, found in report["burst"].items():
        print(
            f"burst         {way:14} {found['rate']:9.0f} events/s  CPU {found['cpu_us']:7.1f} us/event  "
            f"device {found['device_bytes']:8.0f} B/event  memory {found['memory_mib']:.0f} MiB"
        )
    for way, found in report["paced"].items():
        print(f"50 events/s   {way:14} online {found['online']:7.1f} MB/h  offline {found['offline']:7.1f} MB/h")
    print("              bars: ours at most 20 MB/h online, 200 MB/h offline")
    drained = report["drain"]
    for way in DRAIN_WAYS:
        found = drained[way]
        print(
            f"drain         {way:14} {found['rate']:9.0f} events/s  CPU {found['cpu_us']:6.1f} us/event  "
            f"memory {found['memory_mib']:.0f} MiB"
        )
    for way, ratios in drained["ratios"].items():
        print(
            f"              ours / {way}: {statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f}); bar 0.8"
        )
    for condition, found in report["put"].items():
        print(
            f"put           {condition:32} p50 {found['p50_us']:6.1f} us  p99 {found['p99_us']:6.1f} us  "
            f"max {found['max_us']:7.1f} us  {found['trouble'][:60]}"
        )
    print("              bar: p99 at most 1000 us")
    print(f"kills         {report['kills']}")
    for name in ("empty", "1 GB"):
        found = report["open"][name]
        print(
            f"open          {name:14} {found['open_s'] * 1000:6.1f} ms, first batch {found['take_s'] * 1000:6.1f} ms, "
            f"memory +{found['grown_kib'] / 1024:.1f} MiB, {found['depth']:.0f} events; bar 1 s"
        )


def main() -> dict[str, Any]:
    """Measure and show."""
    start = time.perf_counter()
    report = measure()
    show(report)
    print(f"              took {time.perf_counter() - start:.0f} s")
    return report
