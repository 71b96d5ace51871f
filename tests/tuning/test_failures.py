"""Which losses cost a trial something."""

import pytest

from cdn_tune.tuning.study.failures import NODES_IN_A_ROW, Retries


def test_a_workers_death_is_forgiven_so_often_and_no_more() -> None:
    retries = Retries(max_failures=2)
    assert [retries.may_go_on(3, "worker") for _ in range(3)] == [True, True, False]
    assert retries.may_go_on(4, "worker")  # each trial for itself
    assert not Retries(max_failures=0).may_go_on(0, "worker")


@pytest.mark.parametrize("kind", ["node", "unfit", "recalled"])
def test_a_lost_place_costs_nothing(kind: str) -> None:
    retries = Retries(max_failures=0)
    assert all(retries.may_go_on(0, kind) for _ in range(NODES_IN_A_ROW - 1))
    assert not retries.may_go_on(0, "worker")


def test_a_trial_that_takes_node_after_node_with_it_fails() -> None:
    retries = Retries(max_failures=0)
    for epoch in range(1, 50):  # one that gets on is not to blame
        retries.reported(0, epoch)
        assert retries.may_go_on(0, "node")
    for _ in range(NODES_IN_A_ROW - 2):
        retries.reported(0, 1)  # reported again by a process that takes it up: no progress
        assert retries.may_go_on(0, "node")
    assert not retries.may_go_on(0, "node")
