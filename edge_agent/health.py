"""What a regular health event tells of the board and the queue. With units in the names; what is unknown is absent."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType


class Dropped(msgspec.Struct, frozen=True):
    """Events that the queue has given up since the agent's start; loss events tell when."""

    cause: str
    count: int


class QueueHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What waits to be sent, most important first."""

    alarms: int
    notices: Annotated[int, Meta(description="events about models and losses")]
    health: int
    results: Annotated[int, Meta(description="results and summaries")]
    size_bytes: Annotated[int, Meta(description="what all of them take, compressed")]
    oldest_s: Annotated[float | UnsetType, Meta(description="how long the oldest of them has waited")] = UNSET
    dropped: list[Dropped] | UnsetType = UNSET


Link = Literal["ethernet", "wifi", "cellular", "other"]


class NetworkInterface(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A network interface that is hardware. Bytes are since the boot."""

    name: str
    type: Link
    up: bool
    speed_mbps: Annotated[int | UnsetType, Meta(description="of an Ethernet link, in Mbit/s")] = UNSET
    signal_dbm: Annotated[int | UnsetType, Meta(description="of Wi-Fi: -50 is good, -80 hardly enough")] = UNSET
    received_bytes: int | UnsetType = UNSET
    sent_bytes: int | UnsetType = UNSET


class Battery(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The battery that the device runs on. `status` is the kernel's word: Charging, Discharging, Full, Not charging."""

    charge_percent: int
    status: str | UnsetType = UNSET


class DeviceHealth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the board is. What it does not have, or does not tell, is absent."""

    board: Annotated[str | UnsetType, Meta(description="its name, as the firmware has it")] = UNSET
    uptime_s: Annotated[float | UnsetType, Meta(description="since the boot")] = UNSET
    load_5m: Annotated[float | UnsetType, Meta(description="processes that want to run, mean of 5 minutes")] = UNSET
    processors: int | UnsetType = UNSET
    cpu_temperature_c: Annotated[float | UnsetType, Meta(description="of the processor")] = UNSET
    edgetpu_temperature_c: Annotated[
        float | UnsetType, Meta(description="of the Edge TPU on PCIe, of several the hottest; on USB it has no sensor")
    ] = UNSET
    throttled: Annotated[
        bool | UnsetType, Meta(description="whether Linux slows the processor down now; a Raspberry Pi does not tell")
    ] = UNSET
    undervoltage: Annotated[bool | UnsetType, Meta(description="whether the supply voltage is too low now")] = UNSET
    undervoltages: Annotated[
        int | UnsetType, Meta(description="times that it was seen to become so since the agent's start")
    ] = UNSET
    memory_total_bytes: int | UnsetType = UNSET
    memory_available_bytes: Annotated[
        int | UnsetType, Meta(description="what programs could still have without swapping")
    ] = UNSET
    agent_rss_bytes: Annotated[int | UnsetType, Meta(description="memory of the agent, shared pages included")] = UNSET
    worker_rss_bytes: Annotated[int | UnsetType, Meta(description="the same of the worker")] = UNSET
    agent_pss_bytes: Annotated[
        int | UnsetType, Meta(description="its share of the memory in use; in one event every 5 minutes")
    ] = UNSET
    worker_pss_bytes: Annotated[int | UnsetType, Meta(description="the same of the worker")] = UNSET
    disk_total_bytes: Annotated[int | UnsetType, Meta(description="of the file system with the state")] = UNSET
    disk_free_bytes: int | UnsetType = UNSET
    disk_written_bytes: Annotated[
        int | UnsetType, Meta(description="by all programs to that partition since the boot")
    ] = UNSET
    disk_life_used_percent: Annotated[
        int | UnsetType, Meta(description="how worn an eMMC is, in steps of 10, by its own account")
    ] = UNSET
    battery: Battery | UnsetType = UNSET
    network: list[NetworkInterface] | UnsetType = UNSET
