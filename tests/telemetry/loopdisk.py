"""A small real disk for tests: ext4 in an image, mounted through a loop device, with faults that the kernel makes.

    with LoopDisk(folder) as disk:
        queue in disk.path
        disk.cut_power()    # everything that is only in the page cache is gone
        disk.mount()        # the machine has started again

Needs root. `why_not()` says what is missing.
"""

import contextlib
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

MB = 1024 * 1024
_SECTOR = 512  # of /sys/block/*/stat, whatever the device's own sectors are (Documentation/block/stat.rst)
_WRITTEN_SECTORS = 6  # the field of that file


def _ioctl(direction: int, number: int) -> int:
    """Encode a request of the group 'X' with a 32-bit argument, as _IOR and _IOWR do (asm-generic/ioctl.h)."""
    return direction << 30 | 4 << 16 | ord("X") << 8 | number


_SHUTDOWN = _ioctl(2, 125)  # EXT4_IOC_SHUTDOWN, uapi/linux/ext4.h
_FREEZE = _ioctl(3, 119)  # FIFREEZE, uapi/linux/fs.h
_THAW = _ioctl(3, 120)  # FITHAW
_NO_LOG_FLUSH = 2  # EXT4_GOING_FLAGS_NOLOGFLUSH: neither data nor the file system's log reach the device any more


@functools.cache
def why_not() -> str | None:
    """Return why no such disk can be had here, or None."""
    if os.geteuid() != 0:
        return "only root may mount a file system"
    if shutil.which("mkfs.ext4") is None:
        return "there is no mkfs.ext4"
    with tempfile.TemporaryDirectory() as name:
        try:
            with LoopDisk(Path(name), megabytes=8):
                return None
        except subprocess.CalledProcessError as error:
            return f"no loop mounts here: {error.stderr.decode().strip()}"


class LoopDisk:
    """The disk is mounted at `path` between `__enter__` and `__exit__`.

    `journal=False` leaves out ext4's own journal, so that the file system outlives failed writes. `thin` puts the
    image on a file system in memory of half its size, so that `fail_writes` works.
    """

    def __init__(self, folder: Path, megabytes: int = 48, *, journal: bool = True, thin: bool = False) -> None:
        self.path = folder / "disk"
        self._folder = folder
        self._size = megabytes * MB
        self._features = () if journal else ("-O", "^has_journal")
        self._thin = folder / "thin" if thin else None
        self._image = (self._thin or folder) / "image"
        self._device = ""

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True)
        if self._thin is not None:
            self._thin.mkdir()
            _call("mount", "-t", "tmpfs", "-o", f"size={self._size // 2}", "tmpfs", self._thin)
        try:
            with self._image.open("wb") as image:
                image.truncate(self._size)
            lazy_not = "lazy_itable_init=0,lazy_journal_init=0,nodiscard"  # no writes of the kernel's own later
            _call("mkfs.ext4", "-q", "-F", "-m", 0, "-E", lazy_not, *self._features, self._image)
            self.mount()
        except BaseException:
            self._clean_up()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None and self._device:
            self.unmount()  # must work: whoever holds a file open is at fault
        self._clean_up()

    def _clean_up(self) -> None:
        if self._device:
            _call("umount", "--lazy", self.path)
            self._device = ""
        if self._thin is not None:
            _call("umount", "--lazy", self._thin)
        self._image.unlink(missing_ok=True)

    # -- on and off

    def mount(self) -> None:
        _call("mount", "-o", "loop,noatime,errors=remount-ro", self._image, self.path)
        mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
        self._device = next(fields[0] for fields in mounts if fields[1] == str(self.path)).rpartition("/")[2]

    def unmount(self) -> None:
        _call("umount", self.path)
        self._device = ""

    def restart(self) -> None:
        """Unmount and mount again, as a reboot does. Nobody may hold a file open."""
        device = self._device
        self.unmount()
        if Path(f"/sys/fs/ext4/{device}").exists():
            self._leave_behind()
        self.mount()

    def _leave_behind(self) -> None:
        """Go on with a copy of what has reached the device: a container that was started meanwhile has the disk, too.

        Its mounts are copies of all there were, so the file system whose power was cut is still there, and would be
        mounted again as it is.
        """
        copy = self._image.with_name("copy")
        _call("cp", "--sparse=always", self._image, copy)
        copy.rename(self._image)

    # -- faults

    def cut_power(self) -> None:
        """Let nothing reach the device from this moment on; every use is EIO until `restart`."""
        self._control(_SHUTDOWN, _NO_LOG_FLUSH)

    def freeze(self) -> None:
        """Let every write wait until `thaw`, as on a card that is busy with itself."""
        self._control(_FREEZE, 0)

    def thaw(self) -> None:
        self._control(_THAW, 0)

    def remount_read_only(self) -> None:
        """Report an error to ext4, which does what it does after a real one: no writes until `restart`."""
        Path(f"/sys/fs/ext4/{self._device}/trigger_fs_error").write_text("1")

    def fail_writes(self) -> None:
        """Fail every write to a block not written before (the image cannot grow). Only on a `thin` disk."""
        assert self._thin is not None
        _call("sync", "--file-system", self.path)  # what is written already is not to fail later
        with contextlib.suppress(OSError), (self._thin / "filler").open("wb") as filler:
            while True:
                filler.write(bytes(MB))
        with contextlib.suppress(OSError), (self._thin / "rest").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    def allow_writes(self) -> None:
        assert self._thin is not None
        for name in ("filler", "rest"):
            (self._thin / name).unlink(missing_ok=True)

    def fill(self) -> None:
        """Leave no free block."""
        with (self.path / "filler").open("wb", buffering=0) as filler:
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(MB))
            with contextlib.suppress(OSError):
                while True:
                    filler.write(bytes(4096))
            os.fsync(filler.fileno())

    def free(self) -> None:
        (self.path / "filler").unlink()

    def _control(self, request: int, argument: int) -> None:
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(handle, request, struct.pack("i", argument))
        finally:
            os.close(handle)

    # -- what the device has seen

    @property
    def device(self) -> str:
        """`loop0` or another."""
        return self._device

    def written(self) -> int:
        """Return how many bytes were written to the block device, after all that waits was written, too."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        _call("sync", "--file-system", self.path)
        return int(Path(f"/sys/block/{self._device}/stat").read_text().split()[_WRITTEN_SECTORS]) * _SECTOR


def _call(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)
