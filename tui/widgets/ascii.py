"""The same text in plain ASCII, a cell for a cell: every glyph of ours has a character of its own.

Text from outside keeps what is ASCII; the rest of it becomes `?`.
"""

from typing import Literal, TypeAlias

from rich.cells import cell_len

# What curves are drawn with.
Charset: TypeAlias = Literal["braille", "block", "ascii"]

_PAIRS = {
    # the sixteen states
    "∅": "0", "○": "o", "…": ".", "▤": "=", "▲": "^", "⚙": "&", "●": "*", "◆": "@", "◌": "u",
    "▣": "#", "✔": "+", "✘": "x", "✖": "X", "⚡": "! ", "⏳": "z ", "≋": "~",
    # charts
    "◇": "<", "×": "%", "╌": "-", "═": "=", "┊": ":", "│": "|", "┤": "+", "└": "+", "┬": "+",
    "─": "-", "↻": "R", "▾": "v", "┄": "~",
    # meters and maps
    "━": "=", "·": ".", "░": "-", "▒": "+", "▓": "*", "█": "#", "▁": ".", "▂": ":", "▃": "-",
    "▄": "=", "▅": "+", "▆": "*", "▇": "#", "▏": " ", "▎": " ", "▍": "-", "▌": "-", "▋": "=",
    "▊": "=", "▉": "#",
    # words
    "–": "-", "→": ">", "±": "+", "°": " ", "µ": "u", "≥": ">", "▚": "/",
    "←": "<", "↑": "^", "↓": "v", "◐": "c",
}  # fmt: skip
_TABLE = str.maketrans(_PAIRS)


def to_ascii(text: str) -> str:
    """The text with as many cells, in ASCII."""
    text = text.translate(_TABLE)
    if text.isascii():
        return text
    return "".join(char if char.isascii() else "?" * cell_len(char) for char in text)
