"""Data Docs: self-contained pages, escaped values, and a limited number of pages."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_checks import docs
from data_checks.check import check
from stillhouse.config import FrontDoor
from stillhouse.drift import scan
from stillhouse.records import DataReport


class _Page(HTMLParser):
    """Tags, text and loaded addresses of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name == "src" or (tag == "link" and name == "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "docs" / "toy"


def test_page_is_self_contained(rows, window, config, folder):
    rows.loc[3, "temp"] = 99
    report, _ = check(rows, window, config, docs=folder)
    assert report.docs == str(folder / "20130608T000000-20130601T000000.html")
    assert DataReport.model_validate_json(report.model_dump_json()) == report
    text = Path(report.docs).read_text(encoding="utf-8")
    page = _Page(text)
    assert page.loaded == [] and "script" not in page.tags and "http" not in text
    assert "The window meets the contract." in page.text and "temp: above 50 in 1 of 100 rows" in page.text
    assert re.search(r"values must be greater than or equal to\s+-40\.0", page.text)
    assert "Values must be finite." in page.text and "1.79" not in page.text
    anchors = set(re.findall(r'href="#(section-\d+)"', text))
    assert anchors == set(re.findall(r'id="(section-\d+)"', text)) and len(anchors) == 7


def test_values_are_left_out_where_they_may_not_be_shown(rows, window, config, folder):
    rows.loc[3, "temp"] = 98.7654
    door = FrontDoor(task="0123456789abcdef", shadow=True)
    for settings, is_shown in ((config, True), (config.model_copy(update={"front_door": door}), False)):
        report, _ = check(rows, window, settings, docs=folder)
        assert ("98.7654" in Path(report.docs).read_text(encoding="utf-8")) == is_shown


def test_no_page_without_a_folder(rows, window, config):
    assert check(rows, window, config)[0].docs is None


def test_pages_on_failure_are_written_only_for_failures(rows, window, config, folder):
    moved = rows.assign(temp=rows["temp"] + 15)
    reference = scan.profile_frame(rows, config.observations.columns)
    assert check(moved, window, config, docs=folder, reference=reference, pages="on_failure")[0].docs is None
    assert not folder.exists(), "drift alone gives no page"
    rows.loc[3, "temp"] = 99
    assert check(rows, window, config, docs=folder, pages="never")[0].docs is None and not folder.exists()
    for bad in (rows, rows.drop(columns="temp")):
        report, quarantine = check(bad, window, config, docs=folder, pages="on_failure")
        always, same = check(bad, window, config, docs=folder / "always", pages="always")
        assert quarantine.equals(same) and always.failures == report.failures
        first, second = (_Page(Path(str(r.docs)).read_text(encoding="utf-8")).text for r in (report, always))
        assert re.sub(r"Checked in [\d.]+ s", "", first) == re.sub(r"Checked in [\d.]+ s", "", second)


def test_values_are_escaped(rows, window, config, folder, configured):
    attack = "<script>alert(1)</script>"
    pairs = {"type": "pairs", "columns": ["carrier", "dest"], "allowed": [["AA", "LAX"]], "max_broken": 1}
    config = configured(rules=[pairs])
    reference = scan.profile_frame(rows.assign(dest=attack), config.observations.columns)
    rows.loc[5, "carrier"] = rows.loc[6, "dest"] = attack
    report, _ = check(rows, window, config, docs=folder, reference=reference)
    page = _Page(Path(str(report.docs)).read_text(encoding="utf-8"))
    assert "script" not in page.tags
    assert page.text.count(attack) >= 5  # in the failure's text, unknown values, pairs and drifted values


def test_page_shows_the_bins_of_a_drifted_column(rows, window, config, folder):
    reference = scan.profile_frame(rows, config.observations.columns)
    report, _ = check(rows.assign(temp=rows["temp"] + 15), window, config, docs=folder, reference=reference)
    page = _Page(Path(str(report.docs)).read_text(encoding="utf-8"))
    assert "must be distributed as in the reference: PSI at most" in " ".join(page.text.split())
    assert re.search(r"PSI \d\.\d+, KS 0\.\d+, effect", page.text)
    assert re.search(r"∞, -?[\d.]+\]\s*10\.0%\s*0\.0%", page.text), "a bin, its share then and now"
    index = _Page((folder / "index.html").read_text(encoding="utf-8"))
    assert re.search(r"passed\s+100\s+0\s+1\s", index.text)


def test_refused_and_empty_windows_have_pages(rows, window, config, folder):
    for bad in (rows.iloc[:0], rows.drop(columns="temp"), rows.assign(observation_id=[["a"]] * 100)):
        report, _ = check(bad, window, config, docs=folder)
        assert "The window is refused." in Path(str(report.docs)).read_text(encoding="utf-8")
    assert len(list(folder.iterdir())) == 2, "the same window again replaces its page"
    assert "refused" in (folder / "index.html").read_text(encoding="utf-8")


def test_oldest_pages_are_deleted(rows, window, config, folder, monkeypatch):
    monkeypatch.setattr(docs, "MAX_PAGES", 3)
    for day in (4, 1, 5, 2, 3):
        later = window.model_copy(update={"end": window.end + timedelta(days=day)})
        check(rows, later, config, docs=folder)
    names = sorted(page.name for page in folder.glob("2*.html"))
    assert [name[:8] for name in names] == ["20130611", "20130612", "20130613"]
    listed = re.findall(r'<a href="(2[^"]*)"', (folder / "index.html").read_text(encoding="utf-8"))
    assert listed == names[::-1]
    assert not list(folder.glob("*.part"))
