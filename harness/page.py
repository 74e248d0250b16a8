"""Blocks of one self-contained HTML page: no script, nothing fetched, every text escaped."""

from collections.abc import Iterable, Sequence
from html import escape

from harness import svg
from harness.sheet import one_line

# The browser itself refuses to fetch or run anything, whatever a text should smuggle in.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root{color-scheme:light dark;--ink:#0f172a;--dim:#526075;--line:#dfe5ec;--ground:#fff;
--panel:#f6f8fa;--good:#15703a;--bad:#b42318;--warn:#97590a}
@media (prefers-color-scheme:dark){:root{--ink:#e8edf4;--dim:#a0abbb;--line:#2b3442;
--ground:#10151d;--panel:#171e29;--good:#4ade80;--bad:#ff8a80;--warn:#fbbf24}}
*{box-sizing:border-box}
body{margin:0;background:var(--ground);color:var(--ink);font:16px/1.5 system-ui,sans-serif;
overflow-wrap:anywhere}
main{max-width:62rem;margin:0 auto;padding:1.5rem 1rem 3rem}
h1{font-size:1.5rem;line-height:1.25;margin:0}
h2{font-size:1.15rem;margin:2.25rem 0 .6rem;padding-top:.9rem;border-top:1px solid var(--line)}
h3{font-size:1rem;margin:1.2rem 0 .3rem}
p{margin:.4rem 0}.dim{color:var(--dim)}.small{font-size:.9rem}
.status{font-weight:650;font-size:1.1rem}.good{color:var(--good)}.bad{color:var(--bad)}
.warn{color:var(--warn)}
dl{display:grid;grid-template-columns:minmax(7rem,13rem) 1fr;gap:.15rem 1rem;margin:.5rem 0}
dt{color:var(--dim)}dd{margin:0;font-variant-numeric:tabular-nums}
.wide{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.92rem;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem .25rem 0;text-align:left;vertical-align:top;
border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:600;white-space:nowrap}
.r{text-align:right}tfoot td{font-weight:650}
td{min-width:3.2rem}td:first-child{min-width:8.5rem}td.r{white-space:nowrap}
figure{margin:.8rem 0}figcaption{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.88rem;
color:var(--dim)}figcaption span{display:inline-flex;align-items:center;gap:.4rem}
figcaption .nx{width:26px;height:10px;flex:none}
pre,code{font:.88rem ui-monospace,monospace}code{background:var(--panel);padding:.1rem .3rem;
overflow-wrap:anywhere}
pre{background:var(--panel);padding:.7rem;overflow-x:auto;white-space:pre-wrap;
overflow-wrap:anywhere}
details{margin:.6rem 0}summary{cursor:pointer;color:var(--dim)}
ul{padding-left:1.2rem;margin:.3rem 0}
@media (max-width:560px){.nx text{font-size:22px}dl{grid-template-columns:1fr;gap:0}
dd{margin-bottom:.45rem}}
@media (min-width:700px){td:first-child{white-space:nowrap}}
@media print{details>*{display:block}}
"""


def page(title: str, *parts: str) -> str:
    """A whole document."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="referrer" content="no-referrer"><link rel="icon" href="data:,">'
        f"<title>{words(title)}</title><style>{_STYLE}{svg.STYLE}</style></head>\n"
        f"<body><main>{_joined(parts)}</main></body></html>\n"
    )


def words(text: object) -> str:
    """A text as it may stand anywhere in the page."""
    return escape(one_line(str(text)))


def section(title: str, *parts: str) -> str:
    """A heading and what is below it."""
    return f"<section><h2>{words(title)}</h2>{_joined(parts)}</section>"


def paragraph(text: object, kind: str = "") -> str:
    """A paragraph; `kind` names its classes."""
    return f'<p class="{kind}">{words(text)}</p>' if kind else f"<p>{words(text)}</p>"


def command(before: str, line: str) -> str:
    """A sentence and the command that it ends with."""
    return f"<p>{words(before)} <code>{words(line)}</code></p>"


def facts(rows: Iterable[tuple[str, object]]) -> str:
    """Names and values; what is None is left out, and so is a list of nothing."""
    known = [(name, value) for name, value in rows if value is not None]
    items = "".join(f"<dt>{words(name)}</dt><dd>{words(value)}</dd>" for name, value in known)
    return f"<dl>{items}</dl>" if known else ""


def table(
    head: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: str = "",
    foot: Sequence[object] | None = None,
) -> str:
    """A table that scrolls by itself when it is wider than the page; `right` as in Markdown."""
    sides = right.ljust(len(head))
    body = "".join(_row("td", row, sides) for row in rows)
    end = "" if foot is None else f"<tfoot>{_row('td', foot, sides)}</tfoot>"
    return (
        f'<div class="wide"><table><thead>{_row("th", head, sides)}</thead>'
        f"<tbody>{body}</tbody>{end}</table></div>"
    )


def figure(chart: svg.Chart, *, has_legend: bool = True) -> str:
    """A chart and its legend."""
    keys = svg.legend(chart) if has_legend else []
    names = "".join(f"<span>{sample}{words(name)}</span>" for sample, name in keys)
    caption = f"<figcaption>{names}</figcaption>" if names else ""
    return f"<figure>{svg.inline(chart)}{caption}</figure>"


def items(texts: Iterable[str]) -> str:
    """A list of sentences."""
    return f"<ul>{''.join(f'<li>{words(text)}</li>' for text in texts)}</ul>"


def lines(texts: Iterable[str]) -> str:
    """Lines as a program printed them."""
    return f"<pre>{escape(chr(10).join(map(one_line, texts)))}</pre>"


def details(title: str, *parts: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{words(title)}</summary>{_joined(parts)}</details>"


def _joined(parts: Iterable[str]) -> str:
    return "\n".join(filter(None, parts))


def _row(tag: str, cells: Sequence[object], sides: str) -> str:
    inner = "".join(
        f'<{tag} class="r">{words(cell)}</{tag}>'
        if side == "r"
        else f"<{tag}>{words(cell)}</{tag}>"
        for cell, side in zip(cells, sides, strict=True)
    )
    return f"<tr>{inner}</tr>"
