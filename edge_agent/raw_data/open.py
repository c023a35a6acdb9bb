"""Makes what the settings say of pictures: where they wait, and where they go."""

from pathlib import Path

from edge_agent.raw_data.destinations import Destination, open_destination
from edge_agent.raw_data.spool import Spool
from edge_agent.settings.schema import TelemetrySettings


def open_images(settings: TelemetrySettings, state: Path, runtime: Path | None) -> tuple[Spool, Destination | None]:
    """Return the spool in these directories, and the destination if there is one; nothing is touched yet."""
    images = settings.raw_data.images
    spool = Spool(state, runtime, "" if images is None else str(images), min_free=settings.queue.reserve)
    return spool, None if images is None else open_destination(images)
