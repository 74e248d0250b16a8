"""Flows: quotas are met exactly, the order is smooth and a function of the position alone."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from nmoe.flow import Flow, FlowSource, Stage, apportion, deal, deal_counts

QUOTAS = st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any)


def flow_of(*stages: tuple[int, ...]) -> Flow:
    """A flow of stages with these quotas."""
    return Flow(
        profile="test",
        sources=tuple(
            FlowSource(name=f"s{i}", path=f"s{i}", digest="", windows=7)
            for i in range(len(stages[0]))
        ),
        stages=tuple(Stage(name=f"t{i}", quotas=quotas) for i, quotas in enumerate(stages)),
        digest="",
    )


def by_due_time(quotas: list[int]) -> list[int]:
    """The order as its definition says it, by sorting all windows of a stage."""
    k = len(quotas)
    due = [
        (Fraction(2 * k * j + 2 * i + 1, 2 * k * quota), i)
        for i, quota in enumerate(quotas)
        for j in range(quota)
    ]
    return [source for _, source in sorted(due)]


@given(quotas=QUOTAS, data=st.data())
def test_deal_is_the_order_of_the_due_times_from_any_position(
    quotas: list[int], data: st.DataObject
) -> None:
    whole = by_due_time(quotas)
    position = data.draw(st.integers(0, len(whole)))
    count = data.draw(st.integers(0, len(whole) - position))

    assert deal(quotas, position, count) == whole[position : position + count]
    assert deal_counts(quotas, position) == [whole[:position].count(i) for i in range(len(quotas))]


@given(quotas=QUOTAS)
def test_every_source_is_near_its_share_at_every_position(quotas: list[int]) -> None:
    order, total, k = deal(quotas, 0, sum(quotas)), sum(quotas), len(quotas)
    for i, quota in enumerate(quotas):
        for position in range(total + 1):
            ideal = position * quota / total
            assert abs(order[:position].count(i) - ideal) <= 1 + k / 2 * quota / total


def test_equal_sources_alternate_and_small_ones_are_spread() -> None:
    # A changed order makes every checkpoint resume wrongly: these are part of the format.
    assert deal([3, 3], 0, 6) == [0, 1, 0, 1, 0, 1]
    assert deal([5, 1, 1], 0, 7) == [0, 0, 0, 1, 0, 0, 2]
    small = [at for at, source in enumerate(deal([90] + [1] * 10, 0, 100)) if source]
    assert all(8 <= after - before <= 12 for before, after in zip(small, small[1:], strict=False))


def test_position_in_a_long_stage_is_found_at_once() -> None:
    quotas = [10**12 + 1, 7 * 10**11, 3]
    middle = sum(quotas) // 2

    assert sum(deal_counts(quotas, middle)) == middle
    assert deal_counts(quotas, middle)[2] in (1, 2)


@given(total=st.integers(0, 10**6), weights=QUOTAS)
def test_apportion_is_exact_and_within_one_of_the_share(total: int, weights: list[int]) -> None:
    shares = apportion(total, weights)

    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - Fraction(total * weight, sum(weights))) < 1


def test_apportion_gives_what_is_left_to_the_largest_remainders() -> None:
    assert apportion(10, [6, 3, 2]) == [5, 3, 2]  # 5.45, 2.73, 1.82
    assert apportion(2, [1, 1, 1]) == [1, 1, 0]


@given(data=st.data())
def test_flow_is_a_function_of_the_position(data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 4))
    quotas = st.tuples(*[st.integers(0, 9)] * width).filter(any)
    flow = flow_of(*data.draw(st.lists(quotas, min_size=1, max_size=4)))
    end = flow.ends[-1]
    whole = flow.take(0, end)
    position = data.draw(st.integers(0, end))
    count = data.draw(st.integers(0, end + 3))

    assert flow.take(position, count) == whole[position : position + count]
    assert flow.consumed(position) == [whole[:position].count(i) for i in range(width)]
    assert flow.consumed(end) == [
        sum(stage.quotas[i] for stage in flow.stages) for i in range(width)
    ]
