"""Chooses the runtime that gets along with the installed library of the Edge TPU.

Each pair of runtime and library is tried in a throw-away process (`edge_agent.inference.runtime.probe`), and what came
of it is kept in a file of the state directory; that a pair does not fit is believed when it is seen twice. A pair is
known by the versions of the runtime and of NumPy and by package, path, size and time of the library's file: whatever
is installed anew is tried anew. What says nothing of the pair, such as a device that is not plugged in, is not kept.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from edge_agent.durable import replace_file
from edge_agent.inference.accelerators.devices import GET_LIBRARY, explain_failure
from edge_agent.inference.runtime.probe import Library, Listing, Trial, list_runtime, try_pair
from edge_agent.inference.runtime.runtimes import RUNTIMES, explain_unavailable

MAX_PAIRS = 20
log = structlog.get_logger()


class Choice(msgspec.Struct, frozen=True):
    """The runtime for an Edge TPU model.

    `problem` is why the Edge TPU must not be touched, or empty; it goes on behind "it needs an Edge TPU, and ".
    `trouble` is why the runtime could not be tried this time, or empty: then asking again, later, can tell more.
    `hung`: the device stood still as it was tried, and would do so again.
    """

    runtime: str
    problem: str = ""
    trouble: str = ""
    hung: bool = False


class _Pair(msgspec.Struct, frozen=True):
    """What has to be the same for a verdict to hold."""

    runtime: str
    version: str
    numpy: str
    library: str
    package: str
    size: int
    modified_ns: int

    @classmethod
    def of(cls, listing: Listing, library: Library) -> "_Pair":
        where = (library.path, library.package, library.size, library.modified_ns)
        return cls(listing.runtime, listing.version, listing.numpy, *where)


class _Verdict(msgspec.Struct, frozen=True):
    """Why a pair does not fit, or empty where it does."""

    pair: _Pair
    mismatch: str


_NOT_TRIED = Trial("trouble", "it was not tried")


class RuntimeChoice:
    """Knows of runtimes and pairs what has been found out. One task at a time may ask.

    `memory_file` is where verdicts are kept. `listing` and `trying` are how a child process is asked.
    """

    def __init__(
        self,
        memory_file: Path,
        *,
        listing: Callable[[str], Awaitable[Listing]] = list_runtime,
        trying: Callable[[str, str, str, Mapping[str, str]], Awaitable[Trial]] = try_pair,
    ) -> None:
        self._memory = _Memory(memory_file)
        self._list = listing
        self._try = trying
        self._listings: dict[str, Listing] = {}
        self._failed_once: set[_Pair] = set()

    async def choose(
        self, wanted: str, model_path: str, device: str, options: Mapping[str, str], *, may_try: bool = True
    ) -> Choice:
        """Return the runtime to use for a model that is compiled for the Edge TPU.

        `wanted` is one of `runtimes.RUNTIMES`, which is tried but never replaced, or "auto".
        `device` and `options` are what libedgetpu gets. No process may have that device open: it may be tried, unless
        `may_try` is false; then what is not known of a pair is `trouble`.
        """
        unusable: list[str] = []
        misfits: list[tuple[Listing, str]] = []
        for name in RUNTIMES if wanted == "auto" else (wanted,):
            listing = await self._look_at(name)
            if listing.problem:
                unusable.append(listing.problem)
                continue
            if listing.library is None:
                # The device is not to blame, and need not be touched.
                return Choice(name, problem=explain_failure(OSError(listing.library_problem), device, ()))
            pair = _Pair.of(listing, listing.library)
            trial = await asyncio.to_thread(self._memory.recall, pair) or _NOT_TRIED
            if trial is _NOT_TRIED and may_try:
                trial = await self._try_pair(pair, listing, model_path, device, options)
            if trial.verdict != "mismatch":
                _warn_of_misfits(misfits, listing)
                return Choice(name, trouble=trial.detail, hung=trial.hung)
            misfits.append((listing, trial.detail))
        if misfits:
            return Choice(misfits[0][0].runtime, problem=_no_fit(misfits))
        return Choice(wanted, problem=explain_unavailable(wanted, unusable))

    async def forget(self) -> None:
        """Look at all runtimes anew, and try again what did not fit: somebody may have mended it."""
        self._listings.clear()
        self._failed_once.clear()
        await asyncio.to_thread(self._memory.drop_misfits)

    async def _look_at(self, name: str) -> Listing:
        known = self._listings.get(name)
        if known is not None and known.library is not None and known.library.is_unchanged:
            return known
        found = await self._list(name)
        if found.library is not None:  # what is missing may be installed at any time
            self._listings[name] = found
        return found

    async def _try_pair(
        self, pair: _Pair, listing: Listing, model_path: str, device: str, options: Mapping[str, str]
    ) -> Trial:
        trial = await self._try(listing.runtime, model_path, device, options)
        if trial.verdict == "mismatch" and pair not in self._failed_once:
            self._failed_once.add(pair)
            log.warning("runtime failed with the Edge TPU's library, trying once more", **_facts(listing, trial))
            trial = await self._try(listing.runtime, model_path, device, options)
        if trial.verdict == "trouble":
            # A warning only if the worker, which tries it next, has no more luck.
            log.info("runtime could not be tried with the Edge TPU's library", **_facts(listing, trial))
            return trial
        log.info("runtime was tried with the Edge TPU's library", verdict=trial.verdict, **_facts(listing, trial))
        await asyncio.to_thread(self._memory.keep, _Verdict(pair, trial.detail))
        return trial


class _Memory:
    """The verdicts, newest last, in a small file of JSON. A file that cannot be used costs another try, no more."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._verdicts: list[_Verdict] | None = None

    def recall(self, pair: _Pair) -> Trial | None:
        """Return what is known of the pair."""
        mismatch = next((verdict.mismatch for verdict in self._read() if verdict.pair == pair), None)
        if mismatch is None:
            return None
        return Trial("mismatch", mismatch) if mismatch else Trial("works")

    def keep(self, verdict: _Verdict) -> None:
        """Add a verdict; the oldest goes when there are too many."""
        others = [known for known in self._read() if known.pair != verdict.pair]
        self._replace([*others, verdict][-MAX_PAIRS:])

    def drop_misfits(self) -> None:
        """Forget the pairs that did not fit."""
        fitting = [verdict for verdict in self._read() if not verdict.mismatch]
        if fitting != self._read():
            self._replace(fitting)

    def _read(self) -> list[_Verdict]:
        if self._verdicts is None:
            self._verdicts = self._read_file()
        return self._verdicts

    def _read_file(self) -> list[_Verdict]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[_Verdict])[-MAX_PAIRS:]
        except FileNotFoundError:
            return []
        except (OSError, ValueError) as error:
            log.warning("what was known of runtimes cannot be read", file=str(self._path), error=str(error))
            return []

    def _replace(self, verdicts: list[_Verdict]) -> None:
        self._verdicts = verdicts
        try:
            replace_file(self._path, msgspec.json.encode(verdicts))
        except OSError as error:
            log.warning("what is known of runtimes cannot be kept", file=str(self._path), error=str(error))


def _facts(listing: Listing, trial: Trial) -> dict[str, str]:
    facts = {"runtime": str(listing), "library": str(listing.library)}
    return facts | {"reason": trial.detail} if trial.detail else facts


def _warn_of_misfits(misfits: list[tuple[Listing, str]], instead: Listing) -> None:
    for listing, detail in misfits:
        log.warning(
            "runtime does not fit the Edge TPU's library", runtime=str(listing), reason=detail, instead=str(instead)
        )


def _no_fit(misfits: list[tuple[Listing, str]]) -> str:
    names = " and ".join(f"{listing} ({detail})" for listing, detail in misfits)
    verb = "does" if len(misfits) == 1 else "do"
    return f"{names} {verb} not get along with {misfits[0][0].library}; {GET_LIBRARY}"
