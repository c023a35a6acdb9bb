"""The unit and its companions as far as they can be judged without booting; tests/system/test_sandbox.py boots."""

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from edge_agent.daemon import GOOGLE_CREDENTIALS
from edge_agent.models.open import KEYS_CREDENTIAL

FOLDER = Path(__file__).parents[2] / "systemd"
UNIT = FOLDER / "edge-agent.service"
# Tenths: `systemd-analyze security` says 1.5.
MOST_EXPOSURE = 15


def systemd_analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (package systemd)")
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def directives() -> dict[str, list[str]]:
    """The values of each directive of the unit, in order."""
    found = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)(s|min)", duration)
    assert match, duration
    return int(match[1]) * {"s": 1, "min": 60}[match[2]]


def test_the_exposure_is_at_most_one_and_a_half() -> None:
    done = systemd_analyze("security", "--offline=true", "--no-pager", f"--threshold={MOST_EXPOSURE}", str(UNIT))
    assert done.returncode == 0, "".join(line for line in done.stdout.splitlines(keepends=True) if "✓" not in line)


def test_systemd_knows_every_line(tmp_path: Path) -> None:
    # A copy, since the program of the unit is not installed where it is built.
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/bin/edge-agent", "/bin/true"))
    done = systemd_analyze("verify", "--man=no", "--recursive-errors=no", str(copy))
    assert done.returncode == 0, done.stderr
    assert UNIT.name not in done.stderr


def test_it_is_started_and_reloaded_by_the_program_itself(directives: dict[str, list[str]]) -> None:
    assert directives["ExecStart"] == ["/usr/bin/edge-agent run"]
    assert directives["ExecReload"] == ["/usr/bin/edge-agent reload"]
    # RestartPreventExitStatus= does not hold for other commands: a check there would be repeated for ever.
    assert not [name for name in directives if name.startswith(("ExecStartPre", "ExecCondition"))]


def test_systemd_hears_of_its_state_and_its_health(directives: dict[str, list[str]]) -> None:
    assert directives["Type"] == ["notify"]
    assert directives["NotifyAccess"] == ["main"]
    assert directives["WatchdogSec"] == ["30s"]


def test_it_is_restarted_for_ever_but_not_with_wrong_settings(directives: dict[str, list[str]]) -> None:
    assert directives["Restart"] == ["always"]
    assert directives["StartLimitIntervalSec"] == ["0"]
    assert seconds(directives["RestartSec"][0]) >= 5
    assert directives["RestartPreventExitStatus"] == ["78"]


def test_nothing_delays_it_but_what_it_needs(directives: dict[str, list[str]]) -> None:
    after = " ".join(directives["After"])
    assert not re.search(r"online|time-sync|settle|dev-", after)
    assert not [name for name in directives if name.startswith(("Requires", "BindsTo", "Condition", "Assert"))]


def test_its_folders_outlive_it(directives: dict[str, list[str]]) -> None:
    for kind in ("State", "Logs", "Runtime"):
        assert directives[f"{kind}Directory"] == ["edge-agent"]
        assert directives[f"{kind}DirectoryMode"] == ["0750"]
    assert directives["RuntimeDirectoryPreserve"] == ["yes"]


def test_credentials_may_be_absent(directives: dict[str, list[str]]) -> None:
    places = dict(credential.split(":") for credential in directives["LoadCredential"])
    assert list(places) == [GOOGLE_CREDENTIALS, KEYS_CREDENTIAL]
    # An absolute path would have to exist.
    assert list(places.values()) == [f"edge-agent.{name}" for name in places]


def test_its_memory_and_its_tasks_are_bounded(directives: dict[str, list[str]]) -> None:
    assert int(directives["MemoryMax"][0].removesuffix("%")) <= 75
    assert int(directives["TasksMax"][0]) <= 512
    assert directives["OOMPolicy"] == ["continue"]


def test_a_refused_call_is_an_error_and_not_the_end(directives: dict[str, list[str]]) -> None:
    assert directives["SystemCallErrorNumber"] == ["EPERM"]


def test_the_user_is_in_the_groups_of_its_devices() -> None:
    lines = [line.split() for line in (FOLDER / "edge-agent.sysusers").read_text().splitlines() if line[0] != "#"]
    assert lines[0][:3] == ["u", "edge-agent", "-"]
    assert {(kind, name, group) for kind, name, group, *_ in lines[1:]} == {
        ("m", "edge-agent", group) for group in ("plugdev", "apex", "video", "gpio")
    }


def test_sysusers_makes_the_user_and_the_missing_groups(tmp_path: Path) -> None:
    if shutil.which("systemd-sysusers") is None:
        pytest.skip("systemd-sysusers is not installed (package systemd)")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").write_text("plugdev:x:46:\nvideo:x:44:\n")
    make = ["systemd-sysusers", f"--root={tmp_path}", str(FOLDER / "edge-agent.sysusers")]
    done = subprocess.run(make, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert ":/var/lib/edge-agent:" in (tmp_path / "etc/passwd").read_text()
    members = {line.split(":")[0] for line in (tmp_path / "etc/group").read_text().split() if "edge-agent" in line}
    assert members == {"edge-agent", "plugdev", "video", "apex", "gpio"}


def test_the_rules_give_each_edge_tpu_to_a_group_of_the_user() -> None:
    rules = (FOLDER / "59-edge-agent.rules").read_text()
    assert re.findall(r'idVendor\}=="(\w+)", ATTR\{idProduct\}=="(\w+)".*GROUP="(\w+)"', rules) == [
        ("1a6e", "089a", "plugdev"),
        ("18d1", "9302", "plugdev"),
    ]
    assert re.findall(r'SUBSYSTEM=="apex".*GROUP="(\w+)"', rules) == ["apex"]
