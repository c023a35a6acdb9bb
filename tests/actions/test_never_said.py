"""Labels of rules that no model would ever say."""

import pytest

from edge_agent.actions.never_said import never_said
from edge_agent.actions.rules import Rule


def rule(*labels: str) -> Rule:
    return Rule(name="pump", run=("true",), labels=frozenset(labels))


@pytest.mark.parametrize(
    ("labels", "instead"),
    [
        (("normal", "failure"), 'did you mean "failure"?'),
        (("cat", "dog"), 'it says "cat", "dog"'),
        (tuple("abcdefg"), 'it says "a", "b", "c", "d", "e" and 2 more'),
    ],
)
def test_a_slip_is_told_with_what_the_model_says(labels: tuple[str, ...], instead: str) -> None:
    assert never_said((rule("failur"),), labels) == (
        f'action "pump" waits for "failur", which the model never says; {instead}',
    )


def test_each_label_of_a_list_counts() -> None:
    sentences = never_said((rule("cat", "dgo", "brid"), rule("dog"), rule()), ("cat", "dog", "bird"))
    assert [sentence.split(",")[0] for sentence in sentences] == [
        'action "pump" waits for "brid"',
        'action "pump" waits for "dgo"',
    ]


def test_nothing_is_said_of_a_model_whose_labels_nobody_knows() -> None:
    assert never_said((rule("failur"),), None) == ()
