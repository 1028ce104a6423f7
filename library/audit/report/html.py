"""HTML in small pieces: one self-contained page for desk, phone, dark and paper, that opens without a network."""

import base64
import hashlib
import re
from collections.abc import Sequence

from library.audit.report.svg import dark_rules
from library.plain_text import for_html as escape

LIGHT = "--ink:#0f172a;--paper:#f8fafc;--card:#fff;--line:#e2e8f0;--soft:#475569;--mark:#fff7ed;--link:#1d4ed8"
DARK = "--ink:#e2e8f0;--paper:#0b1120;--card:#0f172a;--line:#334155;--soft:#a3b1c6;--mark:#3a2410;--link:#93c5fd"
STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}*{{box-sizing:border-box}}
body{{margin:0;font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}}
main{{max-width:1120px;margin:0 auto;padding:16px}}a{{color:var(--link)}}
h1{{font-size:1.35rem;margin:.2rem 0;overflow-wrap:anywhere}}h2{{font-size:1.1rem;margin:2rem 0 .5rem}}
p,dd,ol{{margin:.4rem 0;max-width:75ch;overflow-wrap:anywhere}}.small{{font-size:.85rem;color:var(--soft)}}
code{{font-family:ui-monospace,monospace;font-size:.9em;overflow-wrap:anywhere}}
.verdict{{border-left:8px solid;border-radius:8px;padding:14px 16px;background:var(--card)}}
.verdict b{{display:block;font-size:1.3rem;line-height:1.3}}.verdict h2{{margin:1rem 0 .2rem}}
.verdict ol{{padding-left:1.3rem}}
.leak{{border-color:#b91c1c}}.none{{border-color:#1d4ed8}}.invalid{{border-color:#b45309}}
nav{{display:flex;flex-wrap:wrap;gap:6px 14px;margin:14px 0;font-size:.9rem}}
nav a{{padding:5px 0}}
.facts{{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:10px;margin:12px 0}}
.fact,figure,.pictures>div{{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}}
.fact span{{display:block;font-size:.8rem;color:var(--soft)}}.fact b{{font-size:1rem;overflow-wrap:anywhere}}
@media(min-width:640px){{.fact.wide{{grid-column:span 2}}}}
.figures{{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(320px,100%),1fr));gap:12px}}
.figures{{align-items:start}}.figures.one{{grid-template-columns:minmax(0,1fr)}}
@media(min-width:640px){{.one figure{{display:grid;grid-template-columns:minmax(0,460px) 1fr;gap:16px}}}}
figure{{margin:0}}figcaption{{font-size:.85rem;overflow-wrap:anywhere}}
figure svg{{width:100%;max-width:460px;height:auto;display:block;margin:0 auto}}
svg text{{font-family:system-ui,sans-serif;fill:currentColor}}svg *{{stroke-linejoin:round;stroke-linecap:butt}}
table{{border-collapse:collapse;width:100%;background:var(--card);font-size:.88rem}}
th,td{{text-align:left;padding:5px 8px;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:break-word}}
th{{font-size:.78rem;color:var(--soft);overflow-wrap:normal}}tr.main td{{background:var(--mark)}}
td:first-child{{font-weight:600}}td:first-child,.two td{{overflow-wrap:anywhere}}
dt{{font-weight:600;margin-top:.6rem}}dd{{margin-left:0}}
.pictures{{display:grid;grid-template-columns:repeat(auto-fill,minmax(136px,1fr));gap:10px}}
.pictures>div{{font-size:.8rem;overflow-wrap:anywhere}}.pictures img{{width:100%;display:block}}
.pictures span{{display:block;color:var(--soft);font-size:.75rem}}
@media screen and (max-width:760px){{thead{{display:none}}
tr{{display:block;padding:6px 0;border-bottom:2px solid var(--line)}}
td{{display:flex;justify-content:space-between;gap:12px;border:0;padding:2px 8px;text-align:right}}
td::before{{content:attr(data-label);color:var(--soft);font-weight:400;text-align:left;flex:0 0 42%}}
td:first-child::before{{content:none}}td:first-child{{text-align:left}}
.two tr{{display:flex;gap:12px;justify-content:space-between}}
.two td{{display:block;min-width:0}}.two td::before{{content:none}}}}
@media screen and (prefers-color-scheme:dark){{:root{{{DARK}}}
.leak{{border-color:#f87171}}.none{{border-color:#60a5fa}}.invalid{{border-color:#fbbf24}}{dark_rules()}}}
@media print{{@page{{size:A4;margin:13mm}}:root{{color-scheme:light;font-size:9.5pt}}
body{{font-size:1rem;background:#fff}}main{{max-width:none;padding:0}}nav{{display:none}}
h2,h2+p{{break-after:avoid}}h2{{margin:1rem 0 .3rem}}figure,tr,.fact,.verdict,.pictures>div{{break-inside:avoid}}
p,dd,ol{{max-width:none}}table{{font-size:7.5pt}}th{{font-size:7pt}}th,td{{padding:2px 4px}}
.figures:not(.one){{grid-template-columns:repeat(2,1fr);gap:8px}}.facts{{grid-template-columns:repeat(4,1fr);gap:6px}}
figure svg{{max-width:300px}}.one figure{{display:grid;grid-template-columns:300px 1fr;gap:16px}}
.pictures{{grid-template-columns:repeat(6,1fr);gap:6px}}
dl{{columns:2}}dt{{break-after:avoid}}*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}}}
"""
LONG = 44  # letters of a figure that gets a box of two columns
IN_ONE_LINE = re.compile(r"(?<=,) (?=[^\[\]]*\])|(?<=<=) ")  # spaces of an interval, and of "<= 0.0001"
HEADING = re.compile(r'<h2 id="([\w-]+)">(.*?)</h2>')


def page(title: str, first: Sequence[str], parts: Sequence[str]) -> str:
    """A whole document; its policy lets it load nothing, and run nothing.

    Args:
        first: what stands above the list of contents.
    """
    allowed = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{allowed}'; base-uri 'none'; form-action 'none'"
    body = "\n".join([*first, contents(parts), *parts])
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f'<link rel="icon" href="data:,">\n<style>{STYLE}</style></head>\n<body><main>\n{body}\n</main></body></html>\n'
    )


def contents(parts: Sequence[str]) -> str:
    """Links to every heading of the parts."""
    found = [match for part in parts for match in HEADING.findall(part)]
    links = "".join(f'<a href="#{anchor}">{text}</a>' for anchor, text in found)
    return f'<nav aria-label="Contents">{links}</nav>'


def heading(text: str) -> str:
    """A section's title, with an anchor."""
    anchor = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f'<h2 id="{anchor}">{escape(text)}</h2>'


def rich(text: str) -> str:
    """Text with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def paragraph(text: str, small: bool = False) -> str:
    """Text with what stands between backticks as code."""
    return f"<p{' class=small' if small else ''}>{rich(text)}</p>"


def verdict(kind: str, headline: str, texts: Sequence[str], grounds: str, steps: Sequence[str]) -> str:
    """The box on the first screen.

    Args:
        kind: its class in the style sheet.
        texts: what was found, in everyday words.
        grounds: the same for a researcher.
        steps: what to do now.
    """
    said = "".join(paragraph(text) for text in texts)
    numbered = "".join(f"<li>{rich(step)}</li>" for step in steps)
    return (
        f'<section class="verdict {kind}"><b>{escape(headline)}</b>{said}'
        f"<h2>What to do now</h2><ol>{numbered}</ol>{paragraph(grounds, small=True)}</section>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Boxes with a caption and a figure each."""
    boxes = "".join(
        f'<div class="fact{" wide" * (len(value) > LONG)}"><span>{escape(name)}</span>'
        f"<b>{escape(unbroken(value))}</b></div>"
        for name, value in pairs
    )
    return f'<div class="facts">{boxes}</div>'


def unbroken(text: str) -> str:
    """Text whose intervals stay in one line."""
    return IN_ONE_LINE.sub("\N{NO-BREAK SPACE}", text)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[bool] = ()) -> str:
    """A table that turns into cards on a phone; the first column names the row."""
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    lines = []
    for place, row in enumerate(rows):
        cells = "".join(
            f'<td data-label="{escape(column)}">{escape(unbroken(value))}</td>'
            for column, value in zip(columns, row, strict=True)
        )
        lines.append(f"<tr{' class=main' if place < len(marked) and marked[place] else ''}>{cells}</tr>")
    kind = " class=two" if len(columns) == 2 else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def figure(drawing: str, title: str, text: str) -> str:
    """An ``<svg>`` element with its caption."""
    return f"<figure>{drawing}<figcaption><b>{escape(title)}.</b> {escape(text)}</figcaption></figure>"


def figures(drawings: Sequence[str]) -> str:
    """Figures side by side where there is room; one alone has its caption beside it."""
    return f'<div class="figures{" one" if len(drawings) == 1 else ""}">{"".join(drawings)}</div>'


def definitions(pairs: Sequence[tuple[str, str]]) -> str:
    """Words and what they mean."""
    return f"<dl>{''.join(f'<dt>{escape(word)}</dt><dd>{escape(text)}</dd>' for word, text in pairs)}</dl>"


def pictures(entries: Sequence[tuple[Sequence[tuple[str, str]], str, str]]) -> str:
    """Thumbnails: (label and data URI of each picture, file name, text)."""
    boxes = []
    for shown, name, text in entries:
        images = "".join(
            f'<span>{escape(label)}</span><img alt="{escape(f"{label}: {name}")}" src="{uri}">' for label, uri in shown
        )
        boxes.append(f"<div>{images}<b>{escape(name)}</b><br>{escape(text)}</div>")
    return f'<div class="pictures">{"".join(boxes)}</div>'
