"""Makes the sink that the settings name."""

from collections.abc import Mapping
from pathlib import Path

from edge_agent.settings.location import Destination
from edge_agent.telemetry.sending.filesink import FileSink
from edge_agent.telemetry.sending.metering import Meter
from edge_agent.telemetry.sending.pubsub import PubSubSink
from edge_agent.telemetry.sending.sinks import Sink


def open_sink(destination: Destination, environ: Mapping[str, str], meter: Meter | None = None) -> Sink:
    """Make the sink for a destination; nothing is opened or connected before the first batch.

    `meter` is told what goes over the network.
    """
    if destination.scheme == "file":
        return FileSink(Path(destination.path))
    emulator = environ.get("PUBSUB_EMULATOR_HOST", "")
    return PubSubSink(destination.project, destination.topic, emulator=emulator, meter=meter)
