"""Makes the stores that the URLs of a model and of its twin name."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge_agent.models.acquisition import GoldenStore
from edge_agent.models.directory import FileStore
from edge_agent.models.gcs import GcsStore
from edge_agent.models.manifest import MANIFEST, OBJECTS
from edge_agent.models.manifest_store import ManifestStore, UnsignedStore
from edge_agent.models.slots import Slots
from edge_agent.models.stores import OnSkew, Readable, Store
from edge_agent.models.twins import Twins
from edge_agent.settings.location import Location

_COMPILED = "_edgetpu.tflite"
_PLAIN = ".tflite"


def open_store(location: Location, *, setting: str = "[model].url", on_skew: OnSkew | None = None) -> Readable:
    """Make the store behind `setting`; nothing is opened or connected before the first call.

    `on_skew` hears of the clock of a server that is asked; see `OnSkew`.
    """
    if location.scheme == "gs":
        return GcsStore(location.bucket, location.path, setting=setting, on_skew=on_skew)
    return FileStore(Path(location.path), setting=setting)


def open_model(location: Location, keys: Sequence[str], *, on_skew: OnSkew | None = None) -> Store:
    """Make the store behind `[model].url`; `keys` are the files of `[model].keys`. `on_skew` as for `open_store`."""
    store = open_store(location, on_skew=on_skew)
    if location.path.rpartition("/")[2] != MANIFEST:
        return UnsignedStore(store.url) if keys else store
    folder = location.path.removesuffix(MANIFEST) + OBJECTS

    def open_object(name: str) -> Store:
        return open_store(replace(location, path=f"{folder}/{name}"))

    return ManifestStore(store, open_object, [Path(key) for key in keys])


def open_golden(store: Store) -> GoldenStore | None:
    """Return what fetches the golden samples of the model in `store`, if it may have some."""
    return store if isinstance(store, ManifestStore) else None


def open_twins(slots: Slots, url: Location, cpu_url: Location | None, store: Store) -> Twins:
    """Make what looks for the twin of the model in `store`.

    It is named by its manifest if it has one, else by `[model].cpu_url`, or it is the `sibling` of the model.
    """
    if isinstance(store, ManifestStore):
        return Twins(slots, store.twin)
    if isinstance(store, UnsignedStore):
        return Twins(slots, None)
    location = cpu_url or sibling(url)
    of_twin = None if location is None else open_store(location, setting="[model].cpu_url")
    return Twins(slots, of_twin, expected=cpu_url is not None)


def sibling(url: Location) -> Location | None:
    """Where the twin of a compiled model is by convention: edgetpu_compiler makes X_edgetpu.tflite from X.tflite."""
    stem = url.path.removesuffix(_COMPILED)
    return None if stem in {url.path, ""} or stem.endswith("/") else replace(url, path=stem + _PLAIN)
