"""Who this device is: an id that stays the same across restarts, updates and changes of the network.

Unless the admin gives one, it is derived from the first of these that is there: the machine id, the serial number of
the board, a random id kept in the state directory. None of them leaves the device as it is: machine-id(5) asks to
keep it to the machine, and to use a keyed hash of it with a constant of the application instead.
Devices whose SD cards are copies of one image share a machine id unless the image was made with an empty one.
"""

import hashlib
import hmac
import re
import secrets
from pathlib import Path

from edge_agent.durable import replace_file

# Never change it: every device would get another id.
_APPLICATION = bytes.fromhex("8f0c5b1d6a3e4f7295d41c7ab0e36d18")
_MACHINE_ID_FILES = ("etc/machine-id", "var/lib/dbus/machine-id")
_STATE_FILE = "device-id"


class IdentityError(Exception):
    """There is nothing to tell this device by. The message says what to do."""


def device_id(configured: str | None, *, state_dir: Path, root: Path = Path("/")) -> str:
    """The configured id, or `edge-` and 12 hexadecimal digits. Raises IdentityError."""
    if configured:
        return configured
    origin = _machine_id(root) or _serial_number(root)
    return _named(origin) if origin else _kept_in(state_dir)


def boot_id(root: Path = Path("/")) -> str:
    """32 hexadecimal digits, others after each boot. Raises OSError where /proc is not mounted."""
    return (root / "proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")


def _machine_id(root: Path) -> bytes | None:
    for name in _MACHINE_ID_FILES:
        text = _read(root / name)
        if re.fullmatch(r"[0-9a-f]{32}", text) and text.strip("0"):  # it may also say "uninitialized"
            return bytes.fromhex(text)
    return None


def _serial_number(root: Path) -> bytes | None:
    cpuinfo = re.search(r"^Serial\s*:\s*(\S+)$", _read(root / "proc/cpuinfo"), re.MULTILINE)
    for text in (_read(root / "proc/device-tree/serial-number"), cpuinfo[1] if cpuinfo else ""):
        if text.strip("0"):
            return text.encode()
    return None


def _named(origin: bytes) -> str:
    return "edge-" + hmac.new(origin, _APPLICATION, hashlib.sha256).hexdigest()[:12]


def _kept_in(state_dir: Path) -> str:
    path = state_dir / _STATE_FILE
    kept = _read(path)
    if re.fullmatch(r"edge-[0-9a-f]{12}", kept):
        return kept
    name = f"edge-{secrets.token_hex(6)}"
    try:
        replace_file(path, f"{name}\n".encode())
    except OSError as error:
        raise IdentityError(
            f"this system has no machine id, and a new one cannot be kept in {path} ({error.strerror}): "
            "set id in the table [device], or run systemd-machine-id-setup"
        ) from error
    return name


def _read(path: Path) -> str:
    """The text of the file; empty where there is none. Device tree files end with a NUL."""
    try:
        return path.read_bytes().decode("ascii", errors="replace").strip(" \t\r\n\0")
    except OSError:
        return ""
