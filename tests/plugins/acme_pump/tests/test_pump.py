from pathlib import Path

from acme_pump import Pump

from edge_agent.testing import check_source, run_in_worker


def controller(folder: Path) -> Path:
    path = folder / "bars"
    path.write_text("0.5\n" * 128)
    return path


def test_the_pump_keeps_the_rules(tmp_path: Path) -> None:
    options = {"path": str(controller(tmp_path)), "every": "10ms"}
    samples = check_source(Pump, options, broken={"path": str(tmp_path / "none")})
    assert samples[0].data.shape == (128,)


def test_the_pump_in_the_worker(tmp_path: Path) -> None:
    run = run_in_worker(Pump, {"path": str(controller(tmp_path)), "every": "10ms"}, count=3)
    assert not run.failed
    assert run.results[0].scores[0].label == "normal"
