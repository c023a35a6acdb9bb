"""What a store with a manifest offers to one device: by audience, pin and time."""

import os
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.models.open import golden_of, open_model
from edge_agent.models.release.audience import Device
from edge_agent.models.release.manifest import MAX_GOLDEN, Acceptance, Audience, Manifest, ObjectFile, unsigned
from edge_agent.models.stores.base import FetchFailed, Missing, StoreNeedsPerson, StoreUnavailable
from edge_agent.settings.location import parse_location
from tests.models.stores.store_kit import DAY, NOON, Site, put


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def only(percent: float, **more: Any) -> Audience:
    return Audience(percent=percent, **more)


# ------------------------------------------------------------------------------------------ audience


def test_a_device_that_is_in_gets_the_release_and_one_that_is_not_the_one_before(site: Site) -> None:
    before = site.made("v1.3", twin=b"twin of v1.3")
    new = site.made("v1.4", twin=b"the twin of v1.4", before=before)
    place = site.place(new)
    for percent, version, twin in ((place + 0.001, "v1.4", 16), (place, "v1.3", 12)):
        store = site.store()
        site.publish(new_audience(new, only(percent)))
        remote = store.stat()
        assert (remote.version, remote.withheld, remote.shadow) == (version, "", None)
        assert (store.twin.stat().size, store.twin.stat().version) == (twin, version)
        # What is older is inside of what was signed last, so it is no older manifest.
        assert remote.sequence == new.sequence


def new_audience(made: Manifest, audience: Audience) -> Manifest:
    return msgspec.structs.replace(made, audience=audience)


def test_without_one_before_the_release_is_withheld(site: Site) -> None:
    new = site.publish(site.made("v1.4", audience=only(0.001)))
    remote = site.store().stat()
    assert remote.version == "v1.4"
    assert remote.withheld.startswith("v1.4 is out for 0.001 % of the devices, and this one is not among them")
    assert site.place(new) > 0.001


def test_a_cohort_goes_first(site: Site) -> None:
    audience = only(0, cohorts=[{"site": "lyon"}])
    site.publish(site.made("v1.4", before=site.made("v1.3"), audience=audience))
    assert site.store().stat().version == "v1.3"
    site.device = Device("edge-001", {"site": "lyon", "line": "3"})
    assert site.store().stat().version == "v1.4"


def test_halted_stops_those_who_have_not_switched_and_nobody_goes_back(site: Site) -> None:
    new = site.made("v1.4", before=site.made("v1.3"), audience=Audience(halted=True))
    site.publish(new)
    assert site.store().stat().version == "v1.3"
    site.runs(new)
    remote = site.store().stat()
    assert (remote.version, remote.withheld) == ("v1.4", "v1.4 was halted")
    # Another model under the same version is not what it runs.
    site.running = None
    site.publish(site.made("v1.4", audience=Audience(halted=True)))
    assert site.store().stat().withheld == "v1.4 was halted"


def test_the_others_run_it_as_a_shadow_until_it_is_halted(site: Site) -> None:
    new = site.made("v1.4", before=site.made("v1.3"), acceptance=Acceptance(max_latency_ms=5))
    site.publish(new_audience(new, only(0, shadow=0.05)))
    remote = site.store().stat()
    assert remote.version == "v1.3"
    assert remote.shadow is not None
    assert (remote.shadow.remote.version, remote.shadow.share) == ("v1.4", 0.05)
    assert remote.shadow.remote.acceptance.max_latency_ms == 5
    site.publish(new_audience(new, only(100, shadow=0.05)))
    assert site.store().stat().shadow is None
    site.publish(new_audience(new, only(0, shadow=0.05, halted=True)))
    assert site.store().stat().shadow is None


def test_all_that_is_offered_can_be_fetched(site: Site, tmp_path: Path) -> None:
    golden = site.add(b"golden of v1.3", "golden.npz")
    before = site.made("v1.3", twin=b"twin of v1.3", acceptance=Acceptance(golden=golden))
    site.publish(site.made("v1.4", before=before, audience=only(0, shadow=1)))
    store, file, stop = site.store(), tmp_path / "file", threading.Event()
    remote = store.stat()
    store.fetch(remote, file, stop)
    assert file.read_bytes() == b"model v1.3"
    store.twin.fetch(store.twin.stat(), file, stop)
    assert file.read_bytes() == b"twin of v1.3"
    store.fetch_golden(remote, file, stop)
    assert file.read_bytes() == b"golden of v1.3"
    assert remote.shadow is not None
    store.fetch(remote.shadow.remote, file, stop)
    assert file.read_bytes() == b"model v1.4"
    with pytest.raises(StoreUnavailable, match="has changed since it was read"):
        store.fetch_golden(remote.shadow.remote, file, stop)


def test_golden_samples_that_are_not_what_was_signed_are_thrown_away(site: Site, tmp_path: Path) -> None:
    golden = site.add(b"golden", "golden.npz")
    put(site.folder / "objects" / golden.name, b"forged")
    site.publish(site.made("v1.3", acceptance=Acceptance(golden=golden)))
    store = site.store()
    with pytest.raises(FetchFailed, match="its SHA-256 is another; it was thrown away"):
        store.fetch_golden(store.stat(), tmp_path / "file", threading.Event())
    large = ObjectFile(name=golden.name, size=MAX_GOLDEN + 1, sha256=golden.sha256)
    site.publish(site.made("v1.3", acceptance=Acceptance(golden=large)))
    with pytest.raises(StoreNeedsPerson, match=f"golden samples of {MAX_GOLDEN + 1} bytes, and at most"):
        store.fetch_golden(store.stat(), tmp_path / "file", threading.Event())


def test_an_upload_that_was_found_to_be_something_else_is_not_read_again(site: Site, tmp_path: Path) -> None:
    made = site.publish(site.made("v1.3"))
    there = site.folder / "objects" / made.model.name
    put(there, b"another 3 ")
    store = site.store()
    remote = store.stat()
    for _ in range(2):
        with pytest.raises(FetchFailed, match="thrown away"):
            store.fetch(remote, tmp_path / "file", threading.Event())
        (tmp_path / "file").unlink(missing_ok=True)
    put(there, b"model v1.3")
    os.utime(there, (1, 1))
    store.fetch(remote, tmp_path / "file", threading.Event())
    assert (tmp_path / "file").read_bytes() == b"model v1.3"


# ------------------------------------------------------------------------------------------ pins


def test_a_pinned_version_is_taken_whatever_has_come_after_it(site: Site) -> None:
    site.keep(site.made("v1.2", audience=only(0)))
    site.publish(site.made("v1.4", audience=Audience(halted=True)))
    remote = site.store(pin="v1.2").stat()
    assert (remote.version, remote.withheld, remote.sequence) == ("v1.2", "", 0)
    assert remote.url == site.store().url


def test_a_pinned_version_is_signed_and_has_not_expired(site: Site) -> None:
    site.keep(site.made("v1.2"), None)
    with pytest.raises(StoreNeedsPerson, match="is not signed"):
        site.store(pin="v1.2").stat()
    site.keep(site.made("v1.2", expires=int(NOON) - 1))
    with pytest.raises(StoreNeedsPerson, match=r"has expired: v1.2 was good until 2027-01-15"):
        site.store(pin="v1.2").stat()


def test_a_pin_is_the_version_that_it_says(site: Site) -> None:
    site.publish(site.made("v1.4"), name="releases/v1.2.json")
    with pytest.raises(StoreNeedsPerson, match=r"is v1.4, and not v1.2; find out who put it there"):
        site.store(pin="v1.2").stat()
    with pytest.raises(Missing, match=r"no release v1.1; publish it again, or correct \[model\].pin"):
        site.store(pin="v1.1").stat()


@pytest.mark.parametrize("version", ["../release", "a/b", "..", ".", "/etc/passwd", "v1.4?x=1#y", "100%", "é", "v1 4"])
def test_a_version_is_no_path(site: Site, version: str) -> None:
    store = open_model(parse_location(str(site.folder / "release.json")), [], device=site.device, pin=version)
    made = site.publish(site.made("v1.4"), None)
    with pytest.raises(Missing):
        store.stat()
    site.keep(site.made(version), None)
    assert store.stat().version == version
    assert [file.parent.name for file in site.folder.rglob("*.json")].count("releases") == 1
    assert store.url == site.store().url
    assert golden_of(store) is not None
    assert unsigned(made).manifest == made


# ------------------------------------------------------------------------------------------ time


def test_expiry_is_told_before_it_comes(site: Site) -> None:
    made = site.publish(site.made("v1.4", expires=int(NOON + 30 * DAY)))
    assert site.store().stat().outlook == ""
    site.now += 17 * DAY
    again = "sign it again (edge-agent release promote --expires)"
    assert site.store().stat().outlook == f"v1.4 is good until 2027-02-14: {again}"
    site.now += 14 * DAY
    with pytest.raises(StoreNeedsPerson, match=r"has expired: v1.4 was good until 2027-02-14; sign it again"):
        site.store().stat()
    assert made.expires is not None


@pytest.mark.parametrize("keys", [True, False])
def test_a_clock_that_nobody_has_set_decides_nothing(site: Site, keys: bool) -> None:
    site.now = 60.0  # a board without a battery, one minute after it was switched on
    site.publish(site.made("v1.4"))
    assert site.store(keys=keys).stat().version == "v1.4"
    for expires in (1, int(NOON + DAY)):
        site.publish(site.made("v1.5", expires=expires))
        with pytest.raises(StoreUnavailable, match=r"whether v1.5 has expired cannot be told, as the clock of this"):
            site.store(keys=keys).stat()
    site.now = NOON
    assert site.store(keys=keys).stat().version == "v1.5"


def test_a_sequence_from_the_future_would_keep_all_later_releases_out(site: Site) -> None:
    for ahead, year in ((2 * DAY, 2027), (5e9, 2185), (5e12, 9999)):
        site.publish(site.made("v1.4", sequence=int((NOON + ahead) * 1000)))
        with pytest.raises(StoreNeedsPerson, match=f"was made on {year}-.*, which by this device's clock is still to"):
            site.store().stat()
    site.publish(site.made("v1.4", sequence=int((NOON + DAY / 2) * 1000)))
    assert site.store().stat().version == "v1.4"
    # Where nobody is asked for a signature it does not count.
    site.publish(site.made("v1.4", sequence=(1 << 53) - 1), None)
    assert site.store(keys=False).stat().sequence == 0


# ------------------------------------------------------------------------------------------ names


def test_the_signed_release_of_another_model_is_not_taken(site: Site) -> None:
    site.publish(site.made("v9", name="traffic"))
    with pytest.raises(StoreNeedsPerson, match="is a release of traffic, and this device runs vibration; correct"):
        site.store().stat()
    assert site.store(name="").stat().version == "v9"
    # Without keys anybody can call it as he likes.
    assert site.store(keys=False).stat().version == "v9"
