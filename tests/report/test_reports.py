"""The run folder's files: complete, self-contained, safe against any text."""

import base64
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import soundfile

from etude.report.environment import environment, write_environment
from etude.report.files import write_atomically
from etude.report.reports import Report, format_cell

PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
HOSTILE = "\"><script>alert(1)</script>&' \udcff\x1b[31m"


def audio(kind: str) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((2000, 2), np.float32), 22050, format=kind)
    return buffer.getvalue()


class Page(HTMLParser):
    """Collects the tags, their attributes and the balance of a document."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.texts = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def test_a_report_is_one_file_that_asks_for_nothing(tmp_path):
    wav = tmp_path / "a b.wav"
    wav.write_bytes(audio("WAV"))
    report = Report("Chorales").heading("Samples").text("Eight of them.").code("python generate.py")
    report.table(["name", "nats"], [["a", 0.41234567], ["b", float("nan")]], caption="Likelihood")
    report.image(PNG, caption="roll").audio(wav, caption="one").audio(audio("MP3")).audio(audio("FLAC"))
    path = report.write(tmp_path / "new" / "report.html")
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    sources = [attrs["src"] for _, attrs in page.tags if "src" in attrs]
    assert [source.split(",")[0] for source in sources] == [
        "data:image/png;base64",
        "data:audio/wav;base64",
        "data:audio/mpeg;base64",
        "data:audio/flac;base64",
    ]
    assert base64.b64decode(sources[0].split(",")[1]) == PNG
    assert base64.b64decode(sources[1].split(",")[1]) == wav.read_bytes()
    assert not any(name in ("script", "link", "iframe") or "href" in attrs for name, attrs in page.tags)
    assert not re.search(r"https?://|url\(|@import", path.read_text(encoding="utf-8"))
    assert "0.4123" in page.texts and "–" in page.texts
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_text_of_any_kind_is_shown_not_run(tmp_path):
    report = Report(HOSTILE).heading(HOSTILE).heading(HOSTILE, level=3).text(HOSTILE).code(HOSTILE)
    report.table([HOSTILE], [[HOSTILE]], caption=HOSTILE).image(PNG, caption=HOSTILE)
    report.audio(audio("WAV"), caption=HOSTILE)
    text = report.write(tmp_path / "r.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum("<script>alert(1)</script>" in data for data in page.texts) == 11
    assert next(attrs for tag, attrs in page.tags if tag == "img")["alt"].startswith('"><script>')
    assert "\\udcff" in text and "\x1b" not in text


def test_a_report_refuses_what_it_cannot_show(tmp_path):
    with pytest.raises(ValueError, match="holds no PNG data"):
        Report("x").image(b"<svg onload=alert(1)>")
    with pytest.raises(ValueError, match="holds no WAV or MP3 or FLAC data"):
        Report("x").audio(PNG)
    with pytest.raises(ValueError, match="row 0 has 1 cells for 2 columns"):
        Report("x").table(["a", "b"], [[1]])
    with pytest.raises(ValueError, match="level=1"):
        Report("x").heading("x", level=1)
    with pytest.raises(FileNotFoundError):
        Report("x").image(tmp_path / "absent.png")


def test_columns_of_numbers_stand_to_the_right():
    page = Page(Report("x").table(["n", "name"], [[1, "a"], [None, "1"]]).html())
    classes = [attrs.get("class") for tag, attrs in page.tags if tag == "td"]
    assert classes == ["number", None, "number", None]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.123456, "0.1235"),
        (0.0, "0"),
        (1e-7, "1 × 10⁻⁷"),
        (5.534e-35, "5.5 × 10⁻³⁵"),
        (123456.0, "123,456"),
        (1234567, "1,234,567"),
        (-2e12, "-2 × 10¹²"),
        (3, "3"),
        (None, "–"),
        (True, "True"),
        (float("inf"), "∞"),
        (float("nan"), "–"),
    ],
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_shares_and_p_values_are_rounded_as_such():
    columns = ["metric", "p", "samples OA", "samples mean"]
    page = Page(Report("x").table(columns, [["a", 5.534e-35, 0.25, 1e-5], ["b", 0.0, float("nan"), 2.0]]).html())
    assert page.texts[-8:] and [text for text in page.texts if text.strip()][-8:] == [
        "a", "< 0.001", "0.250", "1 × 10⁻⁵", "b", "0.000", "–", "2",
    ]  # fmt: skip


def test_writing_leaves_the_old_file_when_it_fails(tmp_path):
    path = write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(AttributeError):
        write_atomically(path, None)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_environment_names_what_a_run_depends_on(tmp_path):
    text = write_environment(tmp_path).read_text(encoding="utf-8")
    for key in ("commit", "python", "system", "cpu", "cpu cores", "memory", "torch threads", "gpu", "cuda"):
        assert re.search(rf"^{key}: \S", text, re.MULTILINE), key
    assert re.search(r"^torch==\d", text, re.MULTILINE)
    assert "commit: unknown" in environment(source=tmp_path)
