"""Loads of experts from router.f16: one record, one expert's past, files cut or missing."""

import numpy as np
import pytest

from harness.errors import RunError
from harness.loads import MAX_HISTORY, Shape, read_history, read_loads
from nmoe.paths import RunFolder

SHAPE = Shape(num_layers=2, num_experts=4)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(root=tmp_path)


def write(folder, num, shape=SHAPE):
    """Records whose loads tell record, layer and expert apart."""
    record, layer, expert = np.indices((num, shape.num_layers, shape.num_experts))
    share = (record % 7 + layer * 0.25 + expert * 0.0625) / 16
    folder.router.write_bytes(share.astype("<f2").tobytes())
    return share * shape.num_experts


def test_record_is_load_over_an_even_share(folder):
    written = write(folder, 5)

    np.testing.assert_allclose(read_loads(folder, SHAPE, 3), written[3], rtol=1e-3)


def test_history_is_of_one_expert_up_to_the_record(folder):
    written = write(folder, 20)
    records, values = read_history(folder, SHAPE, 9, layer=1, expert=2)

    assert records.tolist() == list(range(10))
    np.testing.assert_allclose(values, written[:10, 1, 2], rtol=1e-3)


def test_history_is_thinned_when_there_are_many_records(folder):
    write(folder, 5000)
    records, values = read_history(folder, SHAPE, 4999, layer=0, expert=0)

    assert len(records) == len(values) <= MAX_HISTORY
    assert (records[0], records[-1]) == (0, 4999)


@pytest.mark.parametrize("record", [5, -1, 10**9])
def test_record_that_is_not_there_is_refused(folder, record):
    write(folder, 5)

    with pytest.raises(RunError, match="ends before record"):
        read_loads(folder, SHAPE, record)


def test_missing_file_is_refused_and_has_no_history(folder):
    with pytest.raises(RunError, match="no loads of experts"):
        read_loads(folder, SHAPE, 0)
    records, values = read_history(folder, SHAPE, 3, layer=0, expert=0)
    assert (len(records), len(values)) == (0, 0)


def test_torn_record_is_left_out_of_the_history(folder):
    write(folder, 4)
    data = folder.router.read_bytes()
    folder.router.write_bytes(data[: 3 * SHAPE.num_bytes + 1])

    assert read_history(folder, SHAPE, 3, layer=1, expert=3)[0].tolist() == [0, 1, 2]
