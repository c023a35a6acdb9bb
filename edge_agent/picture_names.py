"""The names of pictures that are kept for retraining: as a file on its way, and as the object that it becomes.

The worker names a picture when its sample is worked on, so that the event can refer to it before it is uploaded. The
file's name says the object's, so nothing else has to be remembered of it; a comma stands where the object has a slash,
as no device id holds one.
"""

import time

_SEPARATOR = ","
SUFFIX = ".jpg"


def file_name(device: str, captured_ns: int, wall_ns: int) -> str:
    """Name the picture that was captured at `captured_ns` (CLOCK_MONOTONIC), which is `wall_ns` since 1970 (UTC).

    Not two pictures of a device get the same name: should its clock start from the same time at each boot, the
    nanoseconds since the boot still tell them apart.
    """
    seconds, rest = divmod(wall_ns, 1_000_000_000)
    moment = time.gmtime(seconds)
    day, hour = time.strftime("%Y-%m-%d", moment), time.strftime("%H%M%S", moment)
    return _SEPARATOR.join([device, day, f"{hour}.{rest // 1_000_000:03d}-{captured_ns:x}{SUFFIX}"])


def object_name(file: str) -> str:
    """Return where a file belongs: DEVICE/DATE/TIME-NUMBER.jpg below the folder of the settings."""
    return file.replace(_SEPARATOR, "/")


def object_url(folder: str, file: str) -> str:
    """Return the URL of the object below the URL of the folder."""
    return f"{folder.rstrip('/')}/{object_name(file)}"
