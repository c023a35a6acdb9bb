"""A release for some of the devices first, through a folder and through a real server: publish, promote, halt, list."""

import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_agent.models.release.audience import Device, share_of
from edge_agent.models.release.manifest import MAX_SEQUENCE, Audience, SignedManifest, parse, pin_name, unsigned
from edge_agent.publisher.audiences import Change
from edge_agent.publisher.errors import ReleaseError
from edge_agent.publisher.keys import make_key, read_keys, sign_release
from edge_agent.publisher.listing import list_releases
from edge_agent.publisher.places import Place, open_place
from edge_agent.publisher.promotion import halt, promote
from edge_agent.publisher.publish import publish
from tests.publisher.conftest import Workshop, command
from tests.servers.gcs import GcsServer

LYON = {"site": "lyon"}
FIVE = Change(percent=5.0, cohorts=[LYON])


def published(workshop: Workshop, folder: Path, change: Change = FIVE) -> Any:
    return workshop.publish(folder, change=change, keys=workshop.keys)


def test_five_per_cent_then_all_and_the_rest_keeps_what_was_there(workshop: Workshop) -> None:
    old, new = workshop.build("v1.3", 1), workshop.build("v1.4", 2, b"new")
    sign_release(old, [workshop.key], expires=2_000_000_000)
    workshop.publish(old)
    done = published(workshop, new)
    assert (done.manifest.audience, done.warnings) == (Audience(percent=5.0, cohorts=[LYON]), [])
    assert done.manifest.before is not None
    # How long it is good is said by the manifest that it is part of.
    assert (done.manifest.before.version, done.manifest.before.expires) == ("v1.3", None)
    first = next(f"d{i}" for i in range(1000) if share_of(f"d{i}", "v1.4", done.manifest.model.sha256) < 5)
    later = next(f"d{i}" for i in range(1000) if share_of(f"d{i}", "v1.4", done.manifest.model.sha256) > 50)
    assert [workshop.seen_by_device(each) for each in (Device(first), Device(later), Device(later, LYON))] == [
        "v1.4",
        "v1.3",
        "v1.4",
    ]

    half = promote(open_place(workshop.url), Change(percent=50.0), workshop.keys)
    assert half.manifest.audience == Audience(percent=50.0, cohorts=[LYON])
    assert half.manifest.sequence > done.manifest.sequence
    assert workshop.seen_by_device(Device(later)) == "v1.3"
    everybody = promote(open_place(workshop.url), Change(percent=100.0), workshop.keys)
    assert (everybody.manifest.audience, everybody.manifest.before) == (Audience(), None)
    assert workshop.seen_by_device(Device(later)) == "v1.4"


def test_a_halted_release_goes_to_nobody_else_until_it_is_promoted(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    published(workshop, workshop.build("v1.4", 2, b"new"), Change(percent=100.0))
    stopped = halt(open_place(workshop.url), workshop.keys, why="false alarms")
    assert stopped.manifest.audience == Audience(halted=True, why="false alarms")
    assert workshop.seen_by_device(Device("d1")) == "v1.4 was halted: false alarms"
    promote(open_place(workshop.url), Change(percent=100.0), workshop.keys)
    assert workshop.seen_by_device(Device("d1")) == "v1.4"


def test_a_second_release_for_some_leaves_the_others_what_they_have(workshop: Workshop) -> None:
    for version, sequence, change in (("v1.3", 1, Change()), ("v1.4", 2, FIVE), ("v1.5", 3, FIVE)):
        done = published(workshop, workshop.build(version, sequence, version.encode()), change)
    assert done.manifest.before is not None
    assert done.manifest.before.version == "v1.3"
    again = published(workshop, workshop.folder / "v1.5-3", Change(percent=20.0))
    assert again.manifest.before == done.manifest.before
    assert again.manifest.sequence > done.manifest.sequence or again.manifest.sequence == 3


def test_going_back_is_publishing_the_old_one_again_with_the_key(workshop: Workshop) -> None:
    old = workshop.build("v1.3", 1)
    workshop.publish(old)
    published(workshop, workshop.build("v1.4", 2, b"new"), Change(percent=100.0))
    promote(open_place(workshop.url), Change(percent=100.0), workshop.keys)
    back = published(workshop, old, Change())
    assert back.manifest.sequence > back.previous.sequence
    assert workshop.seen_by_device(Device("d1")) == "v1.3"


def test_going_back_without_keys_is_publishing_the_old_one_again(workshop: Workshop) -> None:
    old, new = workshop.build("v1.3", 1), workshop.build("v1.4", 2, b"new")
    for folder in (old, new):
        made = parse((folder / "release.json").read_bytes()).manifest
        (folder / "release.json").write_bytes(unsigned(made).encode())
        workshop.publish(folder)
    halt(open_place(workshop.url), [])
    back = workshop.publish(old)
    assert (back.previous.version, workshop.there().version) == ("v1.4", "v1.3")
    assert back.manifest.sequence > back.previous.sequence


def test_the_record_of_a_version_is_written_once_and_stays_what_it_was(workshop: Workshop) -> None:
    folder = workshop.build("v1.4/β", 2, b"new")
    workshop.publish(folder)
    name = pin_name("v1.4/β")
    first, state = open_place(workshop.url).read(name)
    published(workshop, folder, Change(percent=5.0))
    promote(open_place(workshop.url), Change(percent=50.0), workshop.keys)
    assert open_place(workshop.url).read(name) == (first, state)
    assert workshop.there(name).audience == Audience()
    with pytest.raises(ReleaseError, match=r"has a v1\.4/β that is made of other files; a version stays what it was"):
        published(workshop, workshop.build("v1.4/β", 9, b"another"), Change())
    assert workshop.there().model.size == len(b"new")


def test_a_record_gets_signatures_of_new_keys(workshop: Workshop) -> None:
    folder = workshop.build("v1.4", 2)
    workshop.publish(folder)
    other = workshop.folder / "other.pem"
    make_key(other)
    done = publish(folder, open_place(workshop.url), keys=read_keys([workshop.key, other]))
    assert done.warnings == []
    data, _ = open_place(workshop.url).read(pin_name("v1.4"))
    assert len(parse(data or b"").signatures) == 2
    only = publish(folder, open_place(workshop.url), keys=read_keys([other]))
    assert ["devices with only that key refuse it" in each for each in only.warnings] == [True]


def promote_meanwhile(workshop: Workshop, place: Any) -> None:
    """Let somebody else promote as soon as `place` has read what is there."""
    read = place.read

    def meanwhile(name: str) -> Any:
        found = read(name)
        if name == "release.json":
            place.read = read
            promote(open_place(workshop.url), Change(percent=20.0), workshop.keys)
        return found

    place.read = meanwhile


def test_of_two_at_the_same_time_one_is_told(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    ours, place = workshop.build("v1.4", 2, b"ours"), open_place(workshop.url)
    promote_meanwhile(workshop, place)
    with pytest.raises(ReleaseError, match=r"release\.json: somebody else has published meanwhile"):
        publish(ours, place, keys=workshop.keys)
    promote_meanwhile(workshop, place)
    with pytest.raises(ReleaseError, match=r"release\.json: somebody else has published meanwhile"):
        promote(place, Change(percent=50.0), workshop.keys)
    assert (workshop.there().version, workshop.there().audience.percent) == ("v1.3", 20.0)


def forged(workshop: Workshop, place: Place, **changes: Any) -> None:
    """Somebody without the key, who may write to the bucket, puts another manifest there."""
    data, state = place.read("release.json")
    file = parse(data or b"")
    changed = unsigned(msgspec.structs.replace(file.manifest, **changes))
    place.replace("release.json", SignedManifest(changed.manifest, changed.signed, file.signatures).encode(), state)


def test_nothing_is_signed_that_was_not_signed_before(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    new = workshop.build("v1.4", 2, b"new")
    forged(workshop, open_place(workshop.url), version="v6.6.6")
    unsafe = r"was changed after it was signed with .* only what was signed is signed again: find out "
    with pytest.raises(ReleaseError, match=unsafe):
        promote(open_place(workshop.url), Change(percent=5.0), workshop.keys)
    with pytest.raises(ReleaseError, match=unsafe):
        halt(open_place(workshop.url), workshop.keys)
    with pytest.raises(
        ReleaseError, match=r"What is there would stay the release of the devices that v1\.4 is not for"
    ):
        published(workshop, new)
    assert workshop.seen_by_device(Device("d1")).endswith("was changed after it was signed with " + seen_key(workshop))
    assert published(workshop, new, Change()).previous.version == "v6.6.6"


def seen_key(workshop: Workshop) -> str:
    data, _ = open_place(workshop.url).read("release.json")
    return parse(data or b"").signatures[0].key


def test_a_sequence_that_nothing_can_follow_is_no_trap(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    forged(workshop, open_place(workshop.url), sequence=MAX_SEQUENCE - 1)
    with pytest.raises(ReleaseError, match="which nothing can follow: find out who wrote it, and remove it"):
        published(workshop, workshop.build("v1.4", 2, b"new"), Change())


def test_what_is_signed_is_changed_with_a_key_only(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    with pytest.raises(ReleaseError, match=r"is signed: give the key to sign it with again \(--key\)"):
        promote(open_place(workshop.url), Change(percent=5.0), [])
    with pytest.raises(ReleaseError, match=r"change what is signed: give the keys, too \(--key\)"):
        publish(workshop.build("v1.4", 2, b"new"), open_place(workshop.url), change=FIVE)


def test_some_devices_or_a_shadow_are_not_all(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    new = workshop.build("v1.4", 2, b"new")
    assert command("publish", new, workshop.url, "--key", workshop.key, "--shadow", 10) == 0
    assert workshop.there().audience == Audience(percent=0, shadow=0.1)
    assert workshop.seen_by_device() == "v1.3"
    assert command("publish", new, workshop.url, "--key", workshop.key, "--cohort", "site=lyon") == 0
    assert workshop.there().audience == Audience(percent=0, cohorts=[LYON])


def test_a_later_end_alone_changes_nothing_else(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    published(workshop, workshop.build("v1.4", 2, b"new"))
    halt(open_place(workshop.url), workshop.keys, why="false alarms")
    before = workshop.there()
    assert command("promote", workshop.url, "--key", workshop.key, "--expires", "90d") == 0
    after = workshop.there()
    assert (after.expires or 0) > time.time() + 89 * 86400
    assert (after.audience, after.before) == (before.audience, before.before)
    assert after.audience.halted


def test_what_no_device_would_take_for_its_time_is_not_published(
    workshop: Workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = workshop.build("v1.4", 1)
    sign_release(folder, [workshop.key], expires=2_000_000_000)
    workshop.publish(folder)
    sign_release(folder, [workshop.key], expires=1_000_000_000)
    over = r"^no device would take it: v1\.4 was good until 2001-09-09: sign it again with a later --expires$"
    with pytest.raises(ReleaseError, match=over):
        workshop.publish(folder, keys=workshop.keys)
    future = workshop.build("v1.5", 4_000_000_000_000, b"by a clock of 2096")
    with pytest.raises(ReleaseError, match=r"v1\.5 was made on 2096-10-02, which by this clock is still to come"):
        workshop.publish(future)
    assert workshop.there().version == "v1.4"
    monkeypatch.setattr(time, "time", lambda: 2_000_000_001.0)
    with pytest.raises(ReleaseError, match=r"v1\.4 was good until 2033-05-18"):
        promote(open_place(workshop.url), Change(percent=50.0), workshop.keys)
    stopped = halt(open_place(workshop.url), workshop.keys)
    assert stopped.warnings == ["its time was over before: no device switches to it any more, and none hears of this"]
    assert promote(open_place(workshop.url), FIVE, workshop.keys, expires=2_100_000_000).warnings == []


def test_a_key_that_devices_may_not_have_is_told(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    wrong = workshop.folder / "wrong.pem"
    name, _ = make_key(wrong)
    folder = workshop.build("v1.4", 2, b"new")
    (folder / "release.json").write_bytes(unsigned(parse((folder / "release.json").read_bytes()).manifest).encode())
    right = seen_key(workshop)
    assert command("halt", workshop.url, "--key", wrong) == 65
    said = capsys.readouterr().err
    assert f"is signed with {right} and not with {name}: give the key that it was signed with. " in said
    assert command("publish", folder, workshop.url, "--key", wrong) == 0
    assert capsys.readouterr().err.startswith(
        f"warning: v1.3 was signed with {right}, and this is not: devices with only that key refuse it; publish it "
    )
    assert "and not with" in workshop.seen_by_device()
    assert command("publish", folder, workshop.url, "--key", workshop.key, "--key", wrong) == 0
    assert capsys.readouterr().err == ""


def test_labels_that_are_gone_are_told(workshop: Workshop) -> None:
    def build(version: str, sequence: int, labels: list[str] | None) -> Path:
        folder = workshop.build(version, sequence, version.encode())
        made = parse((folder / "release.json").read_bytes()).manifest
        (folder / "release.json").write_bytes(unsigned(msgspec.structs.replace(made, labels=labels)).encode())
        return folder

    assert published(workshop, build("v1.3", 1, ["normal", "failure"]), Change()).warnings == []
    assert published(workshop, build("v1.4", 2, None), Change()).warnings == [
        "v1.3 had labels, and this has none: devices use [inference].labels, or number the classes"
    ]


@pytest.mark.parametrize("why", ["x" * 129, "two\nlines"])
def test_a_reason_is_one_line(workshop: Workshop, capsys: pytest.CaptureFixture[str], why: str) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    assert command("halt", workshop.url, "--key", workshop.key, "--why", why) == 65
    assert capsys.readouterr().err == "--why: give one line of up to 128 letters\n"


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_url_of_the_devices_is_not_that_of_the_folder(workshop: Workshop, slash: str) -> None:
    with pytest.raises(ReleaseError, match=rf"/release\.json{slash}: is the manifest, .*; give the folder: .*[a-z]$"):
        open_place(f"{workshop.url}/release.json{slash}")


def test_another_interface_is_published_on_purpose_only(workshop: Workshop) -> None:
    def build(version: str, sequence: int, shape: str) -> Path:
        folder = workshop.build(version, sequence, version.encode())
        made = parse((folder / "release.json").read_bytes()).manifest
        made = msgspec.structs.replace(made, inputs=[f"uint8 of shape {shape}"], outputs=["uint8 of shape 1x3"])
        (folder / "release.json").write_bytes(unsigned(made).encode())
        return folder

    published(workshop, build("v1.3", 1, "1x128"), Change())
    other = build("v1.4", 2, "1x64")
    with pytest.raises(ReleaseError, match=r"uint8 of shape 1x64, and not uint8 of shape 1x128\. .* --new-interface"):
        published(workshop, other, Change())
    assert publish(other, open_place(workshop.url), keys=workshop.keys, new_interface=True).manifest.version == "v1.4"


def test_the_list_by_commands(workshop: Workshop, capsys: pytest.CaptureFixture[str]) -> None:
    workshop.publish(workshop.build("v1.2", 1, b"old"))
    workshop.publish(workshop.build("v1.3", 1_750_000_000_000, b"before"))
    new = workshop.build("v1.4", 1_760_000_000_000, b"new")
    for_whom = ("--percent", "5%", "--cohort", "site=lyon,line=3")
    assert command("publish", new, workshop.url, "--key", workshop.key, *for_whom) == 0
    assert capsys.readouterr().out.endswith("v1.4 for 5% site=lyon,line=3 (the others: v1.3), instead of v1.3\n")
    assert command("promote", workshop.url, "--key", workshop.key, "--percent", 25, "--expires", "90d") == 0
    assert command("halt", workshop.url, "--key", workshop.key, "--why", "false alarms") == 0
    said = capsys.readouterr().out
    assert "v1.4 for 25% site=lyon,line=3 (the others: v1.3), good until 20" in said
    assert "UTC; it was for 5% site=lyon,line=3\n" in said
    assert said.endswith("v1.4 go on with it; to take it back from them publish v1.3 again\n")
    assert command("list", workshop.url) == 0
    title, head, *rows = capsys.readouterr().out.splitlines()
    assert title.endswith(": vibration")
    assert head.split("  ")[0] == "version"
    assert [row.split("  ")[0] for row in rows] == ["v1.4", "v1.3", "v1.2"]
    assert "halted 25% site=lyon,line=3" in rows[0]
    assert "2025-10-09" in rows[0]
    assert "the others" in rows[1]
    assert command("list", workshop.url, "--json") == 0
    listed = msgspec.json.decode(capsys.readouterr().out)
    assert [each["audience"] for each in listed["releases"]] == ["halted 25% site=lyon,line=3", "the others", ""]


def test_a_broken_record_hides_none_of_the_others(workshop: Workshop) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    place = open_place(workshop.url)
    place.replace("releases/v9.json", b"{}", place.read("releases/v9.json")[1])
    releases = list_releases(open_place(workshop.url)).releases
    assert [each.version for each in releases if not each.problem] == ["v1.3"]
    assert ["v9.json: is no manifest" in each.problem for each in releases if each.problem] == [True]


def test_an_empty_place(workshop: Workshop) -> None:
    assert list_releases(open_place(workshop.url)).releases == []
    with pytest.raises(ReleaseError, match="publish a release first"):
        halt(open_place(workshop.url), workshop.keys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say for whom: --percent, --cohort or --shadow"),
        (("--percent", "many"), "'many' is no percentage: write 10, or 10%"),
        (("--percent", "101"), "--percent: '101' is no percentage from 0 to 100"),
        (("--shadow", "nan"), "--shadow: 'nan' is no percentage from 0 to 100"),
        (("--cohort", "lyon"), '--cohort: "lyon" is no label, NAME=VALUE; write a cohort as in site=lyon,line=3, and '),
        (("--cohort", "site="), "--cohort: 'site=' has a label without name or value; write a cohort as in "),
        (("--cohort", "site=lyon;"), '--cohort: "site=lyon;" is no label'),
        (
            ("--cohort", "site=lyon,site=paris"),
            'has the label "site" twice, which no device has; write a cohort as in ',
        ),
        (("--expires", "90"), "--expires: '90' has no unit; write for instance"),
        (("--expires", "0d"), "--expires: must be longer than 0d"),
        (("--cohort", "site=lyon"), "v1.3 is for all devices already; give --percent, too"),
    ],
)
def test_mistakes_on_the_command_line(
    workshop: Workshop, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    workshop.publish(workshop.build("v1.3", 1))
    assert command("promote", workshop.url, "--key", workshop.key, *arguments) == 65
    assert said in capsys.readouterr().err


def test_an_answer_that_is_lost_is_no_failure(gcs_server: GcsServer, tmp_path: Path) -> None:
    gcs_server.create_bucket("bucket")
    workshop = Workshop(tmp_path, "gs://bucket/models/vibration")
    workshop.publish(workshop.build("v1.3", 1))
    gcs_server.fault("break", "upload")
    assert promote(open_place(workshop.url), Change(percent=20.0), workshop.keys).manifest.audience.percent == 20.0
    assert workshop.there().audience.percent == 20.0
