"""What is done about an Edge TPU that fails, one step after the other.

The worker closes the device in order where it can, and is killed where it cannot; a fresh one opens it again. That is
the first step, and the supervisor's. When it was not enough the device is reset (USB only), and when that was not
enough, either, it is left alone: the CPU takes over if it has a model, somebody is told to replug the device, and it is
tried again after a while, ever more rarely. A device that is plugged in anew begins afresh.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from edge_agent.inference.accelerators.devices import Device, is_edgetpu_model, list_devices, matching
from edge_agent.inference.accelerators.reset import ResetFailed, reset_usb
from edge_agent.inference.protocol import Configure
from edge_agent.inference.runtime.choice import RuntimeChoice
from edge_agent.inference.supervision.deaths import Death
from edge_agent.inference.supervision.guard import OnHealth, Plan
from edge_agent.records import LoadReport, ModelFile

log = structlog.get_logger()

RESET_AFTER = 2
GIVE_UP_AFTER = 3
# A device that has worked for so long since it failed is well again.
FORGIVE_AFTER = 300.0
FIRST_PAUSE, LAST_PAUSE = 60.0, 1800.0
# So long after it was last touched, a device that goes and comes does so for another reason.
OWN_DOING = 20.0
# The kernel gives a reset up by itself, unless the USB controller hangs: then a thread waits on, and no worker does.
RESET_DEADLINE = 30.0
# After a reset it is waited for so long.
COME_BACK = 5.0
_LOOK_EVERY = 0.25


@dataclass
class RecoveryCounts:
    """Since the start of the agent."""

    failures: int = 0
    resets: int = 0
    fallbacks: int = 0
    returns: int = 0


class Recovery:
    """Looks after the Edge TPU on behalf of the supervisor (its `Guard`).

    `on_health` gets what somebody should know, `on_alarm` what a person has to do. `devices` lists those that the
    kernel shows; it blocks on sysfs, and `reset` on the device.
    """

    def __init__(
        self,
        runtimes: RuntimeChoice,
        *,
        on_health: OnHealth,
        on_alarm: Callable[[str], None],
        devices: Callable[[], Sequence[Device]] = list_devices,
        reset: Callable[[str], None] = reset_usb,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.counts = RecoveryCounts()
        self.degraded = ""
        self._runtimes = runtimes
        self._on_health = on_health
        self._on_alarm = on_alarm
        self._devices = devices
        self._reset = reset
        self._clock = clock
        self._sleep = sleep
        self._planning = asyncio.Lock()
        self._strikes = 0
        self._well_since: float | None = None
        self._reset_due = False
        self._failed_to_open = ""
        self._failed_unseen = False
        self._has_run = False
        self._suspect = ""
        self._device: Device | None = None
        self._stuck = ""
        self._pause = FIRST_PAUSE
        self._touched = 0.0
        self._try_again_at = 0.0

    # -- the supervisor's side

    async def plan(self, model: ModelFile, wanted: Configure, *, device_open: bool) -> Plan:
        """Say how a model is to be loaded. May take as long as a reset and a probe of the runtime."""
        if wanted.model.accelerator == "cpu":
            self.degraded = ""
            return Plan()
        compiled = await _is_compiled(model)
        if not compiled or device_open:
            return Plan(compiled=compiled, beside=device_open)
        async with self._planning:
            return await self._plan(model, wanted)

    async def _plan(self, model: ModelFile, wanted: Configure) -> Plan:
        there = await asyncio.to_thread(self._look)
        usable = _usable(wanted.model.device, there)
        if usable:
            self._device = next((device for device in usable if device.name == self._suspect), usable[0])
            if self._failed_to_open:
                self._strike(self._failed_to_open)
        self._failed_to_open = ""
        if avoid := self.avoid():
            return Plan(avoid_edgetpu=avoid, compiled=True)
        if there and not usable:
            return Plan(compiled=True)
        self._touched = self._clock()
        if self._reset_due and self._device is not None and usable:
            await self._reset_device(self._device, wanted.model.device)
        choice = await self._runtimes.choose(
            wanted.runtime,
            model.path,
            wanted.model.device,
            wanted.model.device_options,
            # Where the kernel shows no device, as in a container, there may be one. That it failed speaks for it.
            may_try=bool(usable) or self._failed_unseen,
        )
        problem = choice.problem
        if choice.hung:
            # The worker would hang as long, and can run the model for the CPU meanwhile.
            self._touched, self._failed_unseen = self._clock(), False
            self._strike(choice.trouble)
            problem = self.avoid() or f"the Edge TPU hangs: {choice.trouble}"
        return Plan(choice.runtime, problem, compiled=True, looks_well=bool(usable))

    def loaded(self, plan: Plan, report: LoadReport) -> None:
        """Take note of how a model was loaded."""
        if report.accelerator == "edgetpu" and report.accepted:
            if self._well_since is None:
                self._well_since = self._clock()
            if self.degraded and self._has_run:
                self.counts.returns += 1
                log.info("the Edge TPU has taken over again", device=report.device)
                self._on_health("accelerator", "ok", f"{report.device or 'the Edge TPU'} has taken over again")
            self.degraded = self._failed_to_open = ""
            self._failed_unseen = False
            self._has_run = True
            return
        if not report.accepted and (plan.beside or not report.about_device):
            return  # the fault of this model: the one before it goes on where it is
        reason = (report.degraded or "") if report.accepted else report.reason
        if not reason or not plan.compiled:
            self.degraded = ""
            return
        if plan.opens_device:
            self._failed_to_open = reason if plan.looks_well else ""
            self._failed_unseen = not plan.looks_well and report.about_device
        if report.accepted and not self.degraded:
            self.counts.fallbacks += 1
            self._has_run = True
            log.warning("the CPU has taken over from the Edge TPU", reason=reason)
            self._on_health("accelerator", "degraded", reason)
        self.degraded = reason

    def died(self, death: Death, in_use: LoadReport | None, loading: Plan | None) -> None:
        """Take note of the end of a worker."""
        on_device = in_use is not None and in_use.accelerator == "edgetpu"
        # What is loaded beside a model that works is itself to blame.
        guilty = loading.opens_device if loading is not None else on_device and death.last.on_sample
        if guilty and not death.outside:
            self._suspect = (in_use.device if in_use is not None else None) or ""
            self._touched = self._clock()
            # What hangs would hang again as it is tried.
            self._failed_unseen = loading is not None and not loading.looks_well and not death.hung
            self._strike(death.cause)

    def acquit(self, deaths: int) -> None:
        """Take back so many of the last deaths: they were a sample's doing, as the device works without it."""
        self._strikes = max(0, self._strikes - deaths)
        self._reset_due = self._reset_due and self._strikes >= RESET_AFTER

    # -- the watch's side

    def avoid(self) -> str:
        """Why the Edge TPU must not be touched now, or empty."""
        return self._stuck if self._stuck and self._clock() < self._try_again_at else ""

    def usable(self, wanted: str) -> list[Device]:
        """The devices that could be opened now, as the kernel shows them. Blocks on sysfs."""
        return _usable(wanted, self._look())

    def _look(self) -> Sequence[Device]:
        try:
            return self._devices()
        except OSError as error:  # too many open files, for instance: another time it may work
            log.warning("devices cannot be looked for", reason=str(error))
            return []

    def appeared(self) -> None:
        """A device has come. Unless that is our own doing, a hand has plugged it in, and all begins afresh.

        A reset, and the firmware that a device gets when it is opened, make it go and come as well.
        """
        if self.avoid() and self._clock() - self._touched > OWN_DOING:
            self.begin_afresh()

    def begin_afresh(self) -> None:
        """Forget what has failed: somebody may have mended it."""
        self._strikes, self._reset_due, self._stuck, self._pause = 0, False, "", FIRST_PAUSE
        self._failed_to_open = ""

    # -- the steps

    def _strike(self, cause: str) -> None:
        if self._well_since is not None and self._clock() - self._well_since > FORGIVE_AFTER:
            self.begin_afresh()
        self._well_since = None
        self._strikes += 1
        self.counts.failures += 1
        if self._strikes >= GIVE_UP_AFTER:
            self._give_up(cause)
        elif self._strikes >= RESET_AFTER:
            self._reset_due = True

    def _give_up(self, cause: str) -> None:
        device = self._device
        name = device.name if device else "the Edge TPU"
        remedy = "switch the machine off and on" if device and device.bus == "pci" else "unplug it and plug it in again"
        told = bool(self._stuck)
        self._stuck = f"{name} fails again and again: {remedy} ({cause})"
        self._try_again_at = self._clock() + self._pause
        self._pause = min(self._pause * 2, LAST_PAUSE)
        if told:
            return
        log.error("the Edge TPU is left alone", device=name, cause=cause, remedy=remedy)
        self._on_health("accelerator", "stuck", self._stuck)
        self._on_alarm(self._stuck)

    async def _reset_device(self, device: Device, wanted: str) -> None:
        self._reset_due = False
        if device.bus != "usb":
            return
        if failure := await self._try_reset(device.name):
            log.warning("the Edge TPU could not be reset", device=device.name, reason=failure)
            self._on_health("accelerator", "reset_failed", failure)
            return
        self.counts.resets += 1
        log.warning("the Edge TPU was reset", device=device.name)
        self._on_health("accelerator", "reset", device.name)
        # It comes back as another device, which udev has to give to its group again.
        for _ in range(int(COME_BACK / _LOOK_EVERY)):
            if await asyncio.to_thread(self.usable, wanted):
                return
            await self._sleep(_LOOK_EVERY)

    async def _try_reset(self, name: str) -> str:
        """Reset the device; returns why that was not possible, or an empty string."""
        try:
            async with asyncio.timeout(RESET_DEADLINE):
                await asyncio.to_thread(self._reset, name)
        except ResetFailed as error:
            return str(error)
        except TimeoutError:
            return f"{name}: the USB reset has not come back after {RESET_DEADLINE:g} s"
        return ""


def _usable(wanted: str, devices: Sequence[Device]) -> list[Device]:
    return [device for device in matching(wanted, devices) if device.usable]


async def _is_compiled(model: ModelFile) -> bool:
    try:
        return await asyncio.to_thread(is_edgetpu_model, model.path)
    except OSError:
        return False  # the worker says what is wrong with the file
