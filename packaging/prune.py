"""Removes what the agent never uses from the installed wheels: `packaging/prune.py DIRECTORY`.

Each group says why it is safe to do without. A pattern that matches nothing ends the build: wheels change, and these
lists have to follow them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree

UNUSED = {
    "LiteRT's GPU and NPU back ends, its compilers and its CompiledModel API; the agent uses its Interpreter": [
        "ai_edge_litert/aot",
        "ai_edge_litert/libLiteRt.so",  # the package loads it if it is there
        "ai_edge_litert/libLiteRtWebGpuAccelerator.so",
        "ai_edge_litert/tflite",
        "ai_edge_litert/tools",
    ],
    "distributions that only those, and the making of C extensions, need": [
        "backports",
        "backports_strenum-*",
        "cffi",  # _cffi_backend stays: cryptography loads it
        "cffi-*",
        "ml_dtypes",
        "ml_dtypes-*",
        "pycparser",
        "pycparser-*",
    ],
    "Pillow's fonts, AVIF, colour management, image arithmetic and windows; sources/images.py lists its formats": [
        "PIL/_avif.*.so",
        "PIL/_imagingcms.*.so",
        "PIL/_imagingft.*.so",
        "PIL/_imagingmath.*.so",
        "PIL/_imagingmorph.*.so",
        "PIL/_imagingtk.*.so",
        "pillow.libs/libavif-*",
        "pillow.libs/libbrotli*",
        "pillow.libs/libfreetype-*",
        "pillow.libs/libharfbuzz-*",
        "pillow.libs/liblcms2-*",
        "pillow.libs/libpng16-*",  # for fonts; PNG files are decoded without it
    ],
    "NumPy's tests and what builds extensions against it": [
        "numpy/_core/_*_tests.*.so",
        "numpy/_core/_simd.*.so",
        "numpy/_core/include",
        "numpy/_core/lib",
        "numpy/_pyinstaller",
        "numpy/f2py",
        "numpy/random/_examples",
        "numpy/random/lib",
    ],
    "tqdm's bars for other programs than a terminal, its own completion and manual": [
        "tqdm/completion.sh",
        "tqdm/contrib",
        "tqdm/dask.py",
        "tqdm/keras.py",
        "tqdm/rich.py",
        "tqdm/tk.py",
        "tqdm/tqdm.1",
    ],
    "tests, and sources of what is there compiled": [
        "**/tests",
        "**/*.c",
        "**/*.h",
        "**/*.proto",
        "**/*.pxd",
        "**/*.pyi",
    ],
    "programs": ["bin"],
}
# Not there for each processor, and for Python 3.12 and later.
PERHAPS = ("ai_edge_litert/vendors", "numpy/distutils")


def main(site: Path) -> int:
    """Prune; returns the exit status."""
    before = size(site)
    for pattern in patterns():
        found = sorted(site.glob(pattern))
        if not found and pattern not in PERHAPS:
            sys.stderr.write(f"packaging/prune.py: nothing matches {pattern}; is it still needed?\n")
            return 1
        saved = sum(map(size, found))
        for path in found:
            remove(path)
        sys.stdout.write(f"{saved / 1e6:6.2f} MB {pattern}\n")
    remove_empty(site)
    sys.stdout.write(f"pruned from {before / 1e6:.1f} MB to {size(site) / 1e6:.1f} MB\n")
    return 0


def patterns() -> Iterator[str]:
    """Yield what is to be removed."""
    for group in UNUSED.values():
        yield from group
    yield from PERHAPS


def remove(path: Path) -> None:
    """Remove a file or a whole directory; it may have gone with its parent already."""
    if path.is_dir():
        rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_empty(directory: Path) -> None:
    """Remove the directories in which nothing is left."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


def size(path: Path) -> int:
    """Return the bytes of a file, or of all files in a directory."""
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
