"""Drawings of the widgets as text, kept in tests/data/drawings.

`python -m tests.tui.drawings` draws them anew, and git shows what changed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tests.conftest import REPO_ROOT
from tui.widgets.ascii import to_ascii
from tui.widgets.curve import Curve
from tui.widgets.figure import Chart, EventMark, View, Window, legend, readout, title
from tui.widgets.forecast import forecast
from tui.widgets.gpus import Gpu, draw_gpus
from tui.widgets.heatmap import HeatMap, draw_heatmap, hottest
from tui.widgets.meters import Share, share_legend, shares
from tui.widgets.plot import draw_chart
from tui.widgets.rows import Row, plain

FOLDER = REPO_ROOT / "tests" / "data" / "drawings"
# What a panel gets of 60x16, 80x24, 100x30, 160x48 and 240x67 cells, frames taken off.
SIZES = ((56, 8), (76, 13), (58, 18), (98, 30), (178, 48))
TARGET = 1.75


def curve(num: int = 1500, *, slower: float = 1.0) -> Curve:
    """A loss with a ripple that is the same each time, and a gap."""
    step = np.arange(1, num + 1) * 10.0
    y = 1.65 + 2.9 * np.exp(-step / 1400 / slower) + 0.9 * np.exp(-step / 9000 / slower)
    y += 0.06 * np.sin(step * 1.7) * np.cos(step * 0.013)
    y[700:712] = math.nan
    return Curve.of(y, {"step": step, "tokens": step * 1e6, "train": step / 2, "wall": step * 0.6})


def chart() -> Chart:
    """All that a chart can show."""
    steps = np.arange(1000.0, 15001.0, 1000.0)
    losses = 1.65 + 2.9 * np.exp(-steps / 1400) + 0.9 * np.exp(-steps / 9000)
    losses += 0.01 * np.sin(steps)
    return Chart(
        curve=curve(),
        ghost=curve(slower=1.25),
        mark_steps=steps,
        mark_values=losses,
        target=TARGET,
        forecast=forecast(steps.tolist(), losses.tolist(), TARGET, limit=60_000),
        events=(
            EventMark(step=5000, kind="checkpoint"),
            EventMark(step=6000, kind="resume"),
            EventMark(step=9000, kind="throttle"),
        ),
    )


def loads(num_layers: int, num_experts: int) -> HeatMap:
    """Loads that repeat, one hot expert, one dead, one layer not known."""
    layer, expert = np.indices((num_layers, num_experts))
    values = 1 + 0.5 * np.sin(expert * 0.7 + layer) * np.cos(expert * 0.05)
    values[num_layers // 2, num_experts // 3] = 9.0
    values[1, num_experts // 2] = 0.0
    values[-1] = math.nan
    return HeatMap(values_RC=values)


def gpus() -> tuple[Gpu, ...]:
    """Eight GPUs in all their states."""
    at_work = Gpu(
        index=0, rank=0, util=0.97, sm=0.81, tensor=0.62, memory_used_bytes=151 << 30,
        memory_total_bytes=180 << 30, power_w=998.0, power_limit_w=1000.0, temperature_c=71,
        sm_mhz=1920, throttle=0, nvlink_bytes_s=412e9,
    )  # fmt: skip
    every = [replace(at_work, index=i, rank=i) for i in range(8)]
    every[1] = replace(every[1], throttle=0x04)
    every[2] = replace(every[2], throttle=0x48, temperature_c=91)
    every[3] = replace(every[3], sm_mhz=1410, is_behind=True)
    every[4] = replace(every[4], util=0.0, power_w=90.0, temperature_c=30)
    every[5] = Gpu(index=5)
    every[6] = Gpu(index=6, is_lost=True)
    return tuple(every)


def _chart(charset: str, view: View) -> Callable[[int, int], list[str]]:
    def draw(width: int, height: int) -> list[str]:
        value = chart()
        below = readout(value, view, width) or legend(value, width)
        texts = [title(value, view), *_texts(draw_chart(value, width, height, view=view,
                 charset=charset)), plain(below)]  # fmt: skip
        return [to_ascii(text) for text in texts] if charset == "ascii" else texts

    return draw


def _heat(num_layers: int, num_experts: int, **options: bool) -> Callable[[int, int], list[str]]:
    def draw(width: int, height: int) -> list[str]:
        heat = loads(num_layers, num_experts)
        cursor = hottest(heat) if options.get("has_cursor") else None
        texts = _texts(draw_heatmap(heat, width, height, cursor=cursor))
        return [to_ascii(text) for text in texts] if options.get("is_ascii") else texts

    return draw


def _shares(width: int, _: int) -> list[str]:
    parts = [
        Share(name=name, amount=amount)
        for name, amount in (
            ("compute", 80), ("comm", 11), ("data", 0.2), ("val", 4), ("ckpt", 1), ("compile", 3.8)
        )
    ]  # fmt: skip
    return _texts([shares(parts, width), share_legend(parts, width)])


def _texts(rows: Sequence[Row]) -> list[str]:
    return [plain(row).rstrip() for row in rows]


_ZOOMED = View(axis="train", cursor=3500.0, window=Window(start=2500, stop=4500, is_anchored=False))
DRAWINGS: dict[str, Callable[[int, int], list[str]]] = {
    "chart": _chart("braille", View(decay=0.9)),
    "chart-raw-tokens": _chart("braille", View(decay=0.0, axis="tokens")),
    "chart-zoomed": _chart("braille", _ZOOMED),
    "chart-log-block": _chart("block", View(is_log=True, axis="wall")),
    "chart-ascii": _chart("ascii", View(decay=0.9)),
    "heat-2x8": _heat(2, 8),
    "heat-12x256": _heat(12, 256, has_cursor=True),
    "heat-24x4096": _heat(24, 4096),
    "heat-ascii": _heat(12, 256, is_ascii=True),
    "gpus": lambda w, h: _texts(draw_gpus(gpus(), w, h)),
    "gpus-ascii": lambda w, h: list(map(to_ascii, _texts(draw_gpus(gpus(), w, h)))),
    "shares": _shares,
}


def drawing(name: str) -> str:
    """One widget at all sizes."""
    parts: list[str] = []
    for width, height in SIZES:
        parts.append(f"{name} {width} x {height}")
        parts += DRAWINGS[name](width, height)
    return "\n".join(line.rstrip() for line in parts) + "\n"


def main() -> None:
    """Draw all of them into their files."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in DRAWINGS:
        (FOLDER / f"{name}.txt").write_text(drawing(name), encoding="utf-8")


if __name__ == "__main__":
    main()
