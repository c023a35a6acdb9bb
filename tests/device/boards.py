"""Folders that look like /sys and /proc of real boards, as Linux lays them out: classes are links into the devices.

Paths and names are those of the boards' device trees and drivers: bcm2711 and bcm2712 with RP1 in the kernel of
Raspberry Pi OS, imx8mq-phanbell for the Dev Board. There is more in them than is read: what looks like a sensor of the
processor and is none has to be passed by.
"""

from collections.abc import Mapping
from pathlib import Path

# What stands in files; below a path that ends with a slash, there are more.
Tree = Mapping[str, str | Mapping[str, str]]

AGENT, WORKER = 812, 845

_PI_4_WIFI = "sys/devices/platform/soc/fe300000.mmcnr/mmc_host/mmc1/mmc1:0001/mmc1:0001:1"
_PI_5_WIFI = "sys/devices/platform/axi/1001100000.mmc/mmc_host/mmc1/mmc1:0001/mmc1:0001:1"

PI_4: Tree = {
    "sys/firmware/devicetree/base/model": "Raspberry Pi 4 Model B Rev 1.5\0",
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/virtual/thermal/thermal_zone0/": {
        "type": "cpu-thermal",
        "temp": "48199",
        "mode": "enabled",
        "policy": "step_wise",
        "trip_point_0_type": "critical",
        "trip_point_0_temp": "110000",
        "trip_point_0_hyst": "0",
        "hwmon0/name": "cpu_thermal",
        "hwmon0/temp1_input": "48199",
        "hwmon0/temp1_crit": "110000",
    },
    "sys/devices/platform/soc/soc:firmware/": {
        # Older kernels have it; newer ones than Linux 6.12 have not.
        "get_throttled": "50005",
        "raspberrypi-hwmon/hwmon/hwmon1/name": "rpi_volt",
        "raspberrypi-hwmon/hwmon/hwmon1/in0_lcrit_alarm": "0",
    },
    "sys/devices/platform/scb/fd580000.ethernet/net/eth0/": {
        "type": "1",
        "operstate": "up",
        "carrier": "1",
        "speed": "1000",
        "uevent": "INTERFACE=eth0\nIFINDEX=2",
        "statistics/rx_bytes": "184467",
        "statistics/tx_bytes": "92113",
    },
    f"{_PI_4_WIFI}/": {
        "ieee80211/phy0/name": "phy0",
        "net/wlan0/type": "1",
        "net/wlan0/operstate": "down",
        "net/wlan0/uevent": "DEVTYPE=wlan\nINTERFACE=wlan0\nIFINDEX=3",
        "net/wlan0/wireless/status": "0x0",
        "net/wlan0/statistics/rx_bytes": "0",
        "net/wlan0/statistics/tx_bytes": "0",
    },
    "sys/devices/virtual/net/": {
        "lo/type": "772",
        "lo/operstate": "unknown",
        "docker0/type": "1",
        "docker0/operstate": "up",
        "docker0/speed": "10000",
    },
    # A wireless mouse: its battery is not the board's.
    "sys/devices/pci0000:00/hid/power_supply/hidpp_battery_0/": {
        "type": "Battery",
        "scope": "Device",
        "capacity": "55",
        "status": "Discharging",
        "present": "1",
    },
    # An SD card, which says nothing of its age.
    "sys/devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/": {
        "type": "SD",
        "block/mmcblk0/mmcblk0p2/partition": "2",
        "block/mmcblk0/mmcblk0p2/stat": "    9712     4120   794826    48213     6310     8121   431216    71402"
        "        0    43112   119615        0        0        0        0        0        0",
    },
    "proc/": {
        "uptime": "86423.51 341002.11",
        "loadavg": "0.31 0.42 0.40 1/214 5123",
        "meminfo": "MemTotal:        3881876 kB\nMemFree:         2910448 kB\nMemAvailable:    3412020 kB\n"
        "Buffers:           42120 kB",
        "net/wireless": "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n"
        " face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22",
        f"{AGENT}/status": "Name:\tedge-agent\nVmPeak:\t  201332 kB\nVmRSS:\t   70124 kB\nRssAnon:\t   41000 kB",
        f"{AGENT}/smaps_rollup": "7f0-7ff ---p 00000000 00:00 0  [rollup]\nRss:  70124 kB\nPss:  61210 kB\n"
        "Pss_Dirty:  41000 kB",
        f"{WORKER}/status": "Name:\tedge-agent-worker\nVmRSS:\t   58012 kB",
        f"{WORKER}/smaps_rollup": "7f0-7ff ---p 00000000 00:00 0  [rollup]\nRss:  58012 kB\nPss:  47808 kB",
    },
}
PI_4_LINKS = {
    "proc/device-tree": "../sys/firmware/devicetree/base",
    "sys/class/thermal/thermal_zone0": "../../devices/virtual/thermal/thermal_zone0",
    "sys/class/hwmon/hwmon0": "../../devices/virtual/thermal/thermal_zone0/hwmon0",
    "sys/class/hwmon/hwmon1": "../../devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon1",
    "sys/class/net/eth0": "../../devices/platform/scb/fd580000.ethernet/net/eth0",
    "sys/devices/platform/scb/fd580000.ethernet/net/eth0/device": "../../../fd580000.ethernet",
    "sys/class/net/wlan0": "../../devices/platform/soc/fe300000.mmcnr/mmc_host/mmc1/mmc1:0001/mmc1:0001:1/net/wlan0",
    f"{_PI_4_WIFI}/net/wlan0/device": "../../../mmc1:0001:1",
    f"{_PI_4_WIFI}/net/wlan0/phy80211": ("../../ieee80211/phy0"),
    "sys/class/net/lo": "../../devices/virtual/net/lo",
    "sys/class/net/docker0": "../../devices/virtual/net/docker0",
    "sys/class/power_supply/hidpp_battery_0": "../../devices/pci0000:00/hid/power_supply/hidpp_battery_0",
    "sys/dev/block/179:2": (
        "../../devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2"
    ),
    "sys/devices/platform/emmc2bus/fe340000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/device": "../../../mmc0:aaaa",
}

# With the active cooler, an Edge TPU on the M.2 HAT, and a battery on I2C.
PI_5: Tree = {
    "sys/firmware/devicetree/base/model": "Raspberry Pi 5 Model B Rev 1.0\0",
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/virtual/thermal/": {
        "thermal_zone0/type": "cpu-thermal",
        "thermal_zone0/temp": "61600",
        "thermal_zone0/trip_point_0_type": "critical",
        "thermal_zone0/trip_point_0_temp": "110000",
        "thermal_zone0/trip_point_1_type": "active",
        "thermal_zone0/trip_point_1_temp": "75000",
        "thermal_zone0/trip_point_2_type": "active",
        "thermal_zone0/trip_point_2_temp": "67500",
        "thermal_zone0/trip_point_3_type": "active",
        "thermal_zone0/trip_point_3_temp": "60000",
        "thermal_zone0/trip_point_4_type": "active",
        "thermal_zone0/trip_point_4_temp": "50000",
        "thermal_zone0/hwmon0/name": "cpu_thermal",
        "thermal_zone0/hwmon0/temp1_input": "61600",
        "cooling_device0/type": "pwm-fan",
        "cooling_device0/cur_state": "2",
        "cooling_device0/max_state": "4",
    },
    "sys/devices/platform/axi/1000120000.pcie/1f000c8000.adc/hwmon/hwmon1/": {
        "name": "rp1_adc",
        "in1_input": "1468",
        "temp1_input": "55472",
    },
    "sys/devices/platform/cooling_fan/hwmon/hwmon2/": {"name": "pwmfan", "fan1_input": "2871", "pwm1": "125"},
    "sys/devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon3/": {
        "name": "rpi_volt",
        "in0_label": "core",  # since Linux 7.1
        "in0_input": "720",
        "in0_lcrit_alarm": "0",
    },
    "sys/devices/platform/axi/1000110000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/apex/apex_0/": {
        "status": "ALIVE",
        "temp": "52300",
        "trip_point0_temp": "84800",
        "trip_point1_temp": "89800",
        "trip_point2_temp": "94800",
    },
    "sys/devices/platform/axi/1000120000.pcie/1f00100000.ethernet/net/eth0/": {
        "type": "1",
        "operstate": "down",
        "speed": "-1",
        "uevent": "INTERFACE=eth0\nIFINDEX=2",
        "statistics/rx_bytes": "0",
        "statistics/tx_bytes": "0",
    },
    f"{_PI_5_WIFI}/": {
        "ieee80211/phy0/name": "phy0",
        "net/wlan0/type": "1",
        "net/wlan0/operstate": "up",
        "net/wlan0/uevent": "DEVTYPE=wlan\nINTERFACE=wlan0\nIFINDEX=3",
        "net/wlan0/statistics/rx_bytes": "7712031",
        "net/wlan0/statistics/tx_bytes": "1190034",
    },
    "sys/devices/platform/soc/usb/wwan0/": {
        "type": "65534",
        "operstate": "unknown",
        "uevent": "DEVTYPE=wwan\nINTERFACE=wwan0",
        "statistics/rx_bytes": "5120",
        "statistics/tx_bytes": "2048",
        "device/idVendor": "2c7c",
    },
    "sys/devices/platform/axi/1000120000.pcie/1f00074000.i2c/i2c-1/1-0036/power_supply/battery/": {
        "type": "Battery",
        "present": "1",
        "capacity": "81",
        "status": "Not charging",
        "voltage_now": "4062500",
    },
    "sys/devices/platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa/": {
        "type": "SD",
        "block/mmcblk0/mmcblk0p2/stat": "1 0 8 1 10 0 2000 3 0 4 5 0 0 0 0 0 0",
    },
    "proc/": {
        "uptime": "512.04 1980.61",
        "loadavg": "1.92 0.88 0.34 3/231 2210",
        "meminfo": "MemTotal:        8256448 kB\nMemFree:         6110256 kB\nMemAvailable:    7012352 kB",
        "net/wireless": "Inter-| sta-|   Quality        |   Discarded packets               | Missed | WE\n"
        " face | tus | link level noise |  nwid  crypt   frag  retry   misc | beacon | 22\n"
        " wlan0: 0000   52.  -58.  -256        0      0      0     12      0        0",
        f"{AGENT}/status": "VmRSS:\t   80128 kB",
        f"{AGENT}/smaps_rollup": "Rss:  80128 kB\nPss:  70016 kB",
    },
}
PI_5_LINKS = {
    "proc/device-tree": "../sys/firmware/devicetree/base",
    "sys/class/thermal/thermal_zone0": "../../devices/virtual/thermal/thermal_zone0",
    "sys/class/thermal/cooling_device0": "../../devices/virtual/thermal/cooling_device0",
    "sys/class/hwmon/hwmon0": "../../devices/virtual/thermal/thermal_zone0/hwmon0",
    "sys/class/hwmon/hwmon1": "../../devices/platform/axi/1000120000.pcie/1f000c8000.adc/hwmon/hwmon1",
    "sys/class/hwmon/hwmon2": "../../devices/platform/cooling_fan/hwmon/hwmon2",
    "sys/class/hwmon/hwmon3": "../../devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon3",
    "sys/class/apex/apex_0": (
        "../../devices/platform/axi/1000110000.pcie/pci0000:00/0000:00:00.0/0000:01:00.0/apex/apex_0"
    ),
    "sys/class/net/eth0": "../../devices/platform/axi/1000120000.pcie/1f00100000.ethernet/net/eth0",
    "sys/devices/platform/axi/1000120000.pcie/1f00100000.ethernet/net/eth0/device": "../../../1f00100000.ethernet",
    "sys/class/net/wlan0": "../../devices/platform/axi/1001100000.mmc/mmc_host/mmc1/mmc1:0001/mmc1:0001:1/net/wlan0",
    f"{_PI_5_WIFI}/net/wlan0/device": "../../../mmc1:0001:1",
    f"{_PI_5_WIFI}/net/wlan0/phy80211": ("../../ieee80211/phy0"),
    "sys/class/net/wwan0": "../../devices/platform/soc/usb/wwan0",
    "sys/class/power_supply/battery": (
        "../../devices/platform/axi/1000120000.pcie/1f00074000.i2c/i2c-1/1-0036/power_supply/battery"
    ),
    "sys/dev/block/179:2": "../../devices/platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2",
    "sys/devices/platform/axi/1000fff000.mmc/mmc_host/mmc0/mmc0:aaaa/block/mmcblk0/device": "../../../mmc0:aaaa",
}

DEV_BOARD: Tree = {
    "sys/firmware/devicetree/base/model": "Google i.MX8MQ Phanbell\0",
    "sys/devices/system/cpu/online": "0-3\n",
    "sys/devices/virtual/thermal/": {
        "thermal_zone0/type": "cpu-thermal",
        "thermal_zone0/temp": "57000",
        "thermal_zone0/trip_point_0_type": "passive",
        "thermal_zone0/trip_point_0_temp": "75000",
        "thermal_zone0/trip_point_1_type": "passive",
        "thermal_zone0/trip_point_1_temp": "80000",
        "thermal_zone0/trip_point_2_type": "critical",
        "thermal_zone0/trip_point_2_temp": "90000",
        "thermal_zone0/trip_point_3_type": "active",
        "thermal_zone0/trip_point_3_temp": "65000",
        # They are hotter than the processor, and not the processor.
        "thermal_zone1/type": "gpu-thermal",
        "thermal_zone1/temp": "59000",
        "thermal_zone2/type": "vpu-thermal",
        "thermal_zone2/temp": "58000",
        "cooling_device0/type": "gpio-fan",
        "cooling_device0/cur_state": "1",
        "cooling_device0/max_state": "1",
        "cooling_device1/type": "cpufreq-cpu0",
        "cooling_device1/cur_state": "0",
        "cooling_device1/max_state": "2",
    },
    "sys/devices/platform/gpio-fan/hwmon/hwmon0/": {"name": "gpio_fan", "fan1_input": "8600"},
    "sys/devices/platform/soc@0/33c00000.pcie/pci0001:00/0001:00:00.0/0001:01:00.0/apex/apex_0/": {
        "status": "ALIVE",
        "temp": "61050",
        "trip_point0_temp": "84800",
    },
    "sys/devices/platform/soc@0/30800000.bus/30be0000.ethernet/net/eth0/": {
        "type": "1",
        "operstate": "up",
        "speed": "100",
        "uevent": "INTERFACE=eth0\nIFINDEX=2",
        "statistics/rx_bytes": "40961",
        "statistics/tx_bytes": "10244",
    },
    "sys/devices/platform/soc@0/30800000.bus/30a20000.i2c/i2c-0/0-0052/power_supply/tcpm-source-psy-0-0052/": {
        "type": "USB",
        "online": "1",
        "usb_type": "C [PD] PD_PPS",
    },
    # An eMMC tells how worn it is.
    "sys/devices/platform/soc@0/30800000.bus/30b40000.mmc/mmc_host/mmc0/mmc0:0001/": {
        "type": "MMC",
        "life_time": "0x01 0x02",
        "pre_eol_info": "0x01",
        "block/mmcblk0/mmcblk0p2/stat": "100 0 800 10 2000 0 120000 300 0 400 500",
    },
    "proc/": {
        "uptime": "3021.77 10988.12",
        "loadavg": "0.10 0.22 0.19 1/160 990",
        "meminfo": "MemTotal:        1000924 kB\nMemFree:          402108 kB\nMemAvailable:     611120 kB",
        f"{AGENT}/status": "VmRSS:\t   60000 kB",
    },
}
DEV_BOARD_LINKS = {
    "proc/device-tree": "../sys/firmware/devicetree/base",
    **{
        f"sys/class/thermal/{name}": f"../../devices/virtual/thermal/{name}"
        for name in ("thermal_zone0", "thermal_zone1", "thermal_zone2", "cooling_device0", "cooling_device1")
    },
    "sys/class/hwmon/hwmon0": "../../devices/platform/gpio-fan/hwmon/hwmon0",
    "sys/class/apex/apex_0": (
        "../../devices/platform/soc@0/33c00000.pcie/pci0001:00/0001:00:00.0/0001:01:00.0/apex/apex_0"
    ),
    "sys/class/net/eth0": "../../devices/platform/soc@0/30800000.bus/30be0000.ethernet/net/eth0",
    "sys/devices/platform/soc@0/30800000.bus/30be0000.ethernet/net/eth0/device": "../../../30be0000.ethernet",
    "sys/class/power_supply/tcpm-source-psy-0-0052": (
        "../../devices/platform/soc@0/30800000.bus/30a20000.i2c/i2c-0/0-0052/power_supply/tcpm-source-psy-0-0052"
    ),
    "sys/dev/block/179:2": (
        "../../devices/platform/soc@0/30800000.bus/30b40000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/mmcblk0p2"
    ),
    "sys/devices/platform/soc@0/30800000.bus/30b40000.mmc/mmc_host/mmc0/mmc0:0001/block/mmcblk0/device": (
        "../../../mmc0:0001"
    ),
}


class Board:
    """A board under the folder `root`."""

    def __init__(self, root: Path, tree: Tree, links: Mapping[str, str]) -> None:
        self.root = root
        for path, content in tree.items():
            if isinstance(content, str):
                self.set(path, content)
            else:
                for name, text in content.items():
                    self.set(f"{path}{name}", f"{text}\n")
        for path, target in links.items():
            link = root / path
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)
            assert link.exists(), f"{path} leads nowhere"

    @classmethod
    def pi_4(cls, root: Path) -> "Board":
        return cls(root, PI_4, PI_4_LINKS)

    @classmethod
    def pi_5(cls, root: Path) -> "Board":
        return cls(root, PI_5, PI_5_LINKS)

    @classmethod
    def dev_board(cls, root: Path) -> "Board":
        return cls(root, DEV_BOARD, DEV_BOARD_LINKS)

    def set(self, path: str, text: str) -> None:
        """Let a file say something else."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def remove(self, path: str) -> None:
        """Take a file or a link away."""
        (self.root / path).unlink()
