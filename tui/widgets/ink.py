"""What a role looks like: looked up in the theme once, whatever the number of panels.

Colours are those of the theme, faint ones blended into its background; a terminal's own colours
cannot be blended and are dimmed instead. Those of heat maps are fixed.
"""

from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from rich.style import Style
from textual.app import App
from textual.color import Color

Role: TypeAlias = Literal[
    "text",
    "strong",
    "dim",
    "faint",
    "accent",
    "good",
    "warn",
    "bad",
    "line",
    "mark",
    "ghost",
    "cursor",
    "chosen",
    "heat1",
    "heat2",
    "heat3",
    "heat4",
    "heat5",
    "heat6",
]
ROLES: tuple[Role, ...] = get_args(Role)


class Ink(NamedTuple):
    """A colour by its name in the theme or its hex digits, how much of it, and the letters."""

    color: str = "foreground"
    strength: float = 1.0
    is_bold: bool = False
    is_reversed: bool = False
    ground: str = ""


_INKS: dict[Role, Ink] = {
    "text": Ink(),
    "strong": Ink(is_bold=True),
    "dim": Ink(strength=0.65),
    "faint": Ink(strength=0.32),
    "accent": Ink("primary-lighten-2", is_bold=True),
    "good": Ink("success", is_bold=True),
    "warn": Ink("warning", is_bold=True),
    "bad": Ink("error", is_bold=True),
    "line": Ink("primary-lighten-2"),
    "mark": Ink("warning", is_bold=True),
    "ghost": Ink("#cc79a7"),
    "cursor": Ink(is_bold=True, is_reversed=True),
    "chosen": Ink(is_bold=True, ground="primary"),
    "heat1": Ink("#52439a"),
    "heat2": Ink("#365c8d"),
    "heat3": Ink("#277f8e"),
    "heat4": Ink("#1fa187"),
    "heat5": Ink("#a0da39"),
    "heat6": Ink("#fde725"),
}
_GROUND_STRENGTH = 0.35
_known: dict[tuple[str, str, str], dict[Role, Style]] = {}


def styles(app: App[Any]) -> dict[Role, Style]:
    """The style of every role in the app's theme."""
    theme = app.theme_variables
    key = (app.theme, theme["foreground"], theme["background"])
    if key not in _known:
        _known[key] = {role: _style(ink, theme) for role, ink in _INKS.items()}
    return _known[key]


def _style(ink: Ink, theme: dict[str, str]) -> Style:
    color = Color.parse(theme.get(ink.color, ink.color))
    background = Color.parse(theme["background"])
    can_blend = color.ansi is None and background.ansi is None
    is_faint = ink.strength < 1
    if is_faint and can_blend:
        color = background.blend(color, ink.strength)
    ground = None
    if ink.ground and can_blend:
        ground = background.blend(Color.parse(theme[ink.ground]), _GROUND_STRENGTH).rich_color
    return Style(
        color=color.rich_color,
        bgcolor=ground,
        bold=ink.is_bold or None,
        dim=(is_faint and not can_blend) or None,
        reverse=(ink.is_reversed or bool(ink.ground and not can_blend)) or None,
    )
