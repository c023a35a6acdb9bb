"""Setting up and watching the service, as an operator does it."""

import json

import msgspec
import pytest

from edge_agent.report import StatusReport
from tests.system.machine import UNIT
from tests.system.service import CONFIG, VIBRATION, Events, Service, settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

ALARM = """
[[actions]]
name = "alarm"
when = { label = "failure" }
run = ["tee", "/run/edge-agent/alarm.json"]
"""
WRONG = settings(source=VIBRATION.replace("rate = 50", 'rate = "fast"')).replace("linger", "lingr")
RATE, LINGER = (next(at for at, line in enumerate(WRONG.splitlines(), 1) if word in line) for word in ("fast", "lingr"))
FAULTS = (
    f'{CONFIG}:{RATE}: [source].rate: expected a number, not "fast"',
    f"{CONFIG}:{LINGER}: [telemetry].lingr: unknown key (did you mean 'linger'?)",
)


def test_a_reload_takes_an_idle_service_into_operation_and_later_changes_take_effect(service: Service) -> None:
    machine = service.machine
    machine.systemctl("restart", UNIT)
    agent = service.pid
    assert "[telemetry].sink" in machine.status_text()
    service.configure(settings(labels='{ site = "lyon" }'))
    machine.systemctl("reload", UNIT)
    service.wait_for_results()

    service.configure(settings(labels='{ site = "paris" }'))
    machine.systemctl("reload", UNIT)
    service.wait_for_events(lambda events: events.of("result")[-1]["device_labels"]["site"] == "paris", "a new label")
    sites = [event["device_labels"]["site"] for event in service.nothing_lost().of("result")]
    assert sites == sorted(sites)
    service.wait_for_status("vibration_classifier", "on cpu", "events are sent")
    assert service.pid == agent
    assert machine.property("NRestarts") == "0"


def test_a_reload_with_faults_fails_visibly_and_the_old_settings_go_on(service: Service) -> None:
    service.work(settings())
    machine, agent = service.machine, service.pid
    service.configure(WRONG)
    assert machine.run("systemctl", "reload", UNIT, check=False).returncode != 0
    assert f"reload refused: {FAULTS[0]}" in machine.status_text()
    for fault in FAULTS:
        service.wait_for_journal(fault, "--priority=err")
    assert machine.property("ActiveState") == "active"
    service.wait_for_results()

    service.configure(settings())
    machine.systemctl("reload", UNIT)
    assert "refused" not in machine.status_text()
    assert service.pid == agent
    service.nothing_lost()


def test_faults_at_the_start_end_the_service_for_good(service: Service) -> None:
    machine = service.machine
    machine.configure_unit("restart", "[Service]\nRestartSec=100ms\n")
    service.configure(WRONG)
    assert machine.run("systemctl", "restart", UNIT, check=False).returncode != 0
    assert machine.property("ExecMainStatus") == "78"
    # What would restart it would have done so ten times by then.
    machine.run("sleep", "1")
    assert (machine.property("ActiveState"), machine.property("SubState")) == ("failed", "failed")
    assert machine.property("NRestarts") == "0"
    for fault in FAULTS:
        service.wait_for_journal(fault)
        assert service.journal().count(fault) == 1

    service.work(settings())
    service.nothing_lost()


def test_the_status_is_for_root_and_the_group(service: Service) -> None:
    service.work(settings())
    machine = service.machine
    machine.run("useradd --groups edge-agent fred && useradd visitor")
    for user in ("root", "fred"):
        command = ["runuser", "-u", user, "--", "edge-agent", "status"]
        text = machine.run(*command).stdout
        assert text.startswith("edge-agent")
        assert "device edge-001" in text
        report = msgspec.json.decode(machine.run(*command, "--json").stdout, type=StatusReport)
        assert report.results is not None
        assert report.results.samples > 0

    done = machine.run("runuser", "-u", "visitor", "--", "edge-agent", "status", check=False)
    assert done.returncode == 77, done.stderr
    assert "adduser visitor edge-agent" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_report_says_how_it_stands_and_keeps_secrets(service: Service) -> None:
    secrets = "run = ['curl', '--header', 'Authorization: Bearer tea-at-four', 'https://user:pass-word@host/?key=k3y']"
    service.work(settings(more=ALARM.replace('run = ["tee", "/run/edge-agent/alarm.json"]', secrets)))
    service.wait_for_journal("action failed")
    report = service.machine.run("/usr/share/bug/edge-agent/script 3>&1 >/dev/null").stdout
    assert "ActiveState=active" in report
    assert "vibration_classifier" in report
    assert "prediction" in report
    for secret in ("tea-at-four", "pass-word", "k3y"):
        assert secret not in report


def test_a_fault_that_goes_on_is_a_warning_and_no_storm(service: Service) -> None:
    # The model wants 128 values.
    service.start(settings(source=VIBRATION.replace("rate = 50", "rate = 500\nvalues = 64")))
    service.wait_for_status("no sample can be worked on")
    service.wait_for_events(lambda events: count_failed(events) > 2000, "2000 samples are counted as lost")
    lines = [json.loads(line) for line in service.journal("--output=json", "_COMM=edge-agent").splitlines()]
    priorities = {line["MESSAGE"]: int(line["PRIORITY"]) for line in lines}
    warnings = [text for text, priority in priorities.items() if priority <= 4]
    assert sum("samples could not be worked on" in text for text in warnings) == 1
    assert any("settings reloaded" in text or "device" in text for text in priorities if text not in warnings)
    assert len(lines) < 40, lines


def count_failed(events: Events) -> int:
    """How many samples that could not be worked on were reported as lost."""
    return sum(loss["count"] for loss in events.of("loss") if loss["cause"] == "sample_failed")


def test_an_action_runs_in_the_sandbox_with_its_event(service: Service) -> None:
    service.work(settings(more=ALARM))
    events = service.wait_for_events(lambda events: events.of("alarm"), "an alarm")
    service.wait_for_journal("action done")
    assert json.loads(service.machine.read("/run/edge-agent/alarm.json")) == events.of("alarm")[0]
    service.nothing_lost()


def test_the_board_can_be_asked_in_the_sandbox(service: Service) -> None:
    service.work(settings())
    device = service.wait_for_report(lambda report: report["device"], "the board's figures")["device"]
    # Also of the worker, another process, how much of the memory is its own.
    processes = {f"{process}_{kind}_bytes" for process in ("agent", "worker") for kind in ("rss", "pss")}
    board = {"uptime_s", "load_5m", "processors", "memory_total_bytes", "memory_available_bytes"}
    assert {*processes, *board, "disk_total_bytes", "disk_free_bytes"} <= set(device)
    assert "a sensor cannot be read" not in service.journal()
