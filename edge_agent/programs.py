"""What is the same wherever a program of the operator's is run: for an action, or as a source of samples.

Nothing here starts anything: an action's program and a source's are started and ended in different ways.
"""

import errno
import os
import re
import shutil
import signal
from collections.abc import Mapping

# What the service was given for itself.
_PRIVATE = re.compile(
    r"GOOGLE_APPLICATION_CREDENTIALS|CREDENTIALS_DIRECTORY|NOTIFY_SOCKET|WATCHDOG_.*|LISTEN_(FDS|PID|FDNAMES)"
    r"|.*(TOKEN|PASSWORD|PASSWD|SECRET|PRIVATE_KEY|API_KEY|CREDENTIAL).*",
    re.IGNORECASE,
)


def without_secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for somebody else's program."""
    return {name: value for name, value in environ.items() if not _PRIVATE.fullmatch(name)}


def how_it_ended(status: int) -> str:
    """Say how a program ended; `status` as in `subprocess.Popen.returncode`."""
    if status >= 0:
        return f"it ended with exit status {status}"
    return f"it was ended by signal {-status} ({signal.strsignal(-status)})"


def why_not_started(error: OSError | ValueError, program: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """Return problem and advice, both for a person; looks at the file system."""
    match error:
        case FileNotFoundError() if shutil.which(program, path=environ.get("PATH")):
            return (
                "the interpreter named in its first line does not exist",
                "correct the line that starts with #!; a file written on Windows ends it with a stray character",
            )
        case FileNotFoundError() | NotADirectoryError():
            return "there is no such program", "install it, or correct the path in run"
        case PermissionError():
            return (
                "it may not be run",
                "make it executable (chmod a+rx), also its directories; its file system must not be noexec",
            )
        case OSError(errno=errno.ENOEXEC):
            return (
                "it is no program for this machine",
                f"a script needs a first line such as #!/bin/sh; a binary must be made for {os.uname().machine}",
            )
        case _:
            return str(error), "the system could not start a process; look at memory, TasksMax and open files"
