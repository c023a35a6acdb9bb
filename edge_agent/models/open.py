"""Makes the stores that the URLs of a model and of its twin name."""

from dataclasses import replace
from pathlib import Path

from edge_agent.models.directory import FileStore
from edge_agent.models.gcs import GcsStore
from edge_agent.models.slots import Slots
from edge_agent.models.stores import OnSkew, Store
from edge_agent.models.twins import Twins
from edge_agent.settings.location import Location

_COMPILED = "_edgetpu.tflite"
_PLAIN = ".tflite"


def open_store(location: Location, *, setting: str = "[model].url", on_skew: OnSkew | None = None) -> Store:
    """Make the store behind `setting`; nothing is opened or connected before the first call.

    `on_skew` hears of the clock of a server that is asked; see `OnSkew`.
    """
    if location.scheme == "gs":
        return GcsStore(location.bucket, location.path, setting=setting, on_skew=on_skew)
    return FileStore(Path(location.path), setting=setting)


def open_twins(slots: Slots, url: Location, cpu_url: Location | None) -> Twins:
    """Make what looks for the twin at `[model].cpu_url` or else at the `sibling` of the model."""
    location = cpu_url or sibling(url)
    store = None if location is None else open_store(location, setting="[model].cpu_url")
    return Twins(slots, store, expected=cpu_url is not None)


def sibling(url: Location) -> Location | None:
    """Where the twin of a compiled model is by convention: edgetpu_compiler makes X_edgetpu.tflite from X.tflite."""
    stem = url.path.removesuffix(_COMPILED)
    return None if stem in {url.path, ""} or stem.endswith("/") else replace(url, path=stem + _PLAIN)
