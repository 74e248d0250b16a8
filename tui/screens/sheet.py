"""What leaves the screen: in which formats, and what fits the clipboard."""

from typing import Literal, TypeAlias

Format: TypeAlias = Literal["csv", "json", "svg", "txt"]
FORMATS: tuple[Format, ...] = ("csv", "json", "svg", "txt")
# Terminals take some 100 kB of base64 in one sequence; tmux and xterm cut what is longer.
MAX_CLIPBOARD_BYTES = 74_000
# Terminals that are known not to read the sequence for the clipboard.
DUMB = ("", "dumb", "linux", "vt100", "vt220", "unknown")


def fits_clipboard(text: str, terminal: str) -> bool:
    """Whether a terminal of this kind ($TERM) takes the text."""
    return terminal not in DUMB and len(text.encode()) <= MAX_CLIPBOARD_BYTES
