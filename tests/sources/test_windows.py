"""Windows over a stream that comes in pieces, against slices of the whole."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sources.windows import Windows


@given(st.lists(st.integers(1, 12), max_size=8), st.integers(1, 6), st.integers(1, 9))
def test_they_are_the_slices_of_the_whole(pieces: list[int], window: int, step: int) -> None:
    whole = np.arange(2 * sum(pieces), dtype=np.float32).reshape(-1, 2)
    times = np.arange(len(whole), dtype=np.int64)
    windows, found, begin = Windows(window, step), [], 0
    for piece in pieces:
        windows.add(whole[begin : begin + piece], times[begin : begin + piece])
        begin += piece
        while (taken := windows.take()) is not None:
            found.append((taken[0].tolist(), taken[1]))
    starts = range(0, len(whole) - window + 1, step)
    assert found == [(whole[start : start + window].tolist(), start + window - 1) for start in starts]
