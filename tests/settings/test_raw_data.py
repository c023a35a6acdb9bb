"""[telemetry.raw_data]: the short form and the table, and rules that no sample can meet."""

from collections.abc import Callable
from pathlib import Path

import pytest

from edge_agent.settings.loading import load
from edge_agent.settings.location import Location
from edge_agent.settings.raw_data import RawDataSettings

Write = Callable[[str], Path]
Faults = Callable[..., list[str]]
TABLE = "[telemetry.raw_data]\n"


def test_off_unless_it_is_asked_for(settings_file: Write, complete: str) -> None:
    raw_data = load(settings_file(complete), {}).telemetry.raw_data
    assert (raw_data.values, raw_data.images, raw_data.chooses) == (0, None, False)


def test_a_number_is_so_many_values_of_every_sample(settings_file: Write, complete: str) -> None:
    raw_data = load(settings_file(f"{complete}raw_data = 64\n"), {}).telemetry.raw_data
    assert raw_data == RawDataSettings(values=64)
    assert not raw_data.chooses
    assert load(settings_file(complete), {"EDGE_AGENT_TELEMETRY__RAW_DATA": "64"}).telemetry.raw_data == raw_data


def test_a_table_has_rules(settings_file: Write, complete: str) -> None:
    text = f'{TABLE}values = 3\nimages = "gs://bucket/re/training/"\nmax_margin = 0.1\ndaily_budget = "1GB"\n'
    assert load(settings_file(complete + text), {}).telemetry.raw_data == RawDataSettings(
        values=3, images=Location("gs", "bucket", "re/training"), max_margin=0.1, daily_budget=10**9
    )
    environ = {"EDGE_AGENT_TELEMETRY__RAW_DATA__ONE_IN": "7", "EDGE_AGENT_TELEMETRY__RAW_DATA__VALUES": "4"}
    assert load(settings_file(complete), environ).telemetry.raw_data == RawDataSettings(values=4, one_in=7)


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("gs://bucket", "gs://bucket/"),
        ("gs://bucket/", "gs://bucket/"),
        ("gs://bucket/a/b/", "gs://bucket/a/b"),
        ("file:///srv/pictures/", "file:///srv/pictures"),
        ("/srv/pictures", "file:///srv/pictures"),
    ],
)
def test_a_folder_with_or_without_its_slash(settings_file: Write, complete: str, written: str, meant: str) -> None:
    text = f'{TABLE}one_in = 9\nimages = "{written}"\n'
    assert str(load(settings_file(complete + text), {}).telemetry.raw_data.images) == meant


def test_a_relative_folder_starts_from_that_of_the_file(settings_file: Write, complete: str) -> None:
    file = settings_file(f'{complete}{TABLE}one_in = 9\nimages = "pictures/"\n')
    images = load(file, {}).telemetry.raw_data.images
    assert images == Location("file", "", str(file.parent / "pictures"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raw_data = -1", ":9: [telemetry].raw_data: must be at least 0, not -1"),
        ("raw_data = 1001", ":9: [telemetry].raw_data: must be at most 1000, not 1001"),
        ('raw_data = "all"', ':9: [telemetry].raw_data: expected a whole number, not "all"'),
        (f"{TABLE}max_conf = 0.5", ":10: [telemetry.raw_data].max_conf: unknown key (did you mean 'max_confidence'?)"),
        (
            f"{TABLE}values = 1\nmax_margin = 1.5",
            ":11: [telemetry.raw_data].max_margin: must be at most 1, not 1.5",
        ),
        (
            f"{TABLE}values = 1\nmin_clipped = 0",
            ":11: [telemetry.raw_data].min_clipped: must be more than 0, not 0",
        ),
        (
            f'{TABLE}values = 1\none_in = 5\ndaily_budget = "1kB"',
            ':12: [telemetry.raw_data].daily_budget: must be at least 10kB, not "1kB"',
        ),
        (
            f"{TABLE}one_in = 5",
            ":9: [telemetry.raw_data]: one_in chooses samples, but neither values nor images says what to keep of them",
        ),
        (
            f'{TABLE}images = "gs://bucket/a"',
            (
                ":9: [telemetry.raw_data]: images needs a rule that chooses them: "
                "max_confidence, max_margin, min_clipped, one_in"
            ),
        ),
        (
            f'{TABLE}one_in = 5\nimages = "gs://"',
            ':11: [telemetry.raw_data].images: "gs://" names no bucket; write gs://BUCKET/PREFIX',
        ),
        (
            f'{TABLE}one_in = 5\nimages = "s3://bucket/a"',
            ':11: [telemetry.raw_data].images: "s3://bucket/a" must begin with gs:// or file:///, or be a path',
        ),
        (
            f"{TABLE}values = 1\nmax_margin = 0.1\n[inference]\ntop_k = 1",
            (
                ":11: [telemetry.raw_data].max_margin: needs the best two classes: "
                "[inference].top_k must be at least 2, not 1"
            ),
        ),
        (
            f'{TABLE}values = 1\nmax_confidence = 0.6\n[inference]\ntask = "regression"',
            (
                ":11: [telemetry.raw_data].max_confidence: needs [inference].task "
                '"classification" or "detection", not "regression"'
            ),
        ),
        (
            f'{TABLE}values = 1\nmax_confidence = 0.3\n[inference]\ntask = "detection"',
            (
                ":11: [telemetry.raw_data].max_confidence: no object has a score of 0.3 or less: "
                "[inference].threshold, 0.4, leaves it out"
            ),
        ),
    ],
)
def test_a_fault_in_one_line(faults: Faults, complete: str, text: str, message: str) -> None:
    assert faults(complete + text + "\n") == [f"edge-agent.toml{message}"]
