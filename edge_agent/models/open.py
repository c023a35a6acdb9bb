"""Makes the store that a model's URL names."""

from pathlib import Path

from edge_agent.models.directory import FileStore
from edge_agent.models.gcs import GcsStore
from edge_agent.models.stores import Store
from edge_agent.settings.location import Location


def open_store(location: Location) -> Store:
    """Make the store behind `[model].url`; nothing is opened or connected before the first call."""
    if location.scheme == "gs":
        return GcsStore(location.bucket, location.path)
    return FileStore(Path(location.path))
