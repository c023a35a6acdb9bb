"""Where the agent keeps what it writes."""

from pathlib import Path

import msgspec

from edge_agent.service.control_client import CONTROL_SOCKET


class Directories(msgspec.Struct, frozen=True):
    """Where the agent keeps its state, and where what need not outlive the boot."""

    state: Path
    runtime: Path | None = None

    @property
    def control_socket(self) -> Path:
        """Where `edge-agent status` finds the agent."""
        return (self.runtime or self.state) / CONTROL_SOCKET
