"""The command line: `edge-agent run` and `edge-agent check-config`."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import structlog

from edge_agent import __version__
from edge_agent.agent import Agent, Directories
from edge_agent.configuration import load_configuration
from edge_agent.device.identity import IdentityError
from edge_agent.service.logs import configure as configure_logs
from edge_agent.settings.faults import SettingsError
from edge_agent.telemetry.queue import QueueLocked

CONFIG_FILE = Path("/etc/edge-agent.toml")
STATE_DIRECTORY = Path("/var/lib/edge-agent")

log = structlog.get_logger()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:  # before the agent has taken the signals over
        return 128 + signal.SIGINT
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent",
        description="Runs TensorFlow Lite models on a Coral Edge TPU and delivers the results to Google Cloud.",
    )
    parser.add_argument("--version", action="version", version=f"edge-agent {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="run in the foreground, as systemd does")
    run.add_argument("--config", type=Path, default=CONFIG_FILE, metavar="FILE", help="default: %(default)s")
    run.add_argument(
        "--state-dir", type=Path, default=STATE_DIRECTORY, metavar="DIR", help="unless $STATE_DIRECTORY is set"
    )
    run.set_defaults(command=_run)
    check = commands.add_parser("check-config", help="say everything that is wrong with the settings, and exit")
    check.add_argument("config", type=Path, nargs="?", default=CONFIG_FILE, metavar="FILE", help="default: %(default)s")
    check.set_defaults(command=_check_config)
    return parser


def _check_config(options: argparse.Namespace) -> int:
    asyncio.run(load_configuration(options.config))
    sys.stdout.write(f"{options.config}: all settings are good\n")
    return os.EX_OK


def _run(options: argparse.Namespace) -> int:
    configure_logs("info", "auto")
    return asyncio.run(_run_agent(options.config, _directories(options.state_dir)))


async def _run_agent(config: Path, directories: Directories) -> int:
    configuration = await load_configuration(config)
    configure_logs(configuration.settings.log.level, configuration.settings.log.format)
    try:
        directories.state.mkdir(parents=True, exist_ok=True)
        return await Agent(config, configuration, directories).run()
    except QueueLocked as locked:
        log.error("another edge-agent uses the same state", reason=str(locked))
        return os.EX_TEMPFAIL
    except (OSError, IdentityError) as error:
        log.error("the state directory cannot be used", reason=str(error))
        return os.EX_CANTCREAT


def _directories(state: Path) -> Directories:
    """Return the directories that systemd gives (the first of each list), or else the given one."""
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    runtime = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Directories((Path(given) if given else state).absolute(), Path(runtime) if runtime else None)


if __name__ == "__main__":
    sys.exit(main())
