"""A grid of characters with roles: painted in layers, read out as rows.

Legend: w x h cells.
"""

import numpy as np

from tui.widgets.ink import ROLES, Role
from tui.widgets.pyramid import Bools
from tui.widgets.raster import Codes
from tui.widgets.rows import Row

_BLANK = ord(" ")


class Canvas:
    """Blank at first; a layer covers what was painted before unless it is painted under."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._codes: Codes = np.full((height, width), _BLANK, dtype=np.uint32)
        self._roles = np.zeros((height, width), dtype=np.uint8)

    def layer(self, codes_hw: Codes, has_hw: Bools, role: Role) -> None:
        """Paint the cells of `codes_hw` that hold something."""
        self._codes = np.where(has_hw, codes_hw, self._codes)
        self._roles[has_hw] = ROLES.index(role)

    def under(self, y: int, text: str, role: Role, *, x: int = 0) -> None:
        """Paint a text on the blank cells of row `y` only."""
        self._text(y, text, role, x=x, is_under=True)

    def over(self, y: int, text: str, role: Role, *, x: int = 0) -> None:
        """Paint a text whatever is there."""
        self._text(y, text, role, x=x, is_under=False)

    def column(self, x: int, char: str, role: Role) -> None:
        """Paint the blank cells of a column."""
        if 0 <= x < self.width:
            blank = self._codes[:, x] == _BLANK
            self._codes[blank, x] = ord(char)
            self._roles[blank, x] = ROLES.index(role)

    def tint(self, x: int, y: int, role: Role) -> None:
        """Give a cell another role and leave its character."""
        self._roles[y, x] = ROLES.index(role)

    def _text(self, y: int, text: str, role: Role, *, x: int, is_under: bool) -> None:
        if not 0 <= y < self.height:
            return
        for at, char in enumerate(text, start=x):
            if 0 <= at < self.width and not (is_under and self._codes[y, at] != _BLANK):
                self._codes[y, at] = ord(char)
                self._roles[y, at] = ROLES.index(role)

    def rows(self) -> list[Row]:
        """Each row as spans of one role."""
        return [self._row(y) for y in range(self.height)]

    def _row(self, y: int) -> Row:
        roles_w = self._roles[y]
        cuts = [0, *(np.flatnonzero(np.diff(roles_w)) + 1).tolist(), self.width]
        text = self._codes[y].tobytes().decode("utf-32-le")
        return tuple(
            (text[start:stop], ROLES[int(roles_w[start])])
            for start, stop in zip(cuts[:-1], cuts[1:], strict=True)
            if stop > start
        )
