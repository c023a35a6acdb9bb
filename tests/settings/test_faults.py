"""How faults are shown, and in which order."""

from edge_agent.settings.faults import Fault, SettingsError


def test_faults_come_in_the_order_of_the_file_and_then_the_environment() -> None:
    faults = [
        Fault("environment variable EDGE_AGENT_X", None, "[a].b", "is wrong"),
        Fault("z.toml", 10, "[a].b", "is wrong"),
        Fault("z.toml", 9, "[a].b", "is wrong"),
        Fault("z.toml", None, "", "is wrong"),
    ]
    assert str(SettingsError(faults)).splitlines() == [
        "z.toml: is wrong",
        "z.toml:9: [a].b: is wrong",
        "z.toml:10: [a].b: is wrong",
        "environment variable EDGE_AGENT_X: [a].b: is wrong",
    ]
