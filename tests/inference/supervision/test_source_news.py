"""What becomes of what the worker says of its source."""

from edge_agent.inference.protocol import SourceState
from edge_agent.inference.supervision.source_news import SAME_TROUBLE, SourceNews
from edge_agent.inference.supervision.status import WorkerStatus

LOOSE = SourceState("trouble", "the cable is loose")


class Desk:
    def __init__(self) -> None:
        self.now = 1000.0
        self.health: list[tuple[str, str, str]] = []
        self.status = WorkerStatus()
        self.ends: list[bool] = []
        self.news = SourceNews(
            self.status, on_health=self._on_health, on_end=lambda: self.ends.append(True), clock=lambda: self.now
        )

    def _on_health(self, component: str, state: str, detail: str, *, exit_status: str = "", stage: str = "") -> None:
        assert (exit_status, stage) == ("", "")
        self.health.append((component, state, detail))


def test_a_trouble_is_told_once_however_often_the_source_is_opened_again() -> None:
    desk = Desk()
    for _ in range(3):
        desk.news.take(LOOSE)
        desk.now += SAME_TROUBLE + 1
    assert desk.health == [("source", "trouble", "the cable is loose")]
    assert desk.status.source == "trouble: the cable is loose"


def test_a_source_that_comes_and_goes_makes_no_flood_of_events() -> None:
    desk = Desk()
    for _ in range(100):
        desk.news.take(LOOSE)
        desk.news.well()
        desk.now += SAME_TROUBLE / 50 + 0.01
    assert len(desk.health) == 2
    # Another trouble is told at once.
    desk.news.take(SourceState("trouble", "no such camera"))
    assert desk.health[-1] == ("source", "trouble", "no such camera")


def test_what_is_left_out_is_counted_and_the_end_is_told() -> None:
    desk = Desk()
    desk.news.take(SourceState("skipped", "row 7 has 3 values", 2))
    desk.news.take(SourceState("set_aside", "0:24", 5))
    assert (desk.status.skipped, desk.status.set_aside, desk.ends) == (2, 5, [])
    desk.news.take(SourceState("ended", "all samples were read"))
    assert (desk.status.source, desk.ends) == ("ended: all samples were read", [True])
    assert desk.health == []
