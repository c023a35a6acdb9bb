"""Time under a test's control."""


class Clock:
    """Seconds that pass only while somebody sleeps, or when a test says so.

    Give it to whatever takes a clock: `Pacer(rate, clock=clock, sleep=clock.sleep)`. `naps` are the sleeps so far.
    """

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self.naps: list[float] = []

    def __call__(self) -> float:
        """Return the time, as `time.monotonic` does."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """Let the time pass at once, as `time.sleep` does slowly."""
        self.naps.append(seconds)
        self.now += seconds
