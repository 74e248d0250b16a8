"""Queries over lists of runs: what each operator means, and what is refused."""

import math

import pytest

from harness import query
from harness.errors import UsageError
from harness.runs import Summary

RUNS = (
    Summary(run_id="super-1", status="failed", preset="super", dtype="fp8", val=3.4, step=100,
            machine="8xB200", attempt=1),
    Summary(run_id="super-2", status="done", preset="super", dtype="bf16", val=3.27, step=4864,
            machine="8xH100"),
    Summary(run_id="pocket-3", status="training", preset="pocket", dtype="fp32", val=None,
            machine="Some [CPU]"),
    Summary(run_id="pocket-4", status="diverged", preset="pocket", dtype="fp32", val=math.nan),
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "1234"),
        ("dtype:fp", "134"),
        ("dtype=fp8", "1"),
        ("dtype!=fp32", "12"),
        ("state=FAILED", "1"),
        ("val<3.3", "2"),
        ("val>=3.27", "12"),
        ("val!=1", "12"),
        ("val:3.4", "1"),
        ("step>0 dtype:f", "12"),
        ("attempt=2", "1"),
        ("super", "12"),
        ("SUPER h100", "2"),
        ("[cpu]", "3"),
        ("b200", "1"),
        ("hw:b200 state!=done val<4", "1"),
        ("nothing", ""),
        ("state=", ""),
    ],
)
def test_query_selects(text, found):
    assert "".join(run.run_id[-1] for run in query.select(RUNS, query.parse(text))) == found


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stat=failed", 'Did you mean "state"'),
        ("zzzzzz:1", "There are: id, state"),
        ("val<", "expected a number"),
        ("val:abc", "expected a number"),
        ("dtype<fp8", "dtype is a text"),
    ],
)
def test_query_is_refused_with_what_to_write(text, said):
    with pytest.raises(UsageError) as caught:
        query.parse(text)
    assert said in str(caught.value)
