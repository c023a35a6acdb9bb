from edge_agent.telemetry.queue.losses import Ledger, Loss


def test_losses_of_one_cause_are_one_entry() -> None:
    ledger = Ledger([Loss("expired", 1, 5, 6), Loss("damaged", 2, 1, 2), Loss("expired", 3, 4, 5)])
    assert ledger.entries() == [Loss("expired", 4, 4, 6), Loss("damaged", 2, 1, 2)]


def test_only_what_was_reported_is_struck_off() -> None:
    ledger = Ledger([Loss("expired", 5, 1, 9), Loss("damaged", 2, 1, 2)])
    ledger.subtract([Loss("expired", 3, 1, 4), Loss("damaged", 2, 1, 2), Loss("unknown", 1, 1, 1)])
    assert ledger.entries() == [Loss("expired", 2, 1, 9)]
    assert ledger == Ledger([Loss("expired", 2, 1, 9)])
