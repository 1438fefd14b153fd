"""The page of a report: its style, its script, and the pieces that sections are made of. It fetches nothing.

All text is escaped, and the page's own policy allows neither scripts of others nor any connection: answers of a model
and names of files may hold anything.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

JPEG_QUALITY = 82

_STYLE = """
:root { --ink: #1c2126; --pale: #66707a; --line: #d9dee3; --paper: #fff; --panel: #f5f7f9; --accent: #0b63ce;
  --right: #14803c; --wrong: #c22f2f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --pale: #9aa4ae; --line: #39424b; --paper: #14181c;
  --panel: #1d2328; --accent: #6aa9ff; --right: #4cc27a; --wrong: #ff7b7b; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 24px 20px 80px; color: var(--ink); background: var(--paper);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 20px; margin: 44px 0 8px; } h3 { font-size: 15px; }
.pale { color: var(--pale); } .right { color: var(--right); } .wrong { color: var(--wrong); }
table { border-collapse: collapse; margin: 8px 0 16px; } .scroll { overflow-x: auto; }
th, td { text-align: right; padding: 4px 12px 4px 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { color: var(--pale); font-weight: 500; } th:first-child, td:first-child { text-align: left; }
.scores td, .scores th { white-space: normal; text-align: left; vertical-align: top; padding-right: 24px; }
.columns { display: flex; flex-wrap: wrap; gap: 8px 48px; align-items: flex-start; }
summary { cursor: pointer; color: var(--accent); }
nav { position: sticky; top: 0; background: var(--paper); padding: 8px 0; z-index: 1; }
button { font: inherit; color: var(--ink); background: var(--panel); border: 1px solid var(--line); border-radius: 6px;
  padding: 2px 10px; margin: 0 4px 4px 0; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); border-color: var(--accent); color: var(--paper); }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(420px, 100%), 1fr)); gap: 14px; }
.card { background: var(--panel); border: 1px solid var(--line); border-radius: 8px; padding: 10px; overflow: hidden; }
.card p { margin: 4px 0; overflow-wrap: anywhere; white-space: pre-line; } .card[hidden] { display: none; }
.images { display: flex; gap: 6px; } figure { margin: 0; flex: 1 1 0; min-width: 0; }
figure img { width: 100%; border-radius: 4px; display: block; } figcaption { font-size: 12px; color: var(--pale); }
svg text { fill: var(--pale); font-size: 11px; } svg rect { fill: var(--accent); }
"""

_SCRIPT = """
for (const section of document.querySelectorAll("section")) {
  const buttons = section.querySelectorAll("button"), cards = section.querySelectorAll(".card");
  const show = chosen => {
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.set === chosen);
    for (const card of cards) card.hidden = !JSON.parse(card.dataset.sets).includes(chosen);
  };
  for (const button of buttons) button.addEventListener("click", () => show(button.dataset.set));
  if (buttons.length) show(buttons[0].dataset.set);
}
"""


def page(title: str, body: str) -> str:
    """The whole document around `body`, which is HTML."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
{body}
<script>{_SCRIPT}</script>
</body>
</html>
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; all cells are texts."""
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    inner = "\n".join(f"<tr>{line}</tr>" for line in lines)
    return f'<div class="scroll"><table>\n{inner}\n</table></div>'


def details(summary: str, inner: str) -> str:
    """A part that opens on a click; `inner` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inner}</details>"


def listing(lines: Sequence[tuple[str, str]]) -> str:
    """A list of terms and what they mean, both texts."""
    items = "".join(f"<li><b>{escape(term)}</b>: {escape(text)}</li>" for term, text in lines)
    return f"<ul>{items}</ul>"


def figure(image: Image.Image, caption: str) -> str:
    """An image, as a JPEG within the page, above its caption."""
    file = io.BytesIO()
    image.convert("RGB").save(file, "JPEG", quality=JPEG_QUALITY)
    code = base64.b64encode(file.getvalue()).decode()
    caption = escape(caption)
    shown = f'<img src="data:image/jpeg;base64,{code}" alt="{caption}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"


def bars(counts: Sequence[int], labels: Sequence[str], what: str) -> str:
    """A bar chart of some counts, each with its label below; `what` it shows is read out to who cannot see it."""
    width, height, top = 30, 90, max([*counts, 1])
    parts = []
    for i, (count, label) in enumerate(zip(counts, labels, strict=True)):
        tall = round(height * count / top)
        parts.append(f'<rect x="{i * width}" y="{height - tall + 14}" width="{width - 3}" height="{tall}"></rect>')
        middle = f'x="{i * width + (width - 3) / 2}" text-anchor="middle"'
        parts.append(f'<text {middle} y="{height - tall + 10}">{count}</text>')
        parts.append(f'<text {middle} y="{height + 28}">{escape(label)}</text>')
    size = f'width="{len(counts) * width}" height="{height + 34}"'
    return f'<svg {size} role="img" aria-label="{escape(what)}">{"".join(parts)}</svg>'
