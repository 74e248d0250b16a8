"""Charts as SVG: what is drawn of the numbers, and that nothing else can get in."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import svg

NS = "{http://www.w3.org/2000/svg}"
NAN = math.nan


def chart(points, **changes):
    values = {
        "title": "t", "x_label": "step", "y_label": "loss",
        "lines": (svg.Line("training", points, "mean"),),
    }  # fmt: skip
    return svg.Chart(**(values | changes))


def parsed(**changes):
    return ElementTree.fromstring(svg.document(chart(**changes)))


def texts(tree):
    return ["".join(each.itertext()) for each in tree.iter(f"{NS}text")]


def path_of(points, **changes):
    tree = parsed(points=points, **changes)
    return next(each.get("d") for each in tree.iter(f"{NS}path"))


def places(path):
    return [tuple(map(float, pair)) for pair in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


def test_curve_goes_through_its_points_from_left_to_right_and_down():
    found = places(path_of([(0, 4.0), (50, 3.0), (100, 2.0)]))
    assert [x for x, _ in found] == [0.0, svg.INNER / 2, svg.INNER]
    (_, top), (_, middle), (_, bottom) = found
    assert top < middle < bottom
    assert middle - top == pytest.approx(bottom - middle, abs=0.2)


def test_what_is_not_finite_breaks_the_curve_and_is_not_drawn():
    path = path_of([(0, 3.0), (10, 2.5), (20, NAN), (30, math.inf), (40, 2.0), (50, 1.0)])
    assert re.sub(r"[^ML]", "", path) == "MLML"
    assert "nan" not in path
    assert "inf" not in path


@pytest.mark.parametrize("points", [[], [(0, NAN)], [(0, NAN), (1, math.inf)]])
def test_chart_without_a_finite_point_says_so(points):
    assert texts(parsed(points=points))[0] == "no data"


@pytest.mark.parametrize(
    "points", [[(0, 0.0)], [(5, 3.28)], [(0, 1.0), (0, 1.0)], [(0, 1e300), (1, -1e300)]]
)
def test_chart_of_hardly_anything_is_drawn(points):
    for x, y in places(path_of(points)):
        assert math.isfinite(x)
        assert math.isfinite(y)


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(NAN), min_size=1, max_size=3000),
    st.integers(1, 40),
)
def test_thinning_keeps_ends_extremes_and_breaks(values, columns):
    points = list(enumerate(values))
    kept = svg.thinned(points, columns, 0, max(1, len(values) - 1))
    assert len(kept) <= max(4 * columns, 5 * (columns + 1))
    assert kept == sorted(kept, key=lambda point: point[0])
    assert (kept[0][0], kept[-1][0]) == (points[0][0], points[-1][0])
    finite = [value for value in values if math.isfinite(value)]
    shown = [value for _, value in kept if math.isfinite(value)]
    if finite:
        assert (min(shown), max(shown)) == (min(finite), max(finite))
    assert any(map(math.isnan, values)) == any(math.isnan(value) for _, value in kept)


@given(st.floats(-1e9, 1e9), st.floats(1e-9, 1e9))
def test_ticks_are_few_and_within_their_range(low, span):
    found = svg.ticks(low, low + span)
    assert 1 <= len(found) <= svg.MAX_TICKS + 1 or low + span == low
    room = span * 1e-6 + abs(low) * 1e-12
    assert all(low - room <= tick <= low + span + room for tick in found)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (3.1, 4.4, [3.5, 4.0]),
        (0, 4864, [0, 1000, 2000, 3000, 4000]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert svg.ticks(low, high) == pytest.approx(expected)


def test_labels_tell_neighbours_apart():
    tree = parsed(points=[(0, 3.281), (10, 3.279)])
    labels = [text for text in texts(tree) if text.startswith("3.")]
    assert len(labels) == len(set(labels)) >= 3


def test_beginning_is_cut_only_when_it_is_said():
    points = [(x, 11 * math.exp(-x / 8) + 3) for x in range(101)]
    cut = parsed(points=points, cuts_head=True)
    assert any("not shown" in text for text in texts(cut))
    assert not any("not shown" in text for text in texts(parsed(points=points)))


def test_target_is_drawn_even_where_the_curve_does_not_reach_it():
    tree = parsed(points=[(0, 9.0), (10, 8.0)], level=(3.28, "target 3.28"))
    (level,) = [each for each in tree.iter(f"{NS}line") if each.get("class") == "nx-target"
                and each.get("x2") == str(svg.INNER)]  # fmt: skip
    height = tree.find(f".//{NS}svg").get("height")
    assert 0 < float(level.get("y1")) < float(height)


def test_marks_are_drawn_where_they_happened():
    marks = (svg.Mark(50, "resume"), svg.Mark(100, "checkpoint"))
    tree = parsed(points=[(0, 2.0), (100, 1.0)], marks=marks)
    drawn = {each.get("class"): each for each in tree.find(f".//{NS}svg").iter(f"{NS}line")}
    assert float(drawn["nx-resume"].get("x1")) == svg.INNER / 2
    assert float(drawn["nx-checkpoint"].get("x1")) == svg.INNER
    assert {"resumed", "checkpoint"} <= set(texts(tree))


def test_text_stays_text():
    evil = '</text><script>alert(1)</script>" onload="alert(2)'
    values = {"title": evil, "x_label": evil, "y_label": evil, "level": (1.5, evil)}
    lines = (svg.Line(evil, [(0, 2.0), (10, 1.0)], "mean"),)
    for points in ([(0, 2.0)], []):
        text = svg.document(chart(points, **values, lines=lines))
        tree = ElementTree.fromstring(text)
        assert not list(tree.iter(f"{NS}script"))
        assert not any("onload" in each.attrib for each in tree.iter())
        assert tree.get("aria-label") == evil
    assert "http" not in re.sub(r'xmlns="[^"]+"', "", svg.document(chart([(0, 1.0)])))


def test_file_is_readable_on_light_and_dark_ground():
    """Every colour of text and curve against its ground, as WCAG counts contrast."""
    light, dark = (svg.STYLE).split("@media (prefers-color-scheme:dark)")
    grounds = re.findall(r"nx-ground\{fill:(#\w{6})\}", svg._GROUND)
    assert len(grounds) == 2
    for style, ground in zip((light, dark), grounds, strict=True):
        inks = dict(re.findall(r"\.nx (?:\.nx-)?([\w-]+)\{(?:fill|stroke):(#\w{6})", style))
        assert {"text", "plain", "raw", "val", "target", "grid"} <= set(inks)
        for name, ink in inks.items():
            least = {"grid": 1.1, "axis": 2.0, "raw": 1.5}.get(name, 3.0)
            assert contrast(ink, ground) >= (4.5 if "text" in name else least), (name, ground)


def contrast(one, other):
    def luminance(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
