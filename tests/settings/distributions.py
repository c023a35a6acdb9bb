"""Puts a distribution with plugins on the disk, as pip would: its modules, and metadata with entry points."""

from collections.abc import Mapping
from pathlib import Path
from textwrap import dedent


def install(
    folder: Path,
    name: str,
    *,
    modules: Mapping[str, str],
    plugins: Mapping[str, str],
    group: str = "edge_agent.sources",
) -> None:
    """Write distribution `name` 1.0 into `folder`. `plugins` gives "module:Class" by plugin name."""
    for module, code in modules.items():
        (folder / f"{module}.py").write_text(dedent(code))
    metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    entries = "".join(f"{plugin} = {target}\n" for plugin, target in plugins.items())
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{entries}")
