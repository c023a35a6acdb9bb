"""Which samples are chosen, and what is kept of them."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edge_agent.inference.protocol import RawDataOptions
from edge_agent.inference.worker import selection
from edge_agent.inference.worker.selection import BUDGET_FILE, Selection
from edge_agent.records import Chosen, Result, Sample, Score

# 2026-05-01T10:00:00.250Z, when the monotonic clock shows 100 s.
WALL_NS = 1_777_629_600_250_000_000
MONOTONIC_NS = 100_000_000_000
IMAGES = "gs://bucket/retraining"
NAME = "edge-001,2026-05-01,100000.150-1742810700.jpg"
URL = f"{IMAGES}/edge-001/2026-05-01/100000.150-1742810700.jpg"


def choosing(folder: Path, task: str = "classification", chance: float = 0.5, **options: Any) -> Selection:
    given: dict[str, Any] = {"values": 3, "daily_budget": 5_000_000} | options
    return Selection(
        RawDataOptions(device="edge-001", handover=str(folder / "new" / "key"), **given),
        task,
        chance=lambda: chance,
        wall_ns=lambda: WALL_NS,
        monotonic_ns=lambda: MONOTONIC_NS,
    )


def result(*scores: float, **more: Any) -> Result:
    ranked = [Score(f"class {number}", score, number) for number, score in enumerate(scores)]
    return Result(MONOTONIC_NS, 1000, ranked, **({"clipped": 0.0} | more))


def vector() -> Sample:
    return Sample(np.array([0.1, np.nan, 3, 4], np.float32), MONOTONIC_NS)


def picture() -> Sample:
    pixels = np.zeros((60, 80, 3), np.uint8)
    pixels[:, 40:] = (250, 10, 10)
    # Captured 100 ms ago.
    return Sample(pixels, 99_900_000_000)


def rule(chosen: Result) -> str | None:
    return chosen.chosen.rule if chosen.chosen is not None else None


@pytest.mark.parametrize(
    ("options", "said", "chosen"),
    [
        ({"max_confidence": 0.6}, result(0.6, 0.4), True),
        ({"max_confidence": 0.6}, result(0.61, 0.39), False),
        ({"max_margin": 0.1}, result(0.55, 0.45), True),
        ({"max_margin": 0.1}, result(0.56, 0.44), False),
        ({"max_margin": 0.1}, result(0.05), False),  # of the second one nothing is known
        ({"min_clipped": 0.05}, result(0.9, clipped=0.05), True),
        ({"min_clipped": 0.05}, result(0.9, clipped=0.04), False),
        ({"one_in": 2}, result(0.9), False),  # the chance is 0.5, and it takes less
        ({"one_in": 1}, result(0.9), True),
    ],
)
def test_each_rule_chooses_what_it_is_for(tmp_path: Path, options: dict[str, Any], said: Result, chosen: bool) -> None:
    looked = choosing(tmp_path, **options).look(vector(), said)
    assert rule(looked) == (next(iter(options)) if chosen else None)
    assert looked.raw_data == ([0.1, 0.0, 3.0] if chosen else None)


def test_chance_chooses_one_in_so_many(tmp_path: Path) -> None:
    assert rule(choosing(tmp_path, one_in=1000, chance=0.00099).look(vector(), result(0.9))) == "one_in"
    assert rule(choosing(tmp_path, one_in=1000, chance=0.001).look(vector(), result(0.9))) is None


def test_the_first_rule_that_is_met_is_told(tmp_path: Path) -> None:
    several = choosing(tmp_path, max_confidence=0.6, max_margin=0.1, min_clipped=0.5, one_in=1)
    assert rule(several.look(vector(), result(0.5, 0.5, clipped=1.0))) == "max_confidence"


def test_nothing_found_is_unsure_for_a_classifier_and_sure_for_a_detector(tmp_path: Path) -> None:
    assert rule(choosing(tmp_path, "classification", max_confidence=0.6).look(vector(), result())) == "max_confidence"
    assert rule(choosing(tmp_path, "detection", max_confidence=0.6).look(vector(), result())) is None


def test_a_picture_is_in_the_handover_folder_before_its_result_goes_out(tmp_path: Path) -> None:
    chosen = choosing(tmp_path, values=0, images=IMAGES, one_in=1).look(picture(), result(0.9))
    assert (chosen.chosen, chosen.raw_data) == (Chosen("one_in", URL), None)
    [file] = (tmp_path / "new" / "key").iterdir()
    assert file.name == NAME
    seen = np.asarray(Image.open(BytesIO(file.read_bytes())))
    assert seen.shape == (60, 80, 3)
    assert np.abs(seen[:, 60].astype(int) - (250, 10, 10)).max() < 10
    assert (tmp_path / "new" / BUDGET_FILE).exists()


def test_a_picture_can_come_with_its_values_and_a_vector_has_no_picture(tmp_path: Path) -> None:
    both = choosing(tmp_path, images=IMAGES, one_in=1)
    assert both.look(picture(), result(0.9)).raw_data == [0.0, 0.0, 0.0]
    only_images = choosing(tmp_path / "other", images=IMAGES, one_in=1, values=0)
    assert only_images.look(vector(), result(0.9)).chosen is None
    assert not (tmp_path / "other").exists()


def test_what_the_budget_leaves_out_is_counted_and_costs_no_picture(tmp_path: Path) -> None:
    chooser = choosing(tmp_path, values=0, images=IMAGES, one_in=1, daily_budget=10_000)
    assert chooser.look(picture(), result(0.9)).chosen is not None
    said = result(0.9)
    assert chooser.look(picture(), said) is said
    assert len(list((tmp_path / "new" / "key").iterdir())) == 1
    counts = chooser.take_counts()
    assert (counts.over_budget, counts.failed) == (1, 0)
    assert chooser.take_counts().over_budget == 0


def test_values_use_up_the_budget_too(tmp_path: Path) -> None:
    chooser = choosing(tmp_path, values=3, one_in=1, daily_budget=10_000)
    assert chooser.look(vector(), result(0.9)).raw_data
    assert chooser.look(vector(), result(0.9)).raw_data is None


def test_pictures_that_nobody_takes_away_are_not_piled_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_FILES", 2)
    folder = tmp_path / "new" / "key"
    folder.mkdir(parents=True)
    for number in range(2):
        (folder / f"{number}.jpg").write_bytes(b"x")
    chooser = choosing(tmp_path, images=IMAGES, one_in=1)
    looked = chooser.look(picture(), result(0.9))
    # The values are kept all the same, and refer to no picture.
    assert (looked.chosen, looked.raw_data) == (Chosen("one_in"), [0.0, 0.0, 0.0])
    counts = chooser.take_counts()
    assert counts.failed == 1
    assert "2 pictures in" in counts.failure
    assert len(list(folder.iterdir())) == 2


def test_a_picture_that_is_taken_away_meanwhile_is_no_trouble(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "key"
    folder.mkdir(parents=True)
    # It is in the listing of the folder, and when it is looked at it is gone.
    (folder / "0.jpg").symlink_to(folder / "gone")
    chooser = choosing(tmp_path, images=IMAGES, one_in=1)
    assert chooser.look(picture(), result(0.9)).chosen == Chosen("one_in", URL)
    assert chooser.take_counts().failed == 0


def test_a_picture_that_cannot_be_written_is_counted_and_the_result_goes_on(tmp_path: Path) -> None:
    (tmp_path / "new").write_text("a file where the folder should be")
    chooser = choosing(tmp_path, values=0, images=IMAGES, one_in=1)
    said = result(0.9)
    assert chooser.look(picture(), said) is said
    counts = chooser.take_counts()
    assert counts.failed == 1
    assert counts.failure.startswith("a picture cannot be kept: ")
