"""Plugins by entry point: found without being imported, and told apart when they cannot be used."""

import subprocess
import sys
from pathlib import Path

import pytest

from edge_agent import plugins
from edge_agent.plugins import Plugin, PluginError
from tests.settings.distributions import install

GROUP = "edge_agent.testing_plugins"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path of modules; what a test imports from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


def test_the_built_in_sources_come_by_entry_points() -> None:
    found = plugins.available(plugins.SOURCES)
    assert {"images", "recording", "vibration"} <= set(found)
    assert found["vibration"].reference == "edge_agent.sources.vibration:Vibration"
    assert found["vibration"].distribution.startswith("edge-agent ")
    assert plugins.load(found["vibration"]).__name__ == "Vibration"


def test_plugins_are_found_without_being_imported(folder: Path) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_a": "1 / 0"}, plugins={"b": "acme_a:B", "a": "acme_a:A"})
    assert plugins.available(GROUP) == {
        "a": Plugin("a", "acme_a:A", "acme 1.0"),
        "b": Plugin("b", "acme_a:B", "acme 1.0"),
    }
    assert "acme_a" not in sys.modules


@pytest.mark.parametrize("target", ["acme_b:Thing", "acme_b : Thing", "acme_b:Thing [usb]"])
def test_a_plugin_is_loaded(folder: Path, target: str) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_b": "class Thing: pass"}, plugins={"thing": target})
    assert plugins.find(GROUP, "thing").reference == "acme_b:Thing"
    assert plugins.load(plugins.find(GROUP, "thing")).__module__ == "acme_b"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vibratoin", "no such plugin (did you mean 'vibration'?)"),
        ("xyz", "no such plugin; installed are: recording, vibration"),
    ],
)
def test_no_such_plugin(folder: Path, name: str, message: str) -> None:
    install(folder, "acme", group=GROUP, modules={}, plugins={"vibration": "m:A", "recording": "m:B"})
    assert reason(name) == message


def test_no_plugin_at_all() -> None:
    assert reason("xyz") == "no such plugin; installed are: none"


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import spidev_is_not_here", "ModuleNotFoundError: No module named 'spidev_is_not_here'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise OSError('no bus')", "OSError: no bus"),
        ("", "AttributeError: module 'acme_c' has no attribute 'Thing'"),
    ],
)
def test_a_plugin_that_cannot_be_imported(folder: Path, code: str, message: str) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_c": code}, plugins={"thing": "acme_c:Thing"})
    assert reason("thing") == f"plugin 'thing' of acme 1.0 cannot be imported: {message}"


def test_a_plugin_that_is_no_class(folder: Path) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_d": "Thing = 5"}, plugins={"thing": "acme_d:Thing"})
    assert reason("thing") == "plugin 'thing' of acme 1.0 is no class: acme_d:Thing"


def test_two_distributions_with_a_plugin_of_the_same_name(folder: Path) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_e": "class Thing: pass"}, plugins={"thing": "acme_e:Thing"})
    install(folder, "other", group=GROUP, modules={}, plugins={"thing": "acme_e:Thing"})
    assert reason("thing") in {
        "plugin 'thing' comes from acme 1.0 and other 1.0; uninstall one of them",
        "plugin 'thing' comes from other 1.0 and acme 1.0; uninstall one of them",
    }


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"[edge_agent.sources]\nthing\n", "TypeError"),
        (b"[a]\nb = c:\xff\n", "UnicodeDecodeError"),
    ],
    ids=["half a line", "no text"],
)
def test_a_damaged_distribution_hides_only_its_own(folder: Path, content: bytes, error: str) -> None:
    install(folder, "acme", group=GROUP, modules={"acme_f": "class Thing: pass"}, plugins={"thing": "acme_f:Thing"})
    install(folder, "hurt", group=GROUP, modules={}, plugins={})
    (folder / "hurt-1.0.dist-info" / "entry_points.txt").write_bytes(content)
    assert plugins.load(plugins.find(GROUP, "thing")).__name__ == "Thing"
    told = reason("other")
    assert told.startswith(
        f"no such plugin; installed are: thing; what hurt 1.0 in {folder} offers cannot be read ({error}"
    )
    assert told.endswith("), so install it again")


def test_a_plugin_of_a_distribution_without_a_name(folder: Path) -> None:
    install(folder, "acme", group=GROUP, modules={}, plugins={"thing": "acme_g:Thing"})
    (folder / "acme-1.0.dist-info" / "METADATA").write_bytes(b"")
    assert reason("thing").startswith("plugin 'thing' of an unknown distribution cannot be imported: ")


def test_the_first_distribution_of_a_name_counts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(folder, "acme.pump", group=GROUP, modules={}, plugins={"thing": "old:Thing"})
    newer = folder / "newer"
    install(newer, "Acme-Pump", group=GROUP, modules={}, plugins={"thing": "new:Thing"})
    monkeypatch.syspath_prepend(newer)
    assert plugins.find(GROUP, "thing").reference == "new:Thing"


def reason(name: str) -> str:
    with pytest.raises(PluginError) as caught:
        plugins.load(plugins.find(GROUP, name))
    return str(caught.value)


def test_looking_for_plugins_loads_no_numpy_and_no_pydantic() -> None:
    code = "import sys; from edge_agent import plugins; plugins.available(plugins.SOURCES); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "pydantic", "edge_agent.sources"} & set(done.stdout.split())
