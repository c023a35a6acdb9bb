"""Tries a model file in a throw-away process before the worker that is at work may touch it.

A damaged file can crash the runtime instead of raising. `python -m edge_agent.inference.checks.model_check FILE` builds
an interpreter and, unless the model needs an Edge TPU, runs it once on zeros; it prints a `Verdict` as JSON. The agent
imports this module too, so the runtime is imported only in the child.
"""

import sys

import msgspec

from edge_agent.inference.checks.throwaway import NoAnswerError, ask
from edge_agent.inference.child import child_environment, die_with_parent

MODULE = "edge_agent.inference.checks.model_check"
CHECK_DEADLINE = 60.0


class Verdict(msgspec.Struct, frozen=True):
    """Why the file cannot be used, or empty. `permanent`: trying the same file again is pointless."""

    reason: str = ""
    permanent: bool = False


async def check_model(path: str) -> Verdict:
    """Say whether the runtime gets along with the file."""
    try:
        return await ask(Verdict, MODULE, path, environment=child_environment(), timeout=CHECK_DEADLINE)
    except NoAnswerError as error:
        # A crash is the file's doing; being killed for memory or taking too long may be the machine's.
        return Verdict(f"its check {error}", permanent=error.crashed)


def main() -> None:
    """Check the file named on the command line."""
    die_with_parent()
    from edge_agent.inference.interpreter.model import try_file  # noqa: PLC0415  not in the agent's process
    from edge_agent.inference.refusal import ModelRefused  # noqa: PLC0415

    verdict = Verdict()
    try:
        try_file(sys.argv[1])
    except ModelRefused as refused:
        verdict = Verdict(str(refused), refused.permanent)
    sys.stdout.write(msgspec.json.encode(verdict).decode())


if __name__ == "__main__":
    main()
