"""The command line. What a command does not need it does not load: scripts ask for the status often."""

import argparse
import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from edge_agent import __version__
from edge_agent.publisher.options import add_steps
from edge_agent.service.control_client import CONTROL_SOCKET, BadAnswer, ControlError, ask

CONFIG_FILE = Path("/etc/edge-agent.toml")
STATE_DIRECTORY = Path("/var/lib/edge-agent")
RUNTIME_DIRECTORY = Path("/run/edge-agent")
# The check of new settings may take two minutes, and the worker as long to start with them.
RELOAD_TIMEOUT = 300.0

AnswerT = TypeVar("AnswerT")

if TYPE_CHECKING:
    Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # the name of a file may be no text
    try:
        return int(options.command(options))
    except KeyboardInterrupt:  # before the agent has taken the signals over
        return 128 + signal.SIGINT
    except ControlError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line; the manual page and the shell completion are made from it."""
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Runs TensorFlow Lite models on a Coral Edge TPU and delivers the results to Google Cloud.",
    )
    parser.add_argument(
        "--version", action="version", version=f"edge-agent {__version__}", help="print the version and exit"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_run(commands)
    _add_check_config(commands)
    _add_status(commands)
    _add_reload(commands)
    _add_demo(commands)
    _add_release(commands)
    return parser


def _add_run(commands: "Commands") -> None:
    run = commands.add_parser("run", help="run in the foreground, as systemd does")
    run.add_argument(
        "--config", type=Path, default=CONFIG_FILE, metavar="FILE", help="the settings; default: %(default)s"
    )
    run.add_argument(
        "--state-dir",
        type=Path,
        default=STATE_DIRECTORY,
        metavar="DIR",
        help="where queue and models are kept, unless $STATE_DIRECTORY is set; default: %(default)s",
    )
    run.set_defaults(command=_run)


def _add_check_config(commands: "Commands") -> None:
    check = commands.add_parser("check-config", help="say everything that is wrong with the settings, and exit")
    check.add_argument(
        "config", type=Path, nargs="?", default=CONFIG_FILE, metavar="FILE", help="the settings; default: %(default)s"
    )
    check.set_defaults(command=_check_config)


def _add_status(commands: "Commands") -> None:
    status = commands.add_parser("status", help="show what runs, what waits and what is wrong")
    status.add_argument("--json", action="store_true", help="print it as JSON, for programs")
    _add_socket(status)
    status.set_defaults(command=_status)


def _add_reload(commands: "Commands") -> None:
    reload = commands.add_parser("reload", help="take changed settings into use, or say why not")
    _add_socket(reload)
    reload.set_defaults(command=_reload)


def _add_socket(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="that of an agent started with --state-dir, not by systemd"
    )


def _add_demo(commands: "Commands") -> None:
    demo = commands.add_parser(
        "demo", help="show the whole pipeline with a simulated machine; needs no settings, device, cloud or rights"
    )
    demo.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="keep settings and events there; default: a temporary folder"
    )
    demo.set_defaults(command=_demo)


def _add_release(commands: "Commands") -> None:
    release = commands.add_parser("release", help="build, sign and publish releases of a model; not for devices")
    release.set_defaults(command=_release)
    add_steps(release)


def _release(options: argparse.Namespace) -> int:
    from edge_agent.publisher.commands import run  # noqa: PLC0415  see the top

    return run(options)


def _run(options: argparse.Namespace) -> int:
    from edge_agent.daemon import run  # noqa: PLC0415
    from edge_agent.directories import Directories  # noqa: PLC0415  see the top

    # systemd may give several directories; the first is the agent's.
    state = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    directories = Directories(Path(state or options.state_dir).absolute(), Path(runtime) if runtime else None)
    return run(options.config, directories)


def _check_config(options: argparse.Namespace) -> int:
    import asyncio  # noqa: PLC0415  see the top

    from edge_agent.configuration import load_configuration  # noqa: PLC0415
    from edge_agent.settings.faults import NotSetUp, SettingsError  # noqa: PLC0415

    try:
        asyncio.run(load_configuration(options.config))
    except NotSetUp as lacking:
        sys.stdout.write(f"{lacking}\n{options.config}: nothing is wrong; edge-agent waits until these are given\n")
        return os.EX_OK
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    sys.stdout.write(f"{options.config}: all settings are good\n")
    return os.EX_OK


def _status(options: argparse.Namespace) -> int:
    answer = ask(_control_socket(options), "status")
    if options.json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return os.EX_OK
    from edge_agent.report import StatusReport, render  # noqa: PLC0415  see the top

    sys.stdout.write(render(_understood(answer, StatusReport)))
    return os.EX_OK


def _reload(options: argparse.Namespace) -> int:
    from edge_agent.report import Reloaded  # noqa: PLC0415  see the top

    reloaded = _understood(ask(_control_socket(options), "reload", RELOAD_TIMEOUT), Reloaded)
    lines = "".join(f"{line}\n" for line in [*reloaded.faults, reloaded.outcome])
    (sys.stderr if reloaded.faults else sys.stdout).write(lines)
    return os.EX_CONFIG if reloaded.faults else os.EX_OK


def _understood(answer: object, kind: type[AnswerT]) -> AnswerT:
    import msgspec  # noqa: PLC0415  see the top

    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise BadAnswer(f"another version of edge-agent answers ({error}): systemctl restart edge-agent") from error


def _control_socket(options: argparse.Namespace) -> Path:
    """Return the socket of the agent that is meant; without systemd it lies in the state directory."""
    folders = [options.state_dir] if options.state_dir else [RUNTIME_DIRECTORY, STATE_DIRECTORY]
    sockets = [folder / CONTROL_SOCKET for folder in folders]
    # Path.exists raises where this user may not look into the directory.
    return next((socket for socket in sockets if os.path.exists(socket)), sockets[0])  # noqa: PTH110


def _demo(options: argparse.Namespace) -> int:
    from edge_agent.demo.run import run  # noqa: PLC0415  see the top

    return run(options.state_dir)


if __name__ == "__main__":
    sys.exit(main())
