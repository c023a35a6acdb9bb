"""What systemd makes of our unit: what the service can do and cannot, and how it is kept alive."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.servers.proxy import Proxy
from tests.servers.pubsub import PubSubServer
from tests.system.conftest import ROOT
from tests.system.machine import Machine

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

SANDBOX = ROOT / "docs/decisions/sandbox.md"
TOPIC = "projects/project/topics/events"
CREDENTIAL = "/run/credentials/edge-agent.service/google-credentials.json"
CREDSTORE = "/etc/credstore/edge-agent.google-credentials.json"
SETTINGS = """
[source]
plugin = "vibration"
rate = 50
normal = "1s"
warning = "1s"
failure = "1s"

[model]
url = "/usr/lib/edge-agent/edge_agent/demo/vibration_classifier.tflite"

[telemetry]
sink = "{sink}"

[[actions]]
name = "probe"
when = {{ label = "failure" }}
run = ["/usr/local/bin/probe"]
"""
EVENTS = "/var/log/edge-agent/events.jsonl"
PROBED = "/var/log/edge-agent/probed.json"
# What an action's command meets: it runs in the same sandbox as everything else.
PROBE = f"""#!/usr/bin/python3
import ctypes, errno, json, os, socket, time
from pathlib import Path

def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def adjtimex():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.adjtimex(ctypes.create_string_buffer(512)) < 0:
        raise OSError(ctypes.get_errno(), "adjtimex")

folders = ["/etc", "/srv", "/usr/local/bin", "/var/lib", "/run", "/boot", "/sys/kernel", "/proc/sys/kernel"]
folders += ["/tmp", "/var/tmp", "/dev/shm", "/run/edge-agent", "/var/lib/edge-agent", "/var/log/edge-agent"]
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
found = {{
    "write": {{folder: attempt(Path(folder, "probe").touch) for folder in folders}},
    "read": {{path: attempt(lambda: os.listdir(path)) for path in ("/home", "/root", "/srv")}},
    "capabilities": status["CapBnd"].strip() + status["CapEff"].strip(),
    "no_new_privileges": status["NoNewPrivs"].strip(),
    "groups": sorted(map(int, status["Groups"].split())),
    "processes": sorted(int(name) for name in os.listdir("/proc") if name.isdecimal()),
    "set_clock": attempt(lambda: time.clock_settime(time.CLOCK_REALTIME, time.time())),
    "ask_clock": attempt(adjtimex),
    "packet_socket": attempt(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()),
    "netlink_socket": attempt(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()),
    "loop_device": attempt(lambda: open("/dev/loop-control", "rb").close()),
    "null_device": attempt(lambda: open("/dev/null", "rb").close()),
    "umask": oct(os.umask(0)),
    "environment": sorted(os.environ),
}}
new = Path("{PROBED}.new")
new.write_text(json.dumps(found))
new.rename("{PROBED}")
"""


@pytest.fixture
def pubsub(installed: Machine) -> Iterator[PubSubServer]:
    """A Pub/Sub server in the machine's network, which the service is told of."""
    with PubSubServer() as server, Proxy(server.address, inside=installed.network.entered) as line:
        server.create_topic(TOPIC)
        installed.configure_unit("pubsub", f"[Service]\nEnvironment=PUBSUB_EMULATOR_HOST={line.address}\n")
        yield server


def put_to_work(machine: Machine, sink: str = EVENTS, unit: str = "") -> None:
    """Give the service work and restart it, with a drop-in if there is one."""
    machine.write("/usr/local/bin/probe", PROBE, 0o755)
    machine.write("/etc/edge-agent.toml", SETTINGS.format(sink=sink))
    if unit:
        machine.configure_unit("test", unit)
    machine.systemctl("restart", "edge-agent")


def probed(machine: Machine) -> dict[str, Any]:
    """Wait until the action has run, and return what it has found out."""
    exists = lambda: machine.run("test", "-e", PROBED, check=False).returncode == 0  # noqa: E731
    machine.wait_until(exists, "the action has run")
    found: dict[str, Any] = json.loads(machine.read(PROBED))
    return found


def test_the_exposure_is_at_most_one_and_a_half(installed: Machine) -> None:
    installed.run("systemd-analyze", "security", "--threshold=15", "edge-agent.service")


def test_systemd_finds_nothing_to_complain_of(installed: Machine) -> None:
    assert installed.run("systemd-analyze", "verify", "--man=no", "edge-agent.service").stderr == ""
    assert "edge-agent" not in installed.journal("--priority=warning", "--identifier=systemd")


def documented(kind: str) -> list[str]:
    """The blocks of a language in the document about the sandbox."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", SANDBOX.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in blocks if language == kind]


def test_systemd_understands_every_drop_in_of_the_document(installed: Machine) -> None:
    drop_ins = [block for block in documented("ini") if block.startswith("[Service]")]
    assert any("DeviceAllow=char-iio rw" in block and "DeviceAllow=char-dma_heap rw" in block for block in drop_ins)
    installed.write("/etc/credstore.encrypted/edge-agent.google-credentials.json", "")
    for number, block in enumerate(drop_ins):
        installed.configure_unit(f"documented-{number}", block)
    assert installed.run("systemd-analyze", "verify", "--man=no", "edge-agent.service").stderr == ""
    # What systemd does not understand it leaves out, and says so here.
    assert "edge-agent" not in installed.journal("--priority=warning", "--identifier=systemd")
    allowed = installed.property("DeviceAllow")
    for name in ("i2c", "spidev", "ttyUSB", "ttyACM", "media", "dma_heap", "iio"):
        assert f"char-{name} rw" in allowed
    assert installed.property("ProtectKernelTunables") == "no"


def test_the_unit_that_an_action_may_start_is_understood(installed: Machine) -> None:
    [unit] = [block for block in documented("ini") if "[Path]" in block]
    installed.write("/etc/systemd/system/stop-machine.path", unit)
    installed.write("/etc/systemd/system/stop-machine.service", "[Service]\nType=oneshot\nExecStart=/bin/true\n")
    assert installed.run("systemd-analyze", "verify", "--man=no", "stop-machine.path").stderr == ""
    installed.systemctl("enable", "--now", "stop-machine.path")
    put_to_work(installed)
    installed.write("/usr/local/bin/probe", "#!/bin/sh\ntouch /run/edge-agent/stop-machine\n", 0o755)
    started = lambda: "stop-machine.service" in installed.journal("--unit=stop-machine.service")  # noqa: E731
    installed.wait_until(started, "the file of the action has started the service")


def test_udev_finds_nothing_to_complain_of(installed: Machine, distribution: str) -> None:
    if distribution == "bookworm":
        pytest.skip("udevadm verify came with systemd 254")
    [for_iio] = [block for block in documented("") if "SUBSYSTEM" in block]
    rules = "/etc/udev/rules.d/70-edge-agent-iio.rules"
    installed.write(rules, for_iio)
    installed.run("udevadm", "verify", "/usr/lib/udev/rules.d/59-edge-agent.rules", rules)


def test_an_action_finds_itself_in_the_sandbox(installed: Machine) -> None:
    put_to_work(installed)
    found = probed(installed)
    writable = {folder for folder, result in found["write"].items() if result == "done"}
    own = {f"/{place}/edge-agent" for place in ("run", "var/lib", "var/log")}
    assert writable == own | {"/tmp", "/var/tmp", "/dev/shm"}
    assert installed.run("test", "-e", "/tmp/probe", check=False).returncode != 0
    assert found["read"] == {"/home": "EACCES", "/root": "EACCES", "/srv": "done"}
    assert set(found["capabilities"]) == {"0"}
    assert found["no_new_privileges"] == "1"
    agent = installed.main_pid()
    assert agent in found["processes"]
    assert 1 not in found["processes"]
    assert found["set_clock"] == "EPERM"
    assert found["packet_socket"] == "EAFNOSUPPORT"
    assert found["netlink_socket"] == "done"
    assert found["loop_device"] in {"EPERM", "ENOENT"}
    assert found["null_device"] == "done"
    assert found["umask"] == "0o27"
    assert "CREDENTIALS_DIRECTORY" not in found["environment"]
    assert "NOTIFY_SOCKET" not in found["environment"]


def test_the_service_is_in_the_groups_of_its_devices(installed: Machine) -> None:
    put_to_work(installed)
    names = ("edge-agent", "plugdev", "apex", "video", "gpio")
    groups = installed.run("getent", "group", *names).stdout.splitlines()
    assert probed(installed)["groups"] == sorted(int(group.split(":")[2]) for group in groups)


def test_ordinary_work_makes_no_call_that_is_not_allowed(installed: Machine, pubsub: PubSubServer) -> None:
    # What would be refused ends the program instead. Two calls are asked for that may be refused: OpenBLAS wants its
    # memory near the processor, and the clock is read where systemd-timesyncd has not spoken.
    unit = "[Service]\nSystemCallErrorNumber=kill\nSystemCallFilter=mbind adjtimex clock_adjtime\n"
    unit += "ExecReload=\nExecReload=/usr/bin/edge-agent reload\n"
    put_to_work(installed, "pubsub://project/events", unit)
    pubsub.wait_for(lambda server: len(server.messages(TOPIC)) >= 200, seconds=120)
    installed.systemctl("reload", "edge-agent")
    before = len(pubsub.messages(TOPIC))
    pubsub.wait_for(lambda server: len(server.messages(TOPIC)) >= before + 200, seconds=120)
    assert installed.property("NRestarts") == "0"
    assert "SIGSYS" not in installed.journal("--unit=edge-agent")
    put_to_work(installed, EVENTS)
    installed.wait_until(lambda: installed.run("test", "-s", EVENTS, check=False).returncode == 0, "there are events")
    assert "SIGSYS" not in installed.journal("--unit=edge-agent")


def test_the_clock_counts_as_set_when_timesyncd_says_so(installed: Machine, pubsub: PubSubServer) -> None:
    installed.write("/run/systemd/timesync/synchronized", "")
    put_to_work(installed, "pubsub://project/events")
    pubsub.wait_for(lambda server: len(server.messages(TOPIC)) >= 10, seconds=120)
    sources = {json.loads(message.data).get("time_source") for message in pubsub.messages(TOPIC)}
    assert sources == {"synchronized"}


def test_the_drop_in_for_chrony_lets_the_clock_be_read_and_not_set(installed: Machine) -> None:
    put_to_work(installed)
    assert probed(installed)["ask_clock"] == "EPERM"
    installed.run("rm", PROBED)
    put_to_work(installed, unit="[Service]\nProtectClock=no\nSystemCallFilter=adjtimex clock_adjtime\n")
    found = probed(installed)
    assert found["ask_clock"] == "done"
    assert found["set_clock"] == "EPERM"


def test_credentials_come_from_the_credential_store(installed: Machine) -> None:
    assert installed.run("test", "-e", CREDENTIAL, check=False).returncode != 0
    installed.write(CREDSTORE, "a key", 0o600)
    installed.write("/etc/credstore/edge-agent.release-keys.pem", "keys", 0o600)
    installed.systemctl("restart", "edge-agent")
    assert installed.read(CREDENTIAL) == "a key"
    assert installed.read("/run/credentials/edge-agent.service/release-keys.pem") == "keys"
    as_user = ["runuser", "-u", "edge-agent", "-g", "edge-agent", "--", "cat"]
    assert installed.run(*as_user, CREDENTIAL).stdout == "a key"
    assert installed.run("runuser", "-u", "nobody", "--", "cat", CREDENTIAL, check=False).returncode != 0
    installed.run("rm", CREDSTORE)
    installed.systemctl("restart", "edge-agent")
    assert installed.property("ActiveState") == "active"
    assert installed.run("test", "-e", CREDENTIAL, check=False).returncode != 0


def test_encrypted_credentials_take_a_drop_in(installed: Machine) -> None:
    sealed = "/etc/credstore.encrypted/edge-agent.google-credentials.json"
    installed.run("mkdir", "-p", "/etc/credstore.encrypted")
    seal = ["systemd-creds", "encrypt", "--with-key=host", "--name=google-credentials.json", "-", sealed]
    installed.run(*seal, stdin="a secret key")
    assert "a secret key" not in installed.read(sealed)
    drop_in = f"[Service]\nLoadCredential=\nLoadCredentialEncrypted=google-credentials.json:{sealed}\n"
    installed.configure_unit("credentials", drop_in)
    installed.systemctl("restart", "edge-agent")
    assert installed.read(CREDENTIAL) == "a secret key"


@pytest.mark.parametrize("signal", ["KILL", "TERM"])
def test_it_comes_back_whoever_ends_it(installed: Machine, signal: str) -> None:
    installed.configure_unit("test", "[Service]\nRestartSec=100ms\n")
    installed.run("kill", f"-{signal}", str(installed.main_pid()))
    installed.wait_until(lambda: installed.property("NRestarts") == "1", "systemd restarts the service")
    installed.wait_until(lambda: installed.property("ActiveState") == "active", "the service is back")


def test_a_crash_loop_never_ends_in_a_dead_service(installed: Machine) -> None:
    installed.configure_unit("test", "[Service]\nRestartSec=50ms\nExecStart=\nExecStart=/bin/false\n")
    installed.systemctl("restart", "edge-agent", "--no-block")
    installed.wait_until(lambda: int(installed.property("NRestarts")) > 20, "it is restarted again and again")
    installed.run("rm", "/etc/systemd/system/edge-agent.service.d/test.conf")
    installed.systemctl("daemon-reload")
    installed.wait_until(lambda: installed.property("ActiveState") == "active", "it works once the fault is gone")


def test_a_greedy_action_is_killed_and_the_agent_stays(installed: Machine) -> None:
    put_to_work(installed, unit="[Service]\nMemoryMax=300M\n")
    probed(installed)
    agent = installed.main_pid()
    eat = "#!/usr/bin/python3\nopen('/proc/self/oom_score_adj', 'w').write('800')\nbytearray(b'1') * 500_000_000\n"
    installed.write("/usr/local/bin/probe", eat, 0o755)
    installed.systemctl("restart", "edge-agent")
    agent = installed.main_pid()
    killed = lambda: "signal 9 (Killed)" in installed.journal("--unit=edge-agent")  # noqa: E731
    installed.wait_until(killed, "the action has been killed")
    assert installed.main_pid() == agent


def test_the_boot_does_not_wait_for_a_network_nor_the_service_for_it(installed: Machine) -> None:
    # network-online.target is reached only after the service is up: one that waited for it would never be.
    waiting = """[Unit]
Before=network-online.target
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'until systemctl --quiet is-active edge-agent; do sleep 0.1; done'
TimeoutStartSec=60
[Install]
WantedBy=network-online.target
"""
    other = "[Unit]\nWants=network-online.target\nAfter=network-online.target\n"
    other += "[Service]\nExecStart=/bin/sleep infinity\n[Install]\nWantedBy=multi-user.target\n"
    installed.write("/etc/systemd/system/no-network-yet.service", waiting)
    installed.write("/etc/systemd/system/other.service", other)
    installed.systemctl("enable", "no-network-yet", "other")
    installed.reboot()
    assert installed.property("ActiveState", "other.service") == "active"
    assert installed.property("ActiveState") == "active"


def test_stopping_keeps_the_queue_in_run_and_others_out(installed: Machine) -> None:
    modes = installed.run("stat", "-c", "%a %U %G", "/run/edge-agent", "/var/lib/edge-agent", "/var/log/edge-agent")
    assert modes.stdout.splitlines() == ["750 edge-agent edge-agent"] * 3
    installed.write("/run/edge-agent/journal", "events")
    installed.systemctl("stop", "edge-agent")
    assert installed.read("/run/edge-agent/journal") == "events"
