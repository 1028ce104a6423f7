"""HTML in small pieces: one self-contained page that reads on a phone and opens without a network."""

import base64
from collections.abc import Sequence

from library.plain_text import for_html as escape

STYLE = """
:root{color-scheme:light}*{box-sizing:border-box}
body{margin:0;font:16px/1.5 system-ui,sans-serif;color:#0f172a;background:#f8fafc}
main{max-width:1120px;margin:0 auto;padding:16px}
h1{font-size:1.35rem;margin:.2rem 0}h2{font-size:1.1rem;margin:2rem 0 .5rem}
p{margin:.4rem 0;max-width:75ch;overflow-wrap:anywhere}.small{font-size:.85rem;color:#475569}
.verdict{border-left:8px solid;border-radius:8px;padding:14px 16px;background:#fff}
.verdict b{display:block;font-size:1.3rem;line-height:1.3}
.leak{border-color:#b91c1c}.none{border-color:#1d4ed8}.invalid{border-color:#b45309}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:10px;margin:12px 0}
.fact,figure{background:#fff;border:1px solid #e2e8f0;border-radius:8px;padding:10px 12px}
.fact span{display:block;font-size:.8rem;color:#475569}.fact b{font-size:1.2rem;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(320px,100%),1fr));gap:12px}
figure{margin:0}figure img{width:100%;height:auto;display:block}figcaption{font-size:.85rem;color:#334155}
table{border-collapse:collapse;width:100%;background:#fff;font-size:.88rem}
th,td{text-align:left;padding:5px 8px;border-bottom:1px solid #e2e8f0;vertical-align:top;overflow-wrap:break-word}
th{font-size:.78rem;color:#475569}tr.main td{background:#fff7ed}
.pictures{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:10px}
.pictures div{background:#fff;border:1px solid #e2e8f0;border-radius:8px;padding:6px;font-size:.74rem}
.pictures div{overflow-wrap:anywhere}
.pictures img{width:100%;image-rendering:auto;display:block}
@media(max-width:760px){thead{display:none}tr{display:block;padding:6px 0;border-bottom:2px solid #cbd5e1}
td:first-child{font-weight:600}
td{display:flex;justify-content:space-between;gap:12px;border:0;padding:2px 8px;text-align:right}
td::before{content:attr(data-label);color:#475569;text-align:left;flex:0 0 42%}}
"""


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document."""
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n'
    )


def heading(text: str) -> str:
    """A section's title."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, small: bool = False) -> str:
    """Plain text."""
    return f"<p{' class=small' if small else ''}>{escape(text)}</p>"


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Boxes with a caption and a figure each."""
    boxes = "".join(
        f'<div class="fact"><span>{escape(name)}</span><b>{escape(value)}</b></div>' for name, value in pairs
    )
    return f'<div class="facts">{boxes}</div>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table that turns into cards on a phone."""
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(
            f'<td data-label="{escape(column)}">{escape(value)}</td>'
            for column, value in zip(columns, row, strict=True)
        )
        lines.append(f"<tr{' class=main' if place < len(marked) and marked[place] else ''}>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def figure(drawing: str, title: str, text: str) -> str:
    """An SVG drawing as a data URI with its caption."""
    data = base64.b64encode(drawing.encode()).decode()
    return (
        f'<figure><img alt="{escape(title)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption><b>{escape(title)}.</b> {escape(text)}</figcaption></figure>"
    )


def figures(drawings: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(drawings)}</div>'


def pictures(entries: Sequence[tuple[Sequence[str], str, str]]) -> str:
    """Thumbnails: (data URIs, file name, text)."""
    boxes = []
    for uris, name, text in entries:
        shown = "".join(f'<img alt="" src="{uri}">' for uri in uris)
        boxes.append(f"<div>{shown}<b>{escape(name)}</b><br>{escape(text)}</div>")
    return f'<div class="pictures">{"".join(boxes)}</div>'
