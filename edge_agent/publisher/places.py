"""Makes the place that a URL of `edge-agent release publish` names."""

from pathlib import Path

from edge_agent.publisher.build import ReleaseError
from edge_agent.publisher.publish import FolderPlace, Place


def open_place(text: str) -> Place:
    """Return the place behind gs://BUCKET/FOLDER, file:///FOLDER or a path. Raises ReleaseError."""
