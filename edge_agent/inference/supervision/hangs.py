"""When a worker is taken for hung: what each of its threads may take how long for."""

import time

from edge_agent.inference.progress import ProgressPage, Stage, Track

# Importing the runtime from a slow SD card, and opening an Edge TPU that needs its firmware, take long.
START_DEADLINE = 120.0
LOAD_DEADLINE = 90.0
OPEN_DEADLINE = 60.0
# libedgetpu waits for transfers under way; one that is stuck never returns.
CLOSE_DEADLINE = 5.0
# A driver or a library may wait in vain for what it has started, or for the other end of a stream.
SHUT_DEADLINE = 20.0

# The worker's main thread has nothing else to do than to obey.
ANSWER_DEADLINE = 30.0
# Longer than the longest pause before a source is opened again (capture.REOPEN_DELAYS).
WAIT_DEADLINE = 60.0

SAMPLE_STAGES = (Stage.PREPROCESS, Stage.INVOKE, Stage.DECODE)


def find_hang(page: ProgressPage, deadline: float, asked_ns: int | None = None) -> str | None:
    """Say what hangs, if something does. `deadline` is in seconds, for one reading and for one run of the model.

    `asked_ns` is the CLOCK_MONOTONIC at which the agent has asked for a model that the worker still owes an answer for.
    """
    limits = (
        (Track.CONTROL, (Stage.START,), START_DEADLINE),
        (Track.CONTROL, (Stage.LOAD,), LOAD_DEADLINE),
        (Track.CONTROL, (Stage.GOLDEN,), deadline),
        (Track.CONTROL, (Stage.CLOSE,), CLOSE_DEADLINE),
        (Track.CAPTURE, (Stage.OPEN,), OPEN_DEADLINE),
        (Track.CAPTURE, (Stage.READ,), deadline),
        (Track.CAPTURE, (Stage.SHUT,), SHUT_DEADLINE),
        (Track.INFERENCE, (*SAMPLE_STAGES, Stage.SHADOW), deadline),
        (Track.INFERENCE, (Stage.CLOSE,), CLOSE_DEADLINE),
    )
    now = time.monotonic_ns()
    # Opening an Edge TPU holds the GIL for seconds: the other threads stand still through no fault of their own.
    patience = LOAD_DEADLINE if page.stage(Track.CONTROL) is Stage.LOAD else 0.0
    for track, stages, limit in limits:
        stage = page.stage(track)
        seconds = page.seconds_in_stage(track, now)
        if stage in stages and seconds > max(limit, patience):
            return f"hangs: {stage.words} for {seconds:.1f} s"
    return _find_standstill(page, now, patience) or _find_deafness(page, now, asked_ns)


def _find_standstill(page: ProgressPage, now: int, patience: float) -> str | None:
    """Two threads that both wait have nobody to wait for. So it is with a process that somebody has stopped."""
    waiting = [
        page.seconds_in_stage(track, now)
        for track in (Track.CAPTURE, Track.INFERENCE)
        if page.stage(track) is Stage.WAIT
    ]
    if len(waiting) == 2 and min(waiting) > max(WAIT_DEADLINE, patience):  # noqa: PLR2004  both
        return f"hangs: everything waits for {min(waiting):.1f} s"
    return None


def _find_deafness(page: ProgressPage, now: int, asked_ns: int | None) -> str | None:
    idle = page.seconds_in_stage(Track.CONTROL, now)
    if asked_ns is None or page.stage(Track.CONTROL) is not Stage.IDLE:
        return None
    seconds = min(idle, (now - asked_ns) / 1e9)
    return f"hangs: asked for a model {seconds:.1f} s ago" if seconds > ANSWER_DEADLINE else None
