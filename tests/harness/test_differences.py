"""Differences of plans: only what differs, by key, and nothing that is each run's own."""

from dataclasses import replace

from harness.differences import differences
from nmoe.config import Hardware
from tests.harness.finished_run import make_plan

PLAN = make_plan("a-1")


def keys(*plans):
    return [each.key for each in differences(plans)]


def test_same_plans_differ_in_nothing_though_ids_and_times_do():
    other = make_plan("b-2", created="2027-01-01T00:00:00+00:00", choice="another")

    assert differences([PLAN, other]) == ()


def test_values_stand_by_key_in_the_order_of_the_plans():
    other = replace(PLAN, train=replace(PLAN.train, seed=7), dtype="bf16")
    third = replace(PLAN, hardware=Hardware(cpu="Some CPU", cores=64))
    found = {each.key: each.values for each in differences([PLAN, other, third])}

    assert found == {
        "train.seed": ("1337", "7", "1337"),
        "dtype": ("fp32", "bf16", "fp32"),
        "hardware.cores": ("2", "2", "64"),
    }


def test_key_that_one_plan_lacks_is_none():
    other = replace(PLAN, versions={"python": "3.11.7"})

    (found,) = differences([PLAN, other])

    assert (found.key, found.values) == ("versions.torch", ("2.13.0", "none"))


def test_unknown_value_is_none_and_one_plan_has_no_differences():
    assert keys(PLAN, replace(PLAN, digests=replace(PLAN.digests, commit=None))) == [
        "digests.commit"
    ]
    assert keys(PLAN) == []
