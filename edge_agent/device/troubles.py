"""Which readings are trouble, and when it is over.

Trouble begins with the first reading that shows it. It is over when the readings have been clearly better for a while:
a board that hovers about a limit is told of once, not every ten seconds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import UNSET

from edge_agent.device.sensors import Heat, Readings
from edge_agent.device.storage import FileSystem
from edge_agent.health import Battery
from edge_agent.settings.units import approximate_size, format_duration

# What each component can be; "ok" is said when trouble is over, and never before there was any.
STATES = {
    "power": ("undervoltage", "ok"),
    "temperature": ("high", "ok"),
    "disk": ("low", "read_only", "ok"),
    "battery": ("low", "ok"),
}
# Voltage that drops under load drops again soon.
CALM_POWER_S = 300.0
CALM_S = 60.0
COOLER_C = 5.0
# Nearly full: less than a twentieth, but on a large disk only what really is little.
LOW_SHARE, LOW_MOST_BYTES = 0.05, 1_000_000_000
ENOUGH = 1.25
LOW_CHARGE_PERCENT, ENOUGH_CHARGE_PERCENT = 20, 25


@dataclass(frozen=True)
class Change:
    """A component is in another state from now on. `detail` is for a person, with what to do."""

    component: str
    state: str
    detail: str


@dataclass
class _Latch:
    """Holds from the first bad reading until there has been no reading for `calm` seconds that was not good."""

    calm: float
    holds: bool = False
    _good_since: float | None = None

    def take(self, *, bad: bool, good: bool, now: float) -> bool:
        if bad:
            self.holds = True
        if not good:
            self._good_since = None
        elif self._good_since is None:
            self._good_since = now
        if self._good_since is not None and now - self._good_since >= self.calm:
            self.holds = False
        return self.holds


@dataclass
class _Latches:
    power: _Latch = field(default_factory=lambda: _Latch(CALM_POWER_S))
    cpu: _Latch = field(default_factory=lambda: _Latch(CALM_S))
    edgetpu: _Latch = field(default_factory=lambda: _Latch(CALM_S))
    disk: _Latch = field(default_factory=lambda: _Latch(CALM_S))
    battery: _Latch = field(default_factory=lambda: _Latch(CALM_S))


class Troubles:
    """Judges one reading after the other. `undervoltages` is how often the voltage was seen to drop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.undervoltages = 0
        self._clock = clock
        self._latches = _Latches()
        self._undervoltage = False
        self._states = dict.fromkeys(STATES, "ok")
        self._judged: dict[str, tuple[str, str]] = {}  # state and sentence
        self._hot: dict[str, str] = {}

    @property
    def problems(self) -> list[str]:
        """Return what is wrong now and what to do, a sentence each, in the order of STATES."""
        judged = [self._judged[component] for component in STATES if component in self._judged]
        return [sentence for state, sentence in judged if state != "ok"]

    def take(self, readings: Readings) -> list[Change]:
        """Judge the readings; returns what has changed by them. A sensor that does not answer changes nothing."""
        now = self._clock()
        if readings.undervoltage is not None:
            self._judge_power(now, low=readings.undervoltage)
        self._judge_heat(now, readings.cpu, readings.edgetpu)
        if readings.disk is not None:
            self._judge_disk(now, readings.disk)
        if readings.battery is not None:
            self._judge_battery(now, readings.battery)
        return self._changes()

    def _changes(self) -> list[Change]:
        changes = []
        for component, (state, sentence) in self._judged.items():
            if state != self._states[component]:
                self._states[component] = state
                changes.append(Change(component, state, sentence))
        return changes

    def _judge(self, component: str, state: str, sentence: str) -> None:
        self._judged[component] = (state, sentence)

    def _judge_power(self, now: float, *, low: bool) -> None:
        if low and not self._undervoltage:
            self.undervoltages += 1
        self._undervoltage = low
        if self._latches.power.take(bad=low, good=not low, now=now):
            self._judge(
                "power",
                "undervoltage",
                f"the supply voltage is too low (seen {_times(self.undervoltages)} since the start), so the board "
                "slows down, and its disk and USB devices may fail; use the power supply made for it and a short cable",
            )
        else:
            self._judge("power", "ok", f"the supply voltage has been right for {format_duration(CALM_POWER_S)}")

    def _judge_heat(self, now: float, cpu: Heat | None, edgetpu: Heat | None) -> None:
        for part, latch, heat in (
            ("processor", self._latches.cpu, cpu),
            ("Edge TPU", self._latches.edgetpu, edgetpu),
        ):
            if heat is None or heat.limit is None:
                continue
            degrees, limit = heat.celsius, heat.limit
            if latch.take(bad=degrees >= limit, good=degrees <= limit - COOLER_C, now=now):
                self._hot[part] = f"the {part} is at {degrees:.0f} °C, and slows down from {limit:.0f} °C on"
            else:
                self._hot.pop(part, None)
        if self._hot:
            self._judge("temperature", "high", f"{'; '.join(self._hot.values())}; it needs better cooling")
        else:
            self._judge("temperature", "ok", f"it has been cooler for {format_duration(CALM_S)}")

    def _judge_disk(self, now: float, disk: FileSystem) -> None:
        low = min(LOW_SHARE * disk.total, LOW_MOST_BYTES)
        scarce = self._latches.disk.take(bad=disk.free < low, good=disk.free >= ENOUGH * low, now=now)
        free = f"{approximate_size(disk.free)} of {approximate_size(disk.total)}"
        if disk.read_only:
            self._judge(
                "disk",
                "read_only",
                "the disk cannot be written to, most likely after an error: see dmesg; replace a card that is worn out",
            )
        elif scarce:
            self._judge(
                "disk",
                "low",
                f"the disk is nearly full: {free} are free; delete what is not needed, or lower max_size in "
                "[telemetry.queue]",
            )
        else:
            self._judge("disk", "ok", f"{free} are free on the disk")

    def _judge_battery(self, now: float, battery: Battery) -> None:
        charge = battery.charge_percent
        runs_down = battery.status in (UNSET, "Discharging")
        bad = runs_down and charge < LOW_CHARGE_PERCENT
        good = not runs_down or charge >= ENOUGH_CHARGE_PERCENT
        if self._latches.battery.take(bad=bad, good=good, now=now):
            self._judge("battery", "low", f"the battery is nearly empty: {charge} %; bring the mains supply back")
        else:
            self._judge("battery", "ok", f"the battery has {charge} %")


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
