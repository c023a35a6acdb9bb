"""The life of the package: installed, upgraded, downgraded, removed, installed again, purged; and what can go wrong.

Each test boots a Debian 12 and a Debian 13. Events are counted at a Pub/Sub server.
"""

import functools
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_agent import __version__
from tests.settings import distributions
from tests.system.conftest import ROOT
from tests.system.machine import UNIT, Machine
from tests.system.packages import (
    DROPPED,
    LIBRARY,
    PREVIOUS,
    exists,
    install,
    install_command,
    lines,
    listing,
    make_light,
    make_previous,
    repack,
    set_previous_version,
)
from tests.system.roots import DISTRIBUTIONS
from tests.system.service import CONFIG, Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

PLACES = ("/var/lib/edge-agent", "/var/log/edge-agent", "/run/edge-agent")
ENABLED = "/etc/systemd/system/multi-user.target.wants/edge-agent.service"
DROP_IN = "/etc/systemd/system/edge-agent.service.d/site.conf"
CREDENTIALS = "/etc/credstore/edge-agent.google-credentials.json"
PYTHONS = {"bookworm": "python3.11", "trixie": "python3.13"}
SETTINGS = settings(source='plugin = "vibration"\nrate = 500')
# In a terminal, as somebody would do it: Ctrl-C once the demo has come to its alarm.
DEMO = """
(for _ in $(seq 300); do grep --quiet --no-messages 'stop the machine!' /root/shown && break; sleep 0.2; done
 printf '\\003') |
runuser --login anna --command 'script --quiet --flush --return --command "edge-agent demo" /dev/null' |
tee /root/shown
"""
FOR_ALL = "/home /tmp /var/tmp /dev/shm"
# A source of 128 values, as our model takes, made of the example in docs/sources.md.
WIDE = """
import msgspec
import numpy
from edge_temperature import Temperature

class Wide(Temperature):
    def read(self, timeout):
        sample = super().read(timeout)
        return sample and msgspec.structs.replace(sample, data=numpy.repeat(sample.data, 128))
"""
IMPORT_ALL = f"""
import importlib, pkgutil, sys
sys.path.insert(0, "{LIBRARY}")
sys.modules.pop("google", None)
import edge_agent
for module in pkgutil.walk_packages(edge_agent.__path__, "edge_agent."):
    if module.name not in ("edge_agent.__main__", "edge_agent.demo.train"):
        importlib.import_module(module.name)
import google.auth.crypt, google.oauth2.service_account
print(google.auth.crypt.RSASigner.__module__)
"""


@pytest.fixture(scope="session")
def previous_debs(debs: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that makes a package of the previous version for a distribution."""

    def make(distribution: str) -> Path:
        deb = debs(distribution)
        target = tmp_path_factory.mktemp("previous") / deb.name.replace(__version__, PREVIOUS)
        return repack(deb, target, make_previous)

    return functools.cache(make)


@pytest.fixture(scope="session")
def previous_trees(
    base_trees: Callable[[str], Path],
    previous_debs: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], list[Path]]:
    """A function that returns the trees of a distribution with the previous version installed."""

    def make(distribution: str) -> list[Path]:
        base = base_trees(distribution)
        with Machine([base], tmp_path_factory.mktemp(f"previous-{distribution}")) as machine:
            install(machine, previous_debs(distribution))
            return [machine.freeze(), base]

    return functools.cache(make)


@pytest.fixture
def previous(previous_trees: Callable[[str], list[Path]], distribution: str, tmp_path: Path) -> Iterator[Service]:
    """The service of the previous version, idle, and its Pub/Sub server."""
    with Machine(previous_trees(distribution), tmp_path / "machine") as machine, Service(machine) as service:
        yield service


def fill_queue(service: Service, least: int) -> int:
    """Let events arrive, and then so many wait because the server is away; return how many it has become.

    Those that have arrived tell the epoch of the queue: were it lost, the next events would be of another one.
    """
    service.work(SETTINGS)
    service.cut_off()
    return wait_for_queue(service, least)


def wait_for_queue(service: Service, least: int) -> int:
    """Wait until so many events wait, and return how many it has become."""
    what = f"{least} events that wait"
    report = service.wait_for_report(lambda report: report["queue"]["waiting"] >= least, what)
    return int(report["queue"]["waiting"])


def drain_queue(service: Service, least: int) -> None:
    """Let the server be there again; every event up to this moment must arrive, at least so many, and of one queue."""
    service.connect()
    now_ms = time.time() * 1000
    events = service.wait_for_events(
        lambda events: events.without_hole and events.latest_ms > now_ms, "all of them, up to this moment"
    )
    assert len(events) >= least
    assert len(events.epochs) == 1, f"the queue was begun anew: {events.epochs.keys()}"
    assert not events.lost, events.lost


# -- fresh


def test_a_fresh_installation_is_as_declared(installed: Machine, distribution: str) -> None:
    assert installed.run("dpkg", "--audit").stdout == ""
    assert installed.run("dpkg", "--verify", "edge-agent").stdout == ""
    assert installed.property("UnitFileState") == "enabled"
    conffiles = installed.run("dpkg-query", "--show", "--showformat=${Conffiles}", "edge-agent").stdout
    assert [line.split()[0] for line in conffiles.splitlines() if line] == [CONFIG]

    user = installed.run("getent", "passwd", "edge-agent").stdout.strip().split(":")
    assert user[5:] == ["/var/lib/edge-agent", "/usr/sbin/nologin"]
    groups = installed.run("id", "--name", "--groups", "edge-agent").stdout.split()
    assert sorted(groups) == ["apex", "edge-agent", "gpio", "plugdev", "video"]
    for place in PLACES:
        assert lines(installed, "stat", "--format=%U:%G %a", place) == ["edge-agent:edge-agent 750"]

    if distribution != "bookworm":  # which has no udevadm verify
        installed.run("udevadm", "verify", "/usr/lib/udev/rules.d/59-edge-agent.rules")


def test_every_module_is_there_compiled_and_stays_as_it_is(installed: Machine) -> None:
    sources = set(lines(installed, f"find {LIBRARY} -name '*.py'"))
    compiled = lines(installed, f"find {LIBRARY} -name '*.pyc'")
    assert {re.sub(r"__pycache__/(.+)\.cpython-\d+\.pyc$", r"\1.py", path) for path in compiled} == sources
    installed.run("touch", "/root/mark")
    assert "google.auth.crypt" in installed.run("/usr/bin/python3", "-I", "-c", IMPORT_ALL).stdout
    assert lines(installed, f"find {LIBRARY} -newer /root/mark") == []
    assert lines(installed, f"find {LIBRARY} -not -user root -o -not -group root -o -not -type l -perm /022") == []


def test_an_ordinary_user_sees_the_demo(installed: Machine) -> None:
    installed.run("useradd", "--create-home", "anna")
    before = lines(installed, f"find {FOR_ALL}")
    demo = installed.run("bash", "-o", "pipefail", "-c", DEMO, check=False)
    shown = demo.stdout
    assert "stop the machine!" in shown, shown
    assert demo.returncode == 128 + signal.SIGINT, shown
    assert re.search(r"\d+ events \(\d+ result.*1 alarm.*\) were written to", shown)
    assert "Traceback" not in shown
    assert lines(installed, "pgrep --uid anna --full edge || true") == []
    assert lines(installed, f"find {FOR_ALL}") == before


def test_a_plugin_from_elsewhere_is_found_and_runs(service: Service, distribution: str, tmp_path: Path) -> None:
    page = (ROOT / "docs/sources.md").read_text()
    example, _its_tests = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    modules = {"edge_temperature": example, "edge_wide": WIDE}
    plugins = {"temperature": "edge_temperature:Temperature", "wide": "edge_wide:Wide"}
    distributions.install(tmp_path, "edge-temperature", modules=modules, plugins=plugins)
    for file in [*tmp_path.glob("*.py"), *tmp_path.glob("*.dist-info/*")]:
        folder = f"/usr/local/lib/{PYTHONS[distribution]}/dist-packages"
        service.machine.write(f"{folder}/{file.relative_to(tmp_path)}", file.read_text())
    service.machine.write("/srv/temperature", "500\n")
    source = 'plugin = "{}"\nevery = "50ms"\npath = "/srv/temperature"'

    service.work(settings(source=source.format("wide")))
    assert service.events.of("result")[0]["prediction"] == "normal"
    service.configure(settings(source=source.format("temperature")))
    assert "all settings are good" in service.machine.run("edge-agent", "check-config").stdout


# -- upgrade and downgrade


def test_an_upgrade_keeps_settings_and_queue(previous: Service, deb: Path) -> None:
    before = fill_queue(previous, least=2000)
    assert previous.report()["version"] == PREVIOUS
    machine = previous.machine

    install(machine, deb)
    assert machine.read(CONFIG) == SETTINGS
    assert "# Settings of edge-agent" in machine.read(f"{CONFIG}.dpkg-dist")
    assert previous.report()["version"] == __version__
    assert machine.run("dpkg", "--audit").stdout == ""
    assert lines(machine, f"find {LIBRARY} -path '*dropped*'") == []
    after = wait_for_queue(previous, least=before + 500)
    drain_queue(previous, least=after)
    assert machine.property("NRestarts") == "0"


def test_a_downgrade_keeps_settings_and_queue(
    service: Service, previous_debs: Callable[[str], Path], distribution: str
) -> None:
    before = fill_queue(service, least=500)
    install(service.machine, previous_debs(distribution), "--allow-downgrades")
    assert service.machine.read(CONFIG) == SETTINGS
    assert service.report()["version"] == PREVIOUS
    assert all(exists(service.machine, f"{LIBRARY}/{name}") for name in DROPPED)
    after = wait_for_queue(service, least=before + 500)
    drain_queue(service, least=after)


@pytest.mark.parametrize("wish", ["stop", "disable --now", "mask --now"])
def test_an_upgrade_does_not_start_what_somebody_has_stopped(
    machine: Machine, deb: Path, tmp_path: Path, wish: str
) -> None:
    light = repack(deb, tmp_path / "light.deb", make_light)
    install(machine, repack(light, tmp_path / "previous.deb", set_previous_version))
    assert machine.property("ActiveState") == "active"
    machine.systemctl(*wish.split(), UNIT)
    enabled = machine.property("UnitFileState")
    install(machine, light)
    assert machine.property("ActiveState") == "inactive"
    assert machine.property("UnitFileState") == enabled


# -- removal and purge


def test_removed_it_leaves_settings_and_state_and_can_come_back(service: Service, deb: Path) -> None:
    before = fill_queue(service, least=200)
    machine = service.machine
    machine.run("apt-get", "--yes", "remove", "edge-agent")
    assert machine.read(CONFIG) == SETTINGS
    assert exists(machine, "/var/lib/edge-agent/queue")
    assert not exists(machine, LIBRARY)
    assert lines(machine, "pgrep --uid edge-agent || true") == []
    assert machine.property("ActiveState") == "inactive"
    assert lines(machine, "systemctl", "--failed", "--no-legend") == []
    # That it is enabled is a setting, too.
    assert lines(machine, "find / -xdev -xtype l -lname '*edge-agent*'") == [ENABLED]

    install(machine, deb)
    assert machine.read(CONFIG) == SETTINGS
    assert machine.property("ActiveState") == "active"
    drain_queue(service, least=before)


def test_purged_it_leaves_nothing_but_the_user(
    installed: Machine, base_trees: Callable[[str], Path], distribution: str, tmp_path: Path
) -> None:
    with Machine([base_trees(distribution)], tmp_path / "pristine") as pristine:
        before = listing(pristine)
    installed.write(CONFIG, settings())
    installed.systemctl("restart", UNIT)
    installed.wait_until(lambda: exists(installed, "/var/lib/edge-agent/queue"), "there is a queue")
    for end in ("~", ".dpkg-dist", ".dpkg-old"):
        installed.write(f"{CONFIG}{end}", "")
    # What somebody has made by hand is not the package's to remove.
    own = (DROP_IN, CREDENTIALS)
    for path in own:
        installed.write(path, "")
    installed.run("apt-get", "--yes", "purge", "edge-agent")

    left = listing(installed)
    changed = {path for path in left.keys() | before.keys() if left.get(path) != before.get(path)}
    assert changed == {path for file in own for path in (file, str(Path(file).parent))} - before.keys()
    assert not any(exists(installed, place) for place in PLACES)
    assert installed.run("getent", "passwd", "edge-agent").stdout
    assert lines(installed, "dpkg-query --show edge-agent || true") == []
    assert lines(installed, "systemctl", "--failed", "--no-legend") == []


# -- what can go wrong


def kill_upgrade(machine: Machine, deb: Path, reached: Callable[[], object], what: str) -> None:
    """Begin the upgrade, and kill all of it at once when it has got somewhere."""
    machine.copy_in(deb, f"/root/{deb.name}")
    start = ["systemd-run", "--unit=upgrade", "--setenv=DEBIAN_FRONTEND=noninteractive", "--"]
    machine.run(*start, *install_command(deb))
    machine.wait_until(reached, what)
    machine.systemctl("kill", "--signal=KILL", "upgrade")
    machine.wait_until(lambda: machine.property("ActiveState", "upgrade") == "failed", "the upgrade has been killed")
    assert "edge-agent" in machine.run("dpkg", "--audit").stdout


def test_an_upgrade_killed_while_it_unpacks_can_be_repeated(previous: Service, deb: Path) -> None:
    before, machine = fill_queue(previous, least=200), previous.machine
    # Folders may go away while find looks into them.
    unpacked = f"find {LIBRARY} -name '*.dpkg-new' -print -quit 2>/dev/null; true"
    kill_upgrade(machine, deb, lambda: lines(machine, unpacked), "files are being unpacked")
    assert previous.report()["version"] == PREVIOUS
    previous.start()
    assert previous.report()["version"] == PREVIOUS

    # apt does nothing before this.
    machine.run("dpkg", "--configure", "--pending")
    install(machine, deb)
    assert previous.report()["version"] == __version__
    assert machine.run("dpkg", "--audit").stdout == ""
    assert lines(machine, "find / -xdev -name '*.dpkg-new' -o -xdev -name '*.dpkg-tmp'") == []
    assert machine.read(CONFIG) == SETTINGS
    drain_queue(previous, least=before)


def test_an_upgrade_killed_while_it_is_configured_is_completed_by_dpkg(previous: Service, deb: Path) -> None:
    before, machine = fill_queue(previous, least=200), previous.machine
    compiles = ["pgrep", "--exact", "py3compile"]
    kill_upgrade(machine, deb, lambda: machine.run(*compiles, check=False).stdout, "modules are compiled")
    assert machine.property("ActiveState") == "active"
    machine.run("dpkg", "--force-confold", "--configure", "--pending")
    assert previous.report()["version"] == __version__
    assert machine.run("dpkg", "--audit").stdout == ""
    drain_queue(previous, least=before)


def test_an_upgrade_that_finds_the_disk_full_leaves_the_previous_version_at_work(previous: Service, deb: Path) -> None:
    machine = previous.machine
    machine.systemctl("stop", UNIT)
    used = int(machine.run("du", "--summarize", "--block-size=1M", LIBRARY).stdout.split()[0])
    with machine.small_disk(LIBRARY, megabytes=used + 20):
        try:
            before = fill_queue(previous, least=200)
            failed = install(machine, deb, check=False)
            assert failed.returncode != 0
            assert "No space left on device" in failed.stdout + failed.stderr
            assert machine.run("dpkg", "--audit").stdout == ""
            assert previous.report()["version"] == PREVIOUS
            drain_queue(previous, least=before)
        finally:
            machine.systemctl("stop", UNIT)


def test_the_package_for_another_debian_is_refused(
    machine: Machine, debs: Callable[[str], Path], distribution: str
) -> None:
    (other,) = set(DISTRIBUTIONS) - {distribution}
    refused = install(machine, debs(other), check=False)
    assert refused.returncode != 0
    assert re.search(r"edge-agent : Depends: python3 \([<>]", refused.stdout + refused.stderr)
    assert not exists(machine, CONFIG)
