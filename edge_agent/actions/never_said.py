"""Finds labels that rules wait for, and that the model in use never says: such a rule would wait for ever."""

import functools
from collections.abc import Sequence

from edge_agent.actions.rules import Rule
from edge_agent.settings.showing import show

_SHOWN = 5


@functools.lru_cache(maxsize=2)
def never_said(rules: tuple[Rule, ...], labels: tuple[str, ...] | None) -> Sequence[str]:
    """Return a sentence for each label of a rule that is none of `labels`; nothing where these are not known."""
    if labels is None:
        return ()
    known = frozenset(labels)
    return tuple(
        f"action {show(rule.name)} waits for {show(label)}, which the model never says; {_instead(label, labels)}"
        for rule in rules
        for label in sorted(rule.labels - known)
    )


def _instead(label: str, labels: tuple[str, ...]) -> str:
    import difflib  # noqa: PLC0415  only for whoever has made a slip

    near = difflib.get_close_matches(label, labels, n=1)
    if near:
        return f"did you mean {show(near[0])}?"
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return f"it says {', '.join(map(show, labels[:_SHOWN]))}{more}"
