"""Which samples are left out after which deaths."""

import pytest

from edge_agent.inference.progress import ProgressPage, Reporter, Stage, Track
from edge_agent.inference.supervision.deaths import MAX_SET_ASIDE, Death, LastMoment, Suspects
from edge_agent.inference.supervision.hangs import find_hang


def last(working_on: str | None = None, read_after: str | None = None) -> LastMoment:
    return LastMoment("busy", loading=False, on_sample=True, working_on=working_on, read_after=read_after)


def test_a_sample_in_the_model_is_left_out_after_the_second_death_over_it() -> None:
    suspects = Suspects()
    assert suspects.blame(last("7")) is None
    assert suspects.blame(last("9")) is None
    assert suspects.avoid == []
    assert suspects.blame(last("7")) == "the sample at 7"
    assert (suspects.avoid, suspects.pass_over) == (["7"], [])


@pytest.mark.parametrize(("position", "words"), [("3", "the sample after 3"), ("", "the first sample")])
def test_a_sample_that_kills_while_it_is_read_is_passed_over(position: str, words: str) -> None:
    suspects = Suspects()
    # The thread that runs the model was busy with an innocent sample, another one each time.
    assert suspects.blame(last("1", position)) is None
    assert suspects.blame(last("2", position)) == words
    assert (suspects.avoid, suspects.pass_over) == ([], [position])


def test_when_both_threads_are_at_the_same_samples_again_one_after_the_other_is_left_out() -> None:
    suspects = Suspects()
    suspects.blame(last("1", "40"))
    assert suspects.blame(last("1", "40")) == "the sample at 1"
    assert suspects.blame(last("2", "40")) == "the sample after 40"


def test_when_passing_over_one_sample_was_not_enough_the_next_is_passed_over_too() -> None:
    suspects = Suspects()
    for _ in range(4):
        suspects.blame(last(read_after="40"))
    assert suspects.pass_over == ["40", "40", "40"]


def test_a_sample_that_is_left_out_is_not_counted_again() -> None:
    suspects = Suspects()
    for _ in range(4):
        suspects.blame(last("7"))
    assert suspects.avoid == ["7"]


def test_samples_without_positions_are_no_suspects() -> None:
    suspects = Suspects()
    assert [suspects.blame(last()) for _ in range(3)] == [None, None, None]


def test_what_is_remembered_is_bounded() -> None:
    suspects = Suspects()
    for number in range(5 * MAX_SET_ASIDE):
        suspects.blame(last(str(number)))
        assert len(suspects._deaths) <= MAX_SET_ASIDE + 2
    for number in range(2 * MAX_SET_ASIDE):
        suspects.blame(last(f"twice {number}"))
        suspects.blame(last(f"twice {number}"))
    assert len(suspects.avoid) == MAX_SET_ASIDE
    assert suspects.avoid[-1] == f"twice {2 * MAX_SET_ASIDE - 1}"


def test_the_page_tells_what_a_worker_was_at() -> None:
    page = ProgressPage.create()
    try:
        inference, capture = Reporter(page, Track.INFERENCE), Reporter(page, Track.CAPTURE)
        assert LastMoment.of(page) == LastMoment("idle", False, False, None, None)
        capture.at("")
        capture.begin(Stage.READ)
        assert LastMoment.of(page).read_after == ""
        capture.at("12")
        inference.at("11")
        inference.begin(Stage.INVOKE)
        found = LastMoment.of(page)
        assert (found.on_sample, found.working_on, found.read_after) == (True, "11", "12")
        assert found.doing == "reading the source, running the model"
        inference.begin(Stage.WAIT)
        capture.begin(Stage.WAIT)
        assert LastMoment.of(page) == LastMoment("idle", False, False, None, None)
    finally:
        page.close()


def moment(inference: Stage, control: Stage = Stage.IDLE) -> LastMoment:
    page = ProgressPage.create()
    try:
        page.enter(Track.CAPTURE, Stage.READ)
        page.enter(Track.INFERENCE, inference)
        page.enter(Track.CONTROL, control)
        return LastMoment.of(page)
    finally:
        page.close()


@pytest.mark.parametrize(
    ("stage", "model", "shadow"),
    [
        (Stage.PREPROCESS, True, False),
        (Stage.INVOKE, True, False),
        (Stage.DECODE, True, False),
        (Stage.CLOSE, True, False),
        (Stage.SHADOW, False, True),
        (Stage.BOTH_FAIL, False, False),
        (Stage.WAIT, False, False),
        (Stage.SEND, False, False),
    ],
)
def test_a_death_is_put_down_to_what_was_running(stage: Stage, *, model: bool, shadow: bool) -> None:
    last = moment(stage)
    crash = Death("killed by SIGABRT", "killed by SIGABRT", last)
    assert (crash.over_model, crash.over_shadow) == (model, shadow)
    # A hang is known to be that of one thread.
    hang = Death(f"hangs: {stage.words} for 9.0 s", "hung", last, hung=True)
    assert (hang.over_model, hang.over_shadow) == (model, shadow)
    elsewhere = Death("hangs: reading the source for 9.0 s", "hung", last, hung=True)
    assert (elsewhere.over_model, elsewhere.over_shadow) == (False, False)
    # The memory killer takes no notice of what a model does, but a shadow is memory that can be spared.
    killed = Death("killed by SIGKILL", "killed by SIGKILL", last, outside=True)
    assert (killed.over_model, killed.over_shadow) == (False, True)


@pytest.mark.parametrize("control", [Stage.LOAD, Stage.GOLDEN])
def test_while_another_model_is_loaded_that_one_is_to_blame(control: Stage) -> None:
    last = moment(Stage.INVOKE, control)
    assert last.loading
    assert not Death("killed by SIGABRT", "killed by SIGABRT", last).over_model


@pytest.mark.parametrize("position", ["", "7", "3:17:4711", "Bilder/Käse 1.jpg", "y" * 1000])
def test_positions_are_read_as_they_were_noted(position: str) -> None:
    page = ProgressPage.create()
    try:
        Reporter(page, Track.INFERENCE).at(position)
        assert [page.position(track) for track in Track] == [None, None, position]
        Reporter(page, Track.CAPTURE).at("z" * 1021)
        assert page.position(Track.INFERENCE) == position
        Reporter(page, Track.INFERENCE).at("x" * 1023)
        assert page.position(Track.INFERENCE) is None
        assert page.stage(Track.CONTROL) is Stage.IDLE
    finally:
        page.close()


def test_a_page_that_was_written_over_is_read_all_the_same() -> None:
    page = ProgressPage.create()
    try:
        page.bytes[:] = bytes([0xC3]) * len(page.bytes)
        found = LastMoment.of(page)
        assert (found.doing, found.on_sample, found.loading) == ("idle", False, False)
        assert find_hang(page, 10.0) is None
        assert page.position(Track.INFERENCE) == "\N{REPLACEMENT CHARACTER}" * 1022
    finally:
        page.close()
