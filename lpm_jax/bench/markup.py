"""The frame of the reports: one HTML file that asks nobody for anything, for screens, phones and paper."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from lpm_jax.errors import InputError

STYLE = Path(__file__).with_name("report.css")
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


def page(title: str, lead: str, sections: Iterable[tuple[str, str, str]]) -> str:
    """``sections`` are (id, heading, HTML); empty ones are left out. ``lead`` is HTML, titles are text."""
    kept = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{escape(heading)}</a>' for key, heading, _ in kept)
    body = "".join(
        f'<section id="{key}" aria-labelledby="h-{key}"><h2 id="h-{key}">{escape(heading)}</h2>{html}</section>\n'
        for key, heading, html in kept
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{escape(title)}</title>'
        f"<style>{STYLE.read_text()}</style></head>\n<body>"
        f'<header><h1>{escape(title)}</h1>{lead}</header>\n<nav aria-label="Sections">{links}</nav>\n'
        f"<main>\n{body}</main></body></html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "", numbers: Iterable[int] = ()) -> str:
    """Cells are HTML, heads text. On a phone each row becomes a block and each cell carries its column's name. The
    first cell of a row is its head; ``numbers`` are the columns that are aligned to the right."""
    right = set(numbers)
    side = lambda i: ' class="n"' if i in right else ""  # noqa: E731
    head = "".join(f'<th scope="col"{side(i)}>{escape(text)}</th>' for i, text in enumerate(heads))
    lines = []
    for row in rows:
        cells = "".join(
            f'<td data-head="{escape(heads[i])}"{side(i)}><span>{cell}</span></td>'
            for i, cell in enumerate(row)
            if i > 0
        )
        lines.append(f'<tr><th scope="row">{row[0]}</th>{cells}</tr>')
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def note(text: str) -> str:
    return f'<p class="note">{text}</p>'


def check_page(path: str, option: str = "--out", endings: Sequence[str] = (".html",)) -> Path:
    """The path a page may be written to, or ``InputError``, before any work is done."""
    out = Path(path)
    if out.suffix.lower() not in endings:
        raise InputError(f"{option}: expected a name ending in {' or '.join(endings)}, found {path!r}")
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise InputError(f"{option}: expected a folder that can be written to, found {str(out.parent)!r}")
    if out.is_dir():
        raise InputError(f"{option}: expected a file, found a folder at {path!r}")
    return out


def write_page(path: Path, html: str) -> None:
    """Written aside and renamed."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        aside.write_text(html, encoding="utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
