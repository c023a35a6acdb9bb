"""Makes the stores that the URLs of a model and of its twin name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from edge_agent.models.release.audience import Device
from edge_agent.models.release.manifest import MANIFEST, OBJECTS, pin_name
from edge_agent.models.release.releases import Release
from edge_agent.models.rollout.slots import Slots
from edge_agent.models.rollout.twins import Twins
from edge_agent.models.stores.base import OnSkew, Readable, Store
from edge_agent.models.stores.directory import FileStore
from edge_agent.models.stores.gcs import GcsStore
from edge_agent.models.stores.limits import DownloadLimits
from edge_agent.models.stores.manifest_store import HasGolden, ManifestStore
from edge_agent.models.stores.plain_store import PlainStore
from edge_agent.models.stores.trust import Trust
from edge_agent.settings.location import Location

KEYS_CREDENTIAL = "release-keys.pem"
"""The name of the credential in the unit's LoadCredential=."""
_COMPILED = "_edgetpu.tflite"
_PLAIN = ".tflite"


def open_store(
    location: Location,
    *,
    setting: str = "[model].url",
    on_skew: OnSkew | None = None,
    limits: DownloadLimits | None = None,
) -> Readable:
    """Make the store behind `setting`; nothing is opened or connected before the first call.

    `on_skew` hears of the clock of a server that is asked; see `OnSkew`. `limits` say how fast it is fetched.
    """
    if location.scheme == "gs":
        return GcsStore(location.bucket, location.path, setting=setting, on_skew=on_skew, limits=limits)
    return FileStore(Path(location.path), setting=setting)


def open_model(
    location: Location,
    keys: Sequence[str],
    *,
    device: Device,
    name: str = "",
    pin: str = "",
    committed: Callable[[], Release | None] = lambda: None,
    on_skew: OnSkew | None = None,
    limits: DownloadLimits | None = None,
) -> Store:
    """Make the store behind `[model].url`; `keys` are the files of `trusted_keys`. The rest is as for `open_store`.

    `name` is that of the model in the settings, `committed` says what the device starts with. `pin` is the version
    that alone is wanted, or empty; where there is no manifest it is not looked at.
    """
    store, trust = open_store(location, on_skew=on_skew, limits=limits), Trust([Path(key) for key in keys])
    if location.path.rpartition("/")[2] != MANIFEST:
        return PlainStore(store, trust, device, name=name)
    folder = location.path.removesuffix(MANIFEST)

    def open_object(object_name: str) -> Store:
        return open_store(replace(location, path=f"{folder}{OBJECTS}/{object_name}"), limits=limits)

    if pin:
        of_pin = replace(location, path=folder + pin_name(pin))
        file = open_store(of_pin, setting="[model].pin", on_skew=on_skew)
    else:
        file = store
    return ManifestStore(file, open_object, trust, device, url=store.url, name=name, pin=pin, committed=committed)


def trusted_keys(files: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Return the files of `[model].keys`, and the one that systemd has passed on, if there is one."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    passed = [str(file)] if folder and (file := Path(folder) / KEYS_CREDENTIAL).exists() else []
    return [*files, *passed]


def golden_of(store: Store) -> HasGolden | None:
    """Return what fetches the golden samples of the releases in `store`, if they can have any."""
    return store if isinstance(store, ManifestStore) else None


def open_twins(
    slots: Slots, url: Location, cpu_url: Location | None, store: Store, limits: DownloadLimits | None = None
) -> Twins:
    """Make what looks for the twin of the model in `store`.

    It is named by its manifest if it has one, else by `[model].cpu_url`, or it is the `sibling` of the model.
    """
    if isinstance(store, ManifestStore):
        return Twins(slots, store.twin, limits=limits)
    location = cpu_url or sibling(url)
    of_twin = None if location is None else open_store(location, setting="[model].cpu_url", limits=limits)
    if of_twin is not None and isinstance(store, PlainStore):
        return Twins(slots, store.beside(of_twin), expected=cpu_url is not None, limits=limits)
    return Twins(slots, of_twin, expected=cpu_url is not None, limits=limits)


def sibling(url: Location) -> Location | None:
    """Where the twin of a compiled model is by convention: edgetpu_compiler makes X_edgetpu.tflite from X.tflite."""
    stem = url.path.removesuffix(_COMPILED)
    return None if stem in {url.path, ""} or stem.endswith("/") else replace(url, path=stem + _PLAIN)
