"""`python -m tests.bench` measures everything and writes build/bench.json; `python -m tests.bench queue` a part.

The whole agent is measured against bare loops, the queue and the sender against other ways (`queue.py`).

Speed is compared in turns within this run: bare, agent, bare, agent. The Pub/Sub server runs on the same machine in a
process of its own, whose work is not counted but takes its share of the processors.
"""

import asyncio
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from edge_agent.inference.protocol import Configure, ModelOptions
from edge_agent.records import ModelFile
from tests.agentprocess import AgentProcess
from tests.bench import queue, swap
from tests.bench.processes import cpu_seconds, memory_mib, p99, pss_mib
from tests.bench.publisher import Counter, counting_server
from tests.servers.gcs import GcsServer

ROOT = Path(__file__).parents[2]
VIBRATION = ROOT / "edge_agent/demo/vibration_classifier.tflite"
MOBILENET = ROOT.parent / "shared/models/mobilenet_v2_1.0_224_quant.tflite"
# Keeps out of the processes what only the tests' environment has.
ABSENT = Path(__file__).with_name("absent")
ROUNDS = 5
# Long against the quarter of a second that events gather before a request: the server counts requests.
SECONDS = 6.0
SETTLE = 1.0
WARM_UP = 4.0
IMAGE_SIZE = 224
PICTURES = 20
ROWS = 50_000

SETTINGS = """
[source]
{source}
[model]
url = "{model}"
[inference]
accelerator = "cpu"
[telemetry]
sink = "pubsub://project/topic"
[log]
level = "warning"
"""


def program(name: str, *arguments: object, **environ: str) -> dict[str, float]:
    """Run a program of this folder in a process of its own; returns the JSON that it prints."""
    command = [sys.executable, "-m", f"tests.bench.{name}", *map(str, arguments)]
    answer = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environ},
    )
    found: dict[str, float] = json.loads(answer.stdout)
    return found


def guide_memory(folder: Path, model: Path) -> float:
    """Weigh the guides' loop while it talks to the same kind of servers."""
    with counting_server(folder) as (address, _), GcsServer() as gcs:
        gcs.upload("bucket", "model.tflite", b"model", {"version": "v1.2"})
        return program("guide", model, PUBSUB_EMULATOR_HOST=address, STORAGE_EMULATOR_HOST=gcs.url)["memory_mib"]


def compare(folder: Path, name: str, model: Path, source: str, *, slow: bool = False) -> dict[str, Any]:
    """Measure the agent at full speed and the bare loop in short turns, the agent stopped during the loop's.

    `slow`: the model takes so long that the time of each invoke can be looked at.
    """
    folder = folder / name
    folder.mkdir()
    times = folder / "times" if slow else None
    with counting_server(folder, times) as (address, counter):
        toml = SETTINGS.format(source=source, model=model)
        environ = {"PUBSUB_EMULATOR_HOST": address, "PYTHONPATH": str(ABSENT)}
        with AgentProcess(folder / "agent", toml, environ) as agent:
            while not counter.value:
                time.sleep(0.1)
            time.sleep(WARM_UP)
            rounds = [one_round(agent, counter, model, times) for _ in range(ROUNDS)]
            agent_pid, worker_pid = agent.pids
            memory = {
                "memory_mib": memory_mib(agent.pids),
                "agent_pss_mib": pss_mib(agent_pid),
                "worker_pss_mib": pss_mib(worker_pid),
            }
            assert agent.stop() == 0, agent.said
    median = {key: statistics.median(each[key] for each in rounds) for key in rounds[0]}
    ratios = sorted(each["ratio"] for each in rounds)
    return {**median, "ratios": ratios, **memory, "guide_memory_mib": guide_memory(folder, model)}


def one_round(agent: AgentProcess, counter: Counter, model: Path, times: Path | None) -> dict[str, float]:
    """One turn of each."""
    pids = agent.pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    loop = program("bare", model, SECONDS)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(SETTLE)
    count, cpu, start = counter.value, cpu_seconds(pids), time.perf_counter()
    before = len(read_times(times))
    time.sleep(SECONDS)
    samples, elapsed = counter.value - count, time.perf_counter() - start
    used = cpu_seconds(pids) - cpu
    rate = samples / elapsed
    found = {
        "samples_per_s": rate,
        "bare_samples_per_s": loop["rate"],
        "ratio": rate / loop["rate"],
        "cpu_us": used / samples * 1e6,
        "bare_pss_mib": loop["pss_mib"],
    }
    if invokes := read_times(times)[before:]:
        found |= {"p99_ms": p99(invokes), "bare_p99_ms": loop["p99_ms"], "p99_ratio": p99(invokes) / loop["p99_ms"]}
    return found


def read_times(file: Path | None) -> list[float]:
    """Return the times of invokes so far, in ms."""
    return [float(line) for line in file.read_text().splitlines()] if file is not None else []


def images(folder: Path) -> Path:
    """Make images of the model's own size."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for number in range(PICTURES):
        pixels = random.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:03}.bmp")
    return folder


def recording(folder: Path) -> Path:
    """Make a recording of vibration samples."""
    file = folder / "samples.npy"
    np.save(file, np.random.default_rng(1).normal(0.5, 0.1, (ROWS * 4, 128)).astype(np.float32))
    return file


def worker(plugin: str, **options: object) -> Configure:
    """Return the settings of a worker for the swap."""
    return Configure(plugin, options, ModelOptions(accelerator="cpu"))


def main() -> None:
    """Measure everything, or the parts that are named."""
    parts = sys.argv[1:] or ["agent", "queue"]
    report: dict[str, Any] = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
    if "agent" in parts:
        report |= measure_agent()
        show(report)
    if "queue" in parts:
        report["queue"] = queue.main()
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build/bench.json").write_text(json.dumps(report, indent=2) + "\n")


def measure_agent() -> dict[str, Any]:
    """Measure the whole agent, and the gap at a swap."""
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        report["vibration"] = compare(folder, "vibration", VIBRATION, 'plugin = "vibration"\nrate = 0')
        source = worker("edge_agent.sources.recording:Recording", path=str(recording(folder)), repeat=True)
        report |= measure_swaps(folder, "vibration", source, VIBRATION, ROWS * 4)
        if MOBILENET.exists():
            pictures = images(folder / "images")
            source_toml = f'plugin = "images"\npath = "{pictures}"\nrepeat = true\nwatch = false'
            report["mobilenet_v2"] = compare(folder, "mobilenet", MOBILENET, source_toml, slow=True)
            source = worker("edge_agent.sources.images:Images", path=str(pictures), rate=0.0, repeat=True, watch=False)
            report |= measure_swaps(folder, "mobilenet_v2", source, MOBILENET, PICTURES)
        else:
            report["mobilenet_v2"] = f"not measured: {MOBILENET} is missing"
    return report


def measure_swaps(folder: Path, name: str, source: Configure, model: Path, samples: int) -> dict[str, Any]:
    """Measure the gap at a swap, and many swaps in a row. The source has so many samples, over and over."""
    file = ModelFile(str(model), name, "v0")
    gaps = asyncio.run(swap.measure(folder, source, file, samples))
    many = asyncio.run(swap.many(folder, source, file, samples))
    return {f"{name}_swap": vars(gaps), f"{name}_swaps": vars(many)}


def show(report: dict[str, Any]) -> None:
    """Print the figures for a person."""
    for name in ("vibration", "mobilenet_v2"):
        found = report[name]
        if isinstance(found, str):
            print(f"{name:13} {found}")
            continue
        print(
            f"{name:13} agent {found['samples_per_s']:8.0f}/s  bare invoke() {found['bare_samples_per_s']:8.0f}/s  "
            f"ratio {found['ratio']:.3f}  CPU {found['cpu_us']:7.1f} us/sample  "
            f"memory {found['memory_mib']:.0f} MiB (the guides' script: {found['guide_memory_mib']:.0f} MiB), "
            f"PSS {found['agent_pss_mib']:.0f} + {found['worker_pss_mib']:.0f} MiB "
            f"(bare loop: {found['bare_pss_mib']:.0f} MiB)"
        )
        if "p99_ms" in found:
            print(
                f"{'':13} p99 of invoke {found['p99_ms']:.2f} ms, bare {found['bare_p99_ms']:.2f} ms, "
                f"ratio {found['p99_ratio']:.3f}"
            )
    for name in ("vibration", "mobilenet_v2"):
        if f"{name}_swap" in report:
            show_swaps(name, report[f"{name}_swap"], report[f"{name}_swaps"])


def show_swaps(name: str, gaps: dict[str, Any], many: dict[str, Any]) -> None:
    """Print what swaps cost."""
    print(
        f"{name:13} longest gap with a swap {gaps['with_swap']:.1f} ms, with golden samples, trial and way back "
        f"{gaps['with_trial']:.1f} ms, without {gaps['without']:.1f} ms, {gaps['lost']} samples lost "
        f"({gaps['build_ms']})"
    )
    print(
        f"{'':13} {many['swaps']} swaps in {many['seconds']:.1f} s: {many['lost']} samples lost, "
        f"own memory of the worker {many['before_mib']:.1f} MiB before, {many['after_mib']:.1f} MiB after"
    )


if __name__ == "__main__":
    main()
