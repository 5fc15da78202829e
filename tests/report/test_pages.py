"""The HTML pages: their links and escapes, read as text and in a real browser."""

import re
from base64 import b64encode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest

from dfolora.report import Groups, Measure, Picture, Published, Row, TableSpec
from dfolora.report.pages import index_page, item_page, run_page
from dfolora.report.published import Number
from dfolora.report.write import write_item
from tests.browser import opened
from tests.commands import PROJECT
from tests.reporting import RUNS, SPEC, Archive, run, table

SCRIPT = "<script>document.title = 'owned'</script>"
SORTING = (PROJECT / "src/dfolora/report/templates/sort.js").read_text().strip()
HOSTILE = "<img src=x onerror=alert(1)>\"'&"
NUMBERS = {("", "C-LoRA", "sst2", "test/score"): Number(mean=80.0, std=1.0, note=HOSTILE)}


def hostile_table():
    rows = [*SPEC.rows, replace(SPEC.rows[1], label=HOSTILE)]
    spec = replace(
        SPEC, title=f"A table {SCRIPT}", rows=rows, note=HOSTILE, picture=Picture(kind="bars")
    )
    failed = run("mrpc", 8, None, optimizer="fwa", status="FAILED", model=HOSTILE)
    failed["name"], failed["run_id"] = HOSTILE, "0123456789abcdef"
    return table(*RUNS, failed, spec=spec)


@pytest.fixture
def reports(tmp_path):
    write_item(tmp_path, hostile_table(), Published(numbers=NUMBERS), Archive())
    other = table(*RUNS, spec=replace(SPEC, name="figure9", title="Another"))
    write_item(tmp_path, other, Published(), Archive())
    return tmp_path


class Seen(HTMLParser):
    """Tags, links and sources of a page."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.sources, self.text = [], [], [], ""
        self.scripts = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        given = dict(attributes)
        assert not any(name.startswith("on") for name in given)
        self.links += [given["href"]] if tag == "a" else []
        self.sources += [given["src"]] if "src" in given else []

    def handle_data(self, text):
        if self.tags and self.tags[-1] == "script" and self.cdata_elem:
            self.scripts.append(text.strip())
        self.text += text


def test_pages_fetch_nothing_and_their_links_lead_somewhere(reports):
    pages = [*reports.glob("*.html"), *reports.glob("runs/*.html")]
    assert len(pages) == 3 + 8
    for page in pages:
        seen = Seen(page.read_text())
        assert not {"link", "iframe"} & set(seen.tags)
        assert seen.scripts == [SORTING] * ("results" in page.read_text())
        assert all(source.startswith("data:image/") for source in seen.sources)
        for link in seen.links:
            if page.parent.name != "runs" or not link.startswith("http://127.0.0.1:5000/#/"):
                assert (page.parent / link).exists(), link


def everywhere(text):
    """A table and its paper's numbers in which all that can be a text is this one."""
    spec = TableSpec(
        name="table1", title=text, caption=text, note=text, profile=text, tasks={"sst2": text},
        measures=[Measure(metric="test/score", title=text, factor=100, averaged=True)],
        rows=[Row(label=text, where={"method": text})], constants={"majority": text},
        seeds=[8, 13, 42],
        groups=Groups(tag="model", title=text, values=[text, "none"]), picture=Picture(kind="bars"),
    )  # fmt: skip
    own = {f"{part}.{text}": text for part in ("params", "tags")}
    runs = [  # two commits are a cell's note, a status is told beside the run
        run("sst2", seed, 0.8, method=text, model=text, commit=commit, status=status)
        | {"run_id": f"{seed}{text}", "name": text, "experiment_id": text, f"metrics.{text}": 1.0}
        | {f"tags.item.table1.{text}": "20260101", **own}
        for seed, commit, status in (
            (8, text, "FINISHED"), (13, f"{text}2", "FINISHED"), (42, text, text),
        )
    ]  # fmt: skip
    number = Number(mean=80.0, std=1.0, note=text)
    return table(*runs, spec=spec), Published(numbers={(text, text, "sst2", "test/score"): number})


@pytest.mark.parametrize(
    "text",
    [
        "'\"><b onclick=a()>&amp;{{1}}",
        "javascript:a()//",
        "</title></td><script>",
        "$x^ %s $y$",
    ],
)
def test_no_text_changes_what_a_page_is_made_of(tmp_path, text):
    built = {}
    for name, told in (("tame", "harmless"), ("hostile", text)):
        shown, published = everywhere(told)
        write_item(tmp_path / name, shown, published, Archive())
        files = sorted((tmp_path / name).rglob("*.html"))
        built[name] = [Seen(file.read_text()) for file in files]
    assert len(built["tame"]) == len(built["hostile"]) == 5
    for tame, hostile in zip(built["tame"], built["hostile"], strict=True):
        assert hostile.tags == tame.tags
        assert hostile.text.count(text) == tame.text.count("harmless")
        assert len(hostile.links) == len(tame.links)
        for link in hostile.links:
            assert link.startswith(("index.html", "../index.html", "table1", "runs/", "http://127"))
    svg = ElementTree.parse(tmp_path / "hostile" / "table1.svg")
    assert not [node for node in svg.iter() if str(node.tag).endswith(("script", "image", "}a"))]


def test_item_whose_name_is_a_scheme_is_a_file_all_the_same():
    entry = dict.fromkeys(["title", "profile", "filled", "cells", "runs"], "x")
    page = index_page(pd.DataFrame([{"name": "javascript:a()//", **entry}]), {})
    assert Seen(page).links == ["javascript%3Aa%28%29//.html"]


def test_every_cell_leads_to_its_runs(reports):
    links = Seen((reports / "table1.html").read_text()).links
    runs = {link.removeprefix("runs/").removesuffix(".html") for link in links if "runs/" in link}
    assert runs == {given["run_id"] for given in RUNS} | {"0123456789abcdef"}


def test_run_page_has_configuration_scores_and_curve(reports):
    page = (reports / "runs" / "sst2-cma-8.html").read_text()
    for text in ("sst2-cma-8", "budget", "1000", "test/score", "0.8", "item.table1.mini"):
        assert text in page
    assert "data:image/png;base64" in page
    assert "data:image" not in (reports / "runs" / "sst2-cma-13.html").read_text()


def test_run_page_puts_the_largest_classs_score_beside_its_own():
    page = " ".join(run_page(run("sst2", 8, 0.8), None).split())
    assert "<p>Test score 0.8; the largest class alone has 0.5092.</p>" in page
    assert "the largest class" not in run_page(run("other", 8, 0.8), None)  # of which none is known


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (0.8123456, "0.8123"), (1500.0, "1,500"), (12345.678, "12,346"), (3, "3"), (1e-7, "1e-07"),
        (float("inf"), "inf"), ("text", "text"),
    ],
)  # fmt: skip
def test_numbers_of_a_run_are_rounded_and_kept(value, told):
    page = run_page(run("sst2", 8, 0.8) | {"metrics.test/other": value}, None)
    assert f'<data value="{value}">{told}</data>' in page


def test_metrics_of_a_run_stand_in_groups(reports):
    page = (reports / "runs" / "sst2-cma-8.html").read_text()
    assert re.findall("<h3>(.*)</h3>", page) == ["params", "test"]
    assert page.index("params/stored") < page.index("<h3>test") < page.index("test/score")


def test_rows_stand_below_their_headings_and_the_best_is_told(tmp_path):
    other = [run(task, seed, 0.6, "fwa") for task in ("sst2", "mrpc") for seed in (8, 13)]
    sections = {SCRIPT: "Manual prompt", "Searched": "C-LoRA"}
    built = table(*RUNS[:6], *other, spec=replace(SPEC, sections=sections))
    page = item_page(built, None, None)
    headings = re.findall(r'colspan="5" scope="rowgroup">(.*?)</th>', page)
    assert [unescape(each) for each in headings] == [SCRIPT, "Searched"]
    assert page.count("<tbody>") == 3
    assert re.findall("<strong>(.*?)</strong>", page)[:-1] == [
        "85.00 (7.07)",
        "62.00 (2.83)",
        "73.50",
    ]
    assert re.findall("<u>(.*?)</u>", page) == ["60.00 (0.00)"]
    assert "<strong>Avg.</strong>, 60.00 to 76.19" in page
    assert page.count('class="track"') == 4  # Constant Yes has no average


def test_index_shows_a_figure_and_nothing_for_a_table(reports):
    sources = Seen((reports / "index.html").read_text()).sources
    picture = b64encode((reports / "table1.png").read_bytes()).decode()
    assert sources == [f"data:image/png;base64,{picture}"]


def test_index_lists_every_item_once_and_forgets_those_that_are_gone(reports):
    write_item(reports, table(*RUNS), Published(), Archive())
    index = (reports / "index.html").read_text()
    assert index.count('href="table1.html"') == index.count('href="figure9.html"') == 1
    assert "9 of 10" not in index
    (reports / "figure9.html").unlink()
    write_item(reports, table(*RUNS), Published(), Archive())
    assert "figure9" not in (reports / "index.html").read_text()


def test_profiles_have_files_of_their_own_beside_each_other(reports):
    mini = {kind: (reports / f"table1.{kind}").read_text() for kind in ("md", "csv", "tex", "html")}
    spec = replace(SPEC, title="A table", profile="paper", suffix="-paper")
    write_item(reports, table(spec=spec), Published(), Archive())
    for kind, text in mini.items():
        assert (reports / f"table1.{kind}").read_text() == text
        assert (reports / f"table1-paper.{kind}").read_text() != text
    assert r"\label{tab:table1-paper}" in (reports / "table1-paper.tex").read_text()
    assert Seen((reports / "index.html").read_text()).links == [
        "table1-paper.html", "table1.html", "figure9.html",  # by their titles
    ]  # fmt: skip


def test_markdown_names_holes_figure_and_paper(reports):
    text = (reports / "table1.md").read_text()
    assert "## What is missing\n\n- F-LoRA, MRPC: seed 8: run 01234567 failed\n" in text
    assert "](table1.png)" in text
    assert "## Beside the paper" in text
    assert "## " not in (reports / "figure9.md").read_text()


@pytest.mark.slow
def test_pages_in_a_browser(reports, tmp_path):
    (tmp_path / "chromium").mkdir()
    with opened(tmp_path / "chromium") as browser:
        browser.get((reports / "index.html").as_uri())
        browser.find_element("link text", f"A table {SCRIPT}").click()
        assert browser.title == f"A table {SCRIPT}"  # nothing of it was run
        rows = browser.find_elements("css selector", "#results tbody tr")
        assert len(rows) == 6
        cells = rows[3].find_elements("tag name", "td")
        assert [cell.text for cell in cells] == [
            "C-LoRA", "1,500", "85.00 (7.07)", "62.00 (2.83)", "73.50",
        ]  # fmt: skip
        picture = browser.find_element("tag name", "img")
        assert browser.execute_script("return arguments[0].naturalWidth", picture) > 100
        assert browser.find_element("id", "holes").text == (
            "F-LoRA, MRPC: seed 8: run 01234567 failed"
        )
        assert len(browser.find_elements("css selector", "#paper tbody tr")) == 1
        cells[2].find_element("tag name", "summary").click()
        assert cells[2].text.splitlines() == [
            "85.00 (7.07)", "seed 8: sst2-cma 80.00", "seed 13: sst2-cma 90.00",
        ]  # fmt: skip
        cells[2].find_element("tag name", "a").click()
        assert browser.find_element("id", "run").text == "sst2-cma-8"
        browser.get((reports / "runs" / "0123456789abcdef.html").as_uri())
        assert browser.title == HOSTILE
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def shown(browser, column):
    """The texts of a column, a list a group of rows."""
    return [
        [row.find_elements("css selector", "td")[column].text for row in rows]
        for body in browser.find_elements("css selector", "#results tbody")
        if (rows := body.find_elements("css selector", "tr:not(.heading)"))
    ]


@pytest.mark.slow
def test_columns_are_sorted_by_the_keyboard_within_their_groups(tmp_path):
    other = [run(task, seed, 0.095, "fwa") for task in ("sst2", "mrpc") for seed in (8, 13)]
    rows = [*SPEC.rows, replace(SPEC.rows[2], label="A hole", where={"method": "none"})]
    spec = replace(SPEC, rows=rows, sections={"Given": "Manual prompt", "Searched": "C-LoRA"})
    write_item(tmp_path, table(*RUNS[:6], *other, spec=spec), Published(), Archive())
    (tmp_path / "chromium").mkdir()
    with opened(tmp_path / "chromium") as browser:
        browser.get((tmp_path / "table1.html").as_uri())
        buttons = browser.find_elements("css selector", "#results thead button")
        assert [button.text for button in buttons] == ["Method", "#Params", "SST-2", "MRPC", "Avg."]
        names = shown(browser, 0)
        assert names[1:] == [["Manual prompt"], ["C-LoRA", "F-LoRA", "A hole"]]
        for expected in (["C-LoRA", "F-LoRA", "A hole"], ["F-LoRA", "C-LoRA", "A hole"]):
            buttons[2].send_keys("\n")  # 85.00 and 9.50: as texts they would stand otherwise
            assert shown(browser, 0)[1:] == [["Manual prompt"], expected]
        order = [
            title.get_attribute("aria-sort")
            for title in browser.find_elements("css selector", "#results thead th")
        ]
        assert order == [None, None, "ascending", None, None]
        headings = browser.find_elements("css selector", "#results .heading")
        assert [heading.text for heading in headings] == ["Given", "Searched"]
        buttons[0].send_keys("\n")
        assert shown(browser, 0)[2] == ["F-LoRA", "C-LoRA", "A hole"]


@pytest.mark.slow
def test_pages_fit_their_window_in_the_light_and_in_the_dark(reports, tmp_path):
    (tmp_path / "chromium").mkdir()
    pages = [reports / "index.html", reports / "table1.html", reports / "runs" / "sst2-cma-8.html"]
    with opened(tmp_path / "chromium") as browser:
        for scheme in ("light", "dark"):
            emulated = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", emulated)
            for page in pages:
                browser.get(page.as_uri())
                for width in (400, 900, 1600):
                    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": True}
                    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
                    over = "return document.documentElement.scrollWidth - window.innerWidth"
                    assert browser.execute_script(over) <= 0, (page.name, width)
            color = "return getComputedStyle(document.body).color"
            light = browser.execute_script(color) == "rgb(0, 0, 0)"
            assert light == (scheme == "light")
