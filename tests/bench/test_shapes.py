"""The shapes are those that the bars speak of; work is credited once."""

import pytest

from bench.shapes import SHAPES, TINY, shapes_for
from bench.warm import jobs

BY_NAME = {shape.name: shape for shape in SHAPES}


def test_flops_are_those_of_the_formula():
    s1 = BY_NAME["s1"]
    assert s1.flops("forward") == 6 * 65_536 * 7 * 768 * 384
    assert round(s1.flops("forward") / 1e9) == 812
    assert s1.flops("backward") == 12 * 65_536 * 7 * 768 * 384
    assert s1.flops("forward + backward") == 3 * s1.flops("forward")


def test_second_shape_has_the_rows_of_one_of_eight_ranks():
    assert {BY_NAME[name].choices for name in ("s2", "s2-zipf")} == {458_752}
    assert BY_NAME["s2-zipf"].zipf > 0 == BY_NAME["s2"].zipf


def test_names_choose_shapes_and_unknown_ones_are_refused():
    assert shapes_for("cpu") == TINY
    assert [shape.name for shape in shapes_for("cuda", "s5,s1")] == ["s1", "s5"]
    with pytest.raises(ValueError, match=r"got s9, expected some of s1, s2, "):
        shapes_for("cuda", "s1,s9")


def test_kernels_are_compiled_once_for_shapes_that_share_them():
    found = jobs(SHAPES, peers=SHAPES[:1])
    assert found[0] == ("compiled", SHAPES[0])
    names = [name for name, _ in found]
    assert names.count("up") == 3  # (768, 384), (768, 256), (2048, 768)
    assert names.count("sort") == 4  # 256, 32, 4096 experts of 7; 128 of 8
