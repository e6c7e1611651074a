"""Builds report.html: one file with text, tables, pictures and audio that needs no network."""

import base64
import html
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from etude.report.files import write_atomically

MIME_TYPES = {".png": "image/png", ".wav": "audio/wav", ".mp3": "audio/mpeg", ".flac": "audio/flac"}
SHARES = ("p", "OA", "overlap")  # what the names of columns end with that hold numbers from 0 to 1
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
IMAGE_SUFFIXES, AUDIO_SUFFIXES = (".png",), (".wav", ".mp3", ".flac")

STYLE = """
:root { color-scheme: light dark; --ink: #1d2126; --soft: #5b6470; --paper: #fdfdfb; --line: #d9dce0; --band: #f2f3f1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6e8; --soft: #9aa3ad; --paper: #17191c; --line: #353a40; --band: #1f2226; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 17px/1.55 system-ui, -apple-system, "Segoe UI",
  Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1, h2, h3 { line-height: 1.2; text-wrap: balance; }
h1 { font-size: 2rem; margin: 0 0 1.5rem; }
h2 { font-size: 1.4rem; margin: 2.75rem 0 .75rem; padding-top: 1rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p { max-width: 42rem; margin: .6rem 0; white-space: pre-line; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 20rem; }
caption { text-align: left; color: var(--soft); padding-bottom: .4rem; }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; border-bottom: 2px solid var(--line); }
tbody tr:nth-child(even) { background: var(--band); }
th.number, td.number { text-align: right; white-space: nowrap; }
figure { margin: 1.25rem 0; }
figure img { max-width: 100%; height: auto; border-radius: 4px; background: #fff; }
figure audio { width: 100%; max-width: 42rem; display: block; }
figcaption { color: var(--soft); font-size: .9rem; margin-top: .3rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.1rem; margin: 0 0 1.5rem; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
dd:nth-of-type(2) { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .85rem; }
details { margin: 1rem 0; }
summary { cursor: pointer; color: var(--soft); }
a { color: inherit; text-underline-offset: .15em; }
pre { background: var(--band); padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; border-radius: 4px; }
"""
SECURITY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class Report:
    """Builds an HTML file that contains all its text, tables, pictures and audio, without scripts.

    Parts appear in the order of the calls. Each method returns the report, so calls can be chained. All text is escaped.

    Args:
        title: the heading and the title of the window.
    """

    def __init__(self, title: str):
        self.title = title
        self._parts: list[str] = []

    def heading(self, text: str, *, level: int = 2) -> "Report":
        """Starts a section (level 2) or a subsection (level 3)."""
        if level not in (2, 3):
            raise ValueError(f"level={level} is not a heading of a report; give 2 (section) or 3 (subsection)")
        return self._add(f"<h{level}>{escape(text)}</h{level}>")

    def text(self, text: str) -> "Report":
        """Adds a paragraph; line breaks are kept."""
        return self._add(f"<p>{escape(text)}</p>")

    def code(self, text: str) -> "Report":
        """Adds preformatted text, such as a command or a configuration."""
        return self._add(f"<pre>{escape(text)}</pre>")

    def facts(self, pairs: Sequence[tuple[str, object]]) -> "Report":
        """Add a list of (what, value) pairs, such as the run's name and its command."""
        rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(format_cell(value))}</dd>" for name, value in pairs)
        return self._add(f"<dl>{rows}</dl>")

    def details(self, summary: str, text: str) -> "Report":
        """Add preformatted text that is folded away until the reader opens it."""
        return self._add(f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>")

    def extend(self, other: "Report") -> "Report":
        """Add all parts of another report; its title is left out."""
        self._parts += other._parts
        return self

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], *, caption: str = "") -> "Report":
        """Adds a table; numbers are right-aligned and written as `format_cell` does.

        Raises:
            ValueError: a row has another number of cells than `columns`.
        """
        for number, row in enumerate(rows):
            if len(row) != len(columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(columns)} columns; give one per column")
        plain: Callable[[object], str] = str
        formats = [format_share if column.split(" ")[-1] in SHARES else format_cell for column in columns]
        numeric = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(columns))]

        def cells(tag: str, values: Sequence[object]) -> str:
            return "".join(
                f"<{tag}{' class=number' if right else ''}>{escape(show(value))}</{tag}>"
                for value, right, show in zip(values, numeric, [plain] * len(columns) if tag == "th" else formats, strict=True)
            )

        head, body = cells("th", columns), "".join(f"<tr>{cells('td', row)}</tr>\n" for row in rows)
        title = f"<caption>{escape(caption)}</caption>" if caption else ""
        content = f"{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>"
        return self._add(f"<div class=scroll><table>{content}</table></div>")

    def links(self, targets: Sequence[tuple[str, str]]) -> "Report":
        """Adds a line of links to files; each target is (path relative to the report, text)."""
        found = " · ".join(f'<a href="{escape(quote(target))}">{escape(text)}</a>' for target, text in targets)
        return self._add(f"<p>{found}</p>")

    def image(self, source: Path | bytes, *, caption: str = "", alt: str = "") -> "Report":
        """Adds a PNG picture, given as a path or as bytes; `alt` describes it (default: the caption)."""
        data = data_uri(source, allowed=IMAGE_SUFFIXES)
        return self._figure(f'<img src="{data}" alt="{escape(alt or caption)}">', caption)

    def audio(self, source: Path | bytes, *, caption: str = "") -> "Report":
        """Adds a player for a WAV, MP3 or FLAC file, given as a path or as bytes."""
        data = data_uri(source, allowed=AUDIO_SUFFIXES)
        return self._figure(f'<audio controls preload="metadata" src="{data}"></audio>', caption)

    def html(self) -> str:
        """Returns the whole document."""
        title = escape(self.title)
        body = "\n".join(self._parts)
        return (
            f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{SECURITY}">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n"
            f"<body>\n<main>\n<h1>{title}</h1>\n{body}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: Path) -> Path:
        """Writes the document to `path`, replacing an existing file; returns the path."""
        return write_atomically(Path(path), self.html())

    def _figure(self, content: str, caption: str) -> "Report":
        below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
        return self._add(f"<figure>{content}{below}</figure>")

    def _add(self, part: str) -> "Report":
        self._parts.append(part)
        return self


def format_cell(value: object) -> str:
    """Returns a table cell as text: floats with four significant digits (1.2 × 10⁻⁷ where small), large numbers with commas,
    None and NaN as a dash, anything else by str."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.4g}"
    if 1e4 <= abs(value) < 1e9:
        return f"{value:,.0f}"
    digits, _, power = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')} × 10{str(int(power)).translate(SUPERSCRIPTS)}"


def format_share(value: object) -> str:
    """A p-value or a share, from 0 to 1, as text: three decimals, "< 0.001" where it is smaller and not 0."""
    if not isinstance(value, float) or math.isnan(value):
        return format_cell(value)
    return "< 0.001" if 0 < value < 0.001 else f"{value:.3f}"


def _is_number(value: object) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def escape(text: object) -> str:
    """Returns text for HTML, in attributes, too; characters that can't be shown become a replacement character."""
    readable = str(text).encode("utf-8", "backslashreplace").decode("utf-8")
    return html.escape("".join(c if c.isprintable() or c in "\n\t" else "�" for c in readable), quote=True)


def data_uri(source: Path | bytes, *, allowed: tuple[str, ...]) -> str:
    """Returns a file as a data URI, for src="..." in a page without other files.

    Raises:
        ValueError: it is not of a kind in `allowed`, suffixes such as ".png".
    """
    data = source if isinstance(source, bytes) else Path(source).read_bytes()
    suffix = _suffix_of(data)
    if suffix not in allowed:
        name = "the bytes given" if isinstance(source, bytes) else ascii(str(source))
        raise ValueError(
            f"source ({name}) holds no {' or '.join(s[1:].upper() for s in allowed)} data; give a file of one of these kinds"
        )
    return f"data:{MIME_TYPES[suffix]};base64,{base64.b64encode(data).decode('ascii')}"


def _suffix_of(data: bytes) -> str | None:
    """Returns the suffix that fits the first bytes of a file, whatever its name."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if data.startswith(b"RIFF") and data[8:12] == b"WAVE":
        return ".wav"
    if data.startswith(b"fLaC"):
        return ".flac"
    if data.startswith(b"ID3") or (len(data) > 1 and data[0] == 0xFF and data[1] & 0xE0 == 0xE0):
        return ".mp3"
    return None
