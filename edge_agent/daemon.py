"""The daemon behind `edge-agent run`: it waits until its settings are complete, and then runs the agent."""

import asyncio
import faulthandler
import os
import sys
from pathlib import Path

import structlog

from edge_agent.agent import Agent
from edge_agent.configuration import Configuration, load_configuration
from edge_agent.device.identity import IdentityError
from edge_agent.directories import Directories
from edge_agent.idle import Idle
from edge_agent.lifecycle import Lifecycle
from edge_agent.service.logs import configure as configure_logs
from edge_agent.settings.faults import NotSetUp, SettingsError
from edge_agent.telemetry.queue.queue import QueueLocked

# The name of the credential in the unit's LoadCredential=.
GOOGLE_CREDENTIALS = "google-credentials.json"

log = structlog.get_logger()


def run(config: Path, directories: Directories) -> int:
    """Run in the foreground until told to stop; returns the exit status.

    os.EX_CONFIG: the settings are wrong. os.EX_TEMPFAIL: another agent uses the state directory. os.EX_CANTCREAT:
    the state directory cannot be used. 1: a part of the agent has failed.
    """
    configure_logs("info", "auto")
    # When systemd's watchdog ends the agent (SIGABRT), the journal says where it hung.
    faulthandler.enable()
    use_credentials_of_systemd()
    try:
        return asyncio.run(_run(config, directories))
    except SettingsError as error:
        sys.stderr.write(f"{error}\n")
        return os.EX_CONFIG
    except QueueLocked as locked:
        log.error("another edge-agent uses the same state", reason=str(locked))
        return os.EX_TEMPFAIL
    except (OSError, IdentityError) as error:
        log.error("the state directory cannot be used", reason=str(error))
        return os.EX_CANTCREAT


async def _run(config: Path, directories: Directories) -> int:
    lacking, configuration = None, None
    try:
        configuration = await load_configuration(config, source_must_be_there=False)
    except NotSetUp as error:
        lacking = error
    directories.state.mkdir(parents=True, exist_ok=True)
    lifecycle = Lifecycle(directories.control_socket)
    await lifecycle.start()
    try:
        if lacking is not None:
            configuration = await Idle(config, lacking, lifecycle).run()
        return 0 if configuration is None else await _run_agent(config, configuration, directories, lifecycle)
    finally:
        await lifecycle.close()


async def _run_agent(config: Path, configuration: Configuration, directories: Directories, lifecycle: Lifecycle) -> int:
    configure_logs(configuration.settings.log.level, configuration.settings.log.format)
    return await Agent(config, configuration, directories, lifecycle).run()


def use_credentials_of_systemd() -> None:
    """Let Google's libraries find the credentials that systemd passed on, unless the environment names others."""
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if folder and (file := Path(folder) / GOOGLE_CREDENTIALS).exists():
        os.environ.setdefault("GOOGLE_APPLICATION_CREDENTIALS", str(file))
