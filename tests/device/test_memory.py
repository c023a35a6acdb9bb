from pathlib import Path

import pytest

from edge_agent.device.kernelfiles import KernelFiles
from edge_agent.device.memory import Memory, available_memory

MIB = 1 << 20
UNIT = "sys/fs/cgroup/system.slice/edge-agent.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    _write(
        tmp_path, "proc/meminfo", "MemTotal:  1000000 kB\nMemFree:  1 kB\nMemAvailable:   512000 kB\nBuffers: 3 kB\n"
    )
    _write(tmp_path, "proc/self/cgroup", "0::/system.slice/edge-agent.service\n")
    return tmp_path


def _write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)


def _group(root: Path, group: str, *, used: int, limit: str = "max", high: str = "max", file: int = 0) -> None:
    _write(root, f"{group}/memory.current", f"{used}\n")
    _write(root, f"{group}/memory.max", f"{limit}\n")
    _write(root, f"{group}/memory.high", f"{high}\n")
    _write(root, f"{group}/memory.stat", f"anon 5\nfile 7\ninactive_anon 9\ninactive_file {file}\nactive_file 3\n")


def _found(root: Path) -> Memory | None:
    return available_memory(KernelFiles(root))


def test_of_the_whole_device(root: Path) -> None:
    assert _found(root) == Memory(512_000 * 1024, "/proc/meminfo")


def test_a_group_without_limits(root: Path) -> None:
    _group(root, UNIT, used=MIB)
    assert _found(root) == Memory(512_000 * 1024, "/proc/meminfo")


def test_the_limit_of_the_service(root: Path) -> None:
    _group(root, UNIT, used=90 * MIB, limit=str(100 * MIB))
    assert _found(root) == Memory(10 * MIB, f"/{UNIT}/memory.max")


def test_what_the_kernel_would_give_up_first_counts_as_free(root: Path) -> None:
    _group(root, UNIT, used=90 * MIB, limit=str(100 * MIB), file=20 * MIB)
    assert _found(root) == Memory(30 * MIB, f"/{UNIT}/memory.max")


def test_the_tightest_of_all_limits(root: Path) -> None:
    _group(root, UNIT, used=MIB, limit=str(300 * MIB), high=str(200 * MIB))
    _group(root, "sys/fs/cgroup/system.slice", used=400 * MIB, limit=str(450 * MIB))
    assert _found(root) == Memory(50 * MIB, "/sys/fs/cgroup/system.slice/memory.max")


def test_beyond_the_limit_there_is_none_left(root: Path) -> None:
    _group(root, UNIT, used=300 * MIB, high=str(200 * MIB))
    assert _found(root) == Memory(0, f"/{UNIT}/memory.high")


@pytest.mark.parametrize("text", ["", "1:name=systemd:/x\n", "0::\n", "\0"])
def test_no_group_that_can_be_read(root: Path, text: str) -> None:
    _write(root, "proc/self/cgroup", text)
    assert _found(root) == Memory(512_000 * 1024, "/proc/meminfo")


def test_a_kernel_that_tells_nothing(tmp_path: Path) -> None:
    assert _found(tmp_path) is None


def test_this_machine() -> None:
    found = available_memory()
    assert found is not None
    assert found.available > 0
