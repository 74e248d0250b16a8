"""What a drawing costs by the number of points, experts and GPUs: by columns, not by points.

`pytest bench/test_widgets.py --benchmark-enable`; the rows of one test differ only in numbers.
"""

from dataclasses import replace

import numpy as np
import pytest

from tests.tui.drawings import chart, gpus, loads
from tui.widgets.curve import Curve
from tui.widgets.figure import Chart, View
from tui.widgets.gpus import draw_gpus
from tui.widgets.heatmap import draw_heatmap
from tui.widgets.plot import draw_chart

SIZE = (98, 30)  # the chart of a screen of 160 x 48
POINTS = (500, 20_000, 2_000_000)


def long_chart(num: int) -> Chart:
    step = np.arange(1.0, num + 1)
    noise = np.random.default_rng(0).normal(size=num) * 0.05
    curve = Curve.of(2 + 3 * np.exp(-step / num * 6) + noise, {"step": step, "train": step / 2})
    return replace(chart(), curve=curve, ghost=None, forecast=None)


@pytest.mark.parametrize("num", POINTS)
@pytest.mark.parametrize("view", [View(decay=0.9), View(decay=0.9, is_log=True, axis="train")],
                         ids=["linear", "log"])  # fmt: skip
def test_chart(benchmark, num, view):
    value = long_chart(num)
    draw_chart(value, *SIZE, view=view)  # averages and logarithms are kept beside the points
    rows = benchmark(draw_chart, value, *SIZE, view=view)

    assert len(rows) == SIZE[1]


@pytest.mark.parametrize("num", POINTS)
def test_chart_after_ten_more_points(benchmark, num):
    value, view = long_chart(num), View(decay=0.9)
    draw_chart(value, *SIZE, view=view)
    more = np.full(10, 2.0)

    def grow_and_draw():
        value.curve.extend({"step": value.curve.stop("step") + np.arange(1.0, 11.0)}, more)
        return draw_chart(value, *SIZE, view=view)

    assert len(benchmark(grow_and_draw)) == SIZE[1]


@pytest.mark.parametrize(("layers", "experts"), [(2, 8), (12, 256), (24, 4096)])
def test_heat_map(benchmark, layers, experts):
    assert benchmark(draw_heatmap, loads(layers, experts), *SIZE)


def test_gpu_table(benchmark):
    assert benchmark(draw_gpus, gpus(), 158, 12)
