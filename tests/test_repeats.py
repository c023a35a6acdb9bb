import pytest

from edge_agent.repeats import Repeats


class Hour:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Hour:
    return Hour()


def test_the_first_passes_and_the_next_that_may_pass_tells_of_those_between(clock: Hour) -> None:
    repeats = Repeats(clock)
    assert repeats.held_back("a", 60) == 0
    clock.now = 59
    assert [repeats.held_back("a", 60) for _ in range(3)] == [None] * 3
    assert repeats.held_back("b", 60) == 0
    clock.now = 60
    assert repeats.held_back("a", 60) == 3
    clock.now = 120
    assert repeats.held_back("a", 60) == 0


def test_what_it_remembers_is_bounded(clock: Hour) -> None:
    repeats = Repeats(clock)
    assert [repeats.held_back(n, 60) for n in range(1000)] == [0] * 1000
    assert len(repeats._shown) == 256
    assert repeats.held_back(999, 60) is None
    assert repeats.held_back(0, 60) == 0
