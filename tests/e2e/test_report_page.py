"""The HTML report in Debian's Chromium, through its driver. Skipped if they are not installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from pipeline.report import render
from pipeline.report.content import ReportSettings, build_report
from tests.support import reports, runs
from tests.support.corpora import write_audio

DESKTOP, PHONE, LARGE_PHONE = (1280, 900), (360, 740), (400, 800)
FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-background-networking --disable-component-update "
    "--disable-sync --no-first-run --hide-scrollbars"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("needs Debian's chromium and chromium-driver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('profile')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render.html(reports.full()), encoding="utf-8")
    return path


@pytest.fixture
def page(browser, file):
    """The page on a desktop with a light theme; after the test, checks that the browser logged no error."""
    emulate(browser, size=DESKTOP, scheme="light")
    browser.get_log("performance")
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def emulate(browser, *, size=None, scheme=None, media=""):
    if size is not None:
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size != DESKTOP},
        )
    if scheme is not None:
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def worst(page):
    return page.find_element(By.CSS_SELECTOR, "#worst .table")


def column(table, index):
    """Texts of a column in the visible rows."""
    return table.parent.execute_script(
        "return [...arguments[0].querySelectorAll('tbody tr')].filter((row) => row.checkVisibility())"
        ".map((row) => row.cells[arguments[1]].innerText.trim())",
        table,
        index,
    )


def percentages(table, index):
    return [float(text.rstrip("%").strip()) for text in column(table, index)]


def color(page, name):
    return page.execute_script("return getComputedStyle(document.body)[arguments[0]]", name)


def screenshot(page, tmp_path, name):
    size = page.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": min(size["height"], 16_000), "scale": 1}
    png = page.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
    for folder in filter(None, (str(tmp_path), os.environ.get("SEWD_SCREENSHOTS"))):
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / f"report-{name}.png").write_bytes(base64.b64decode(png))


def test_the_page_makes_no_network_request(page, file):
    messages = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    assert file.as_uri() in urls
    assert {url for url in urls if not url.startswith("data:")} == {file.as_uri()}


def test_clicking_a_header_sorts_the_table(page):
    table = worst(page)
    button = table.find_elements(By.CSS_SELECTOR, "th button")[2]
    header = button.find_element(By.XPATH, "..")

    button.click()
    rates = percentages(table, 2)
    assert rates == sorted(rates, reverse=True)
    assert header.get_attribute("aria-sort") == "descending"

    button.click()
    assert percentages(table, 2) == sorted(rates)
    assert header.get_attribute("aria-sort") == "ascending"

    table.find_elements(By.CSS_SELECTOR, "th button")[0].click()
    assert header.get_attribute("aria-sort") is None
    names = [name for name in column(table, 0) if name[0].isdigit()]
    assert [int(name.split("-")[0]) for name in names] == sorted(int(name.split("-")[0]) for name in names)


def test_the_keyboard_sorts_a_table_with_missing_values_last(page):
    table = worst(page)
    button = table.find_elements(By.CSS_SELECTOR, "th button")[5]

    for key in (Keys.ENTER, Keys.SPACE):
        button.send_keys(key)
        confidences = column(table, 5)
        missing = len(reports.HOSTILE)
        assert confidences[-missing:] == ["–"] * missing
        values = [float(text) for text in confidences[:-missing]]
        assert values == sorted(values, reverse=key == Keys.ENTER)
    assert page.switch_to.active_element == button


def test_filtering_a_table_shows_how_many_rows_match(page):
    table = worst(page)
    rows, box = len(column(table, 0)), table.find_element(By.CSS_SELECTOR, "input")
    status = table.find_element(By.TAG_NAME, "output")

    box.send_keys("<SCRIPT>ALERT(1)")
    assert [name.split("#")[0] for name in column(table, 0)] == ["<script>alert(1)</script>"]
    assert status.text == f"1 of {rows} rows match"

    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("no such thing")
    assert column(table, 0) == []
    assert status.text == f"0 of {rows} rows match"

    box.send_keys(Keys.CONTROL, "a")
    box.send_keys(Keys.DELETE)
    assert len(column(table, 0)) == rows
    assert status.text == ""


def test_the_theme_follows_the_system_until_the_button_is_pressed(page, tmp_path):
    light, plot = color(page, "backgroundColor"), "return getComputedStyle(document.querySelector('.plot text')).fill"
    ink = page.execute_script(plot)
    screenshot(page, tmp_path, "light")

    page.find_element(By.ID, "theme").click()
    dark = color(page, "backgroundColor")
    assert dark != light
    assert page.execute_script(plot) != ink
    page.find_element(By.ID, "theme").send_keys(Keys.ENTER)
    assert color(page, "backgroundColor") == light

    emulate(page, scheme="dark")
    page.refresh()
    assert color(page, "backgroundColor") == dark
    screenshot(page, tmp_path, "dark")


def test_transcripts_are_escaped_and_have_their_own_direction(page):
    directions = dict(
        page.execute_script(
            "return [...document.querySelectorAll('#worst td.a')]"
            ".map((cell) => [cell.innerText, getComputedStyle(cell).direction])"
        )
    )

    def direction(start):
        return next(direction for text, direction in directions.items() if text.startswith(start))

    assert direction("<script>alert(1)</script>") == direction("{{ 7*7 }}") == direction("a | b") == "ltr"
    assert direction("שלום") == direction("مرحبا") == "rtl"
    assert page.execute_script("return [document.images.length, document.scripts.length]") == [0, 1]


def test_kinds_of_errors_differ_without_colour(page):
    looks = page.execute_script(
        """
        const look = (selector, pseudo) => {
          const style = getComputedStyle(document.querySelector("#worst td" + selector), pseudo);
          return pseudo ? style.content : style.textDecorationLine;
        };
        return [look(" > del"), look(" > ins"), look(" > .sub", "::before"), look(" > .sub", "::after")];
        """
    )
    assert looks == ["line-through", "underline", '"["', '"]"']


def test_the_keyboard_reaches_all_controls_with_visible_focus(page):
    body = page.find_element(By.TAG_NAME, "body")
    body.send_keys(Keys.TAB)
    skip = page.switch_to.active_element
    assert skip.text == "Skip to the report"
    assert skip.location["y"] >= 0
    assert skip.value_of_css_property("outline-style") == "solid"
    skip.send_keys(Keys.ENTER)
    assert page.switch_to.active_element.get_attribute("id") == "main"

    unnamed = page.execute_script(
        """
        return [...document.querySelectorAll("button, input, [tabindex='0']")].filter((each) =>
          !(each.textContent.trim() || each.ariaLabel || each.labels?.length || each.getAttribute("aria-labelledby")));
        """
    )
    assert unnamed == []


@pytest.mark.parametrize("make", [reports.full, reports.nulls])
def test_a_phone_never_scrolls_sideways(page, tmp_path, make):
    if make is not reports.full:
        path = tmp_path / "other.html"
        path.write_text(render.html(make()), encoding="utf-8")
        page.get(path.as_uri())
    emulate(page, size=PHONE)

    page.execute_script("for (const each of document.querySelectorAll('details')) each.open = true;")
    assert page.execute_script("return document.documentElement.scrollWidth") == PHONE[0]
    page.execute_script("for (const each of document.querySelectorAll('details')) each.open = false;")
    if make is reports.full:
        screenshot(page, tmp_path, "phone")


LAYOUT_FAULTS = """
const faults = [];
for (const each of document.querySelectorAll("details")) each.open = true;
for (const box of document.querySelectorAll(".scroll")) {
  const name = box.closest(".table").querySelector(".title").textContent;
  if (box.scrollWidth > box.clientWidth + 1) faults.push(`${name}: cut off, ${box.scrollWidth} > ${box.clientWidth}`);
  for (const cell of box.querySelectorAll("th, td")) {
    const texts = document.createTreeWalker(cell, NodeFilter.SHOW_TEXT);
    const tops = [];
    while (texts.nextNode()) {
      const range = document.createRange();
      range.selectNodeContents(texts.currentNode);
      for (const line of range.getClientRects()) if (line.width) tops.push(line.top);
    }
    tops.sort((a, b) => a - b);
    const lines = tops.filter((top, i) => i === 0 || top - tops[i - 1] > 6).length;
    const text = cell.innerText.trim();
    if (lines > text.split(/[\\s-]+/).length && text.length / lines < 8) faults.push(`${name}: stacked, ${text}`);
  }
}
for (const player of document.querySelectorAll("audio")) {
  const place = player.getBoundingClientRect();
  if (place.right > innerWidth || place.width < 150) faults.push(`a player is ${place.width} wide`);
}
for (const each of document.querySelectorAll("details")) each.open = false;
return faults;
"""


def long_names():
    """A report with ids, paths, labels and words of real lengths."""
    report = reports.full(hostile=False)
    rows = [
        replace(
            row,
            utt_id="8b1c6c0e-59b1-4c8b-a5a8-9a2f1f4b1c0d#123456-183456",
            uri=f"/data/corpora/commonvoice/cv-corpus-17.0-2024-03-15/de/clips/common_voice_de_{i:08}.mp3",
            speaker="5c2f1a0b9e8d7c6b5a4f3e2d1c0b9a8f7e6d5c4b3a2f1e0d",
            alignment=[("substitute", "Donaudampfschifffahrtsgesellschaft", "donau dampf"), *row.alignment],
        )
        for i, row in enumerate(report.worst.rows)
    ]
    words = [
        replace(each, reference="notwithstanding", hypothesis="withstanding") for each in report.confusions.deletions
    ]
    return replace(
        report,
        worst=replace(report.worst, rows=rows),
        confusions=replace(report.confusions, substitutions=words, insertions=words, deletions=words),
    )


@pytest.mark.parametrize("size", [DESKTOP, LARGE_PHONE], ids=["1280", "400"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("make", [reports.full, long_names, reports.unlabeled, reports.nulls])
def test_no_column_is_cut_off_or_stacks_letters(page, tmp_path, size, scheme, make):
    path = tmp_path / "page.html"
    path.write_text(render.html(make()), encoding="utf-8")
    emulate(page, size=size, scheme=scheme)
    page.get(path.as_uri())
    assert page.execute_script(LAYOUT_FAULTS) == []
    assert page.execute_script("return document.documentElement.scrollWidth") == size[0]
    if make is long_names:
        screenshot(page, tmp_path, f"{size[0]}-{scheme}")


def test_a_stacked_table_sorts_and_filters_on_a_phone(page):
    emulate(page, size=LARGE_PHONE)
    table = worst(page)
    table.find_elements(By.CSS_SELECTOR, "th button")[2].click()
    rates = percentages(table, 2)
    assert rates == sorted(rates, reverse=True)
    table.find_element(By.CSS_SELECTOR, "input").send_keys("<script>alert(1)")
    assert len(column(table, 0)) == 1


def test_durations_are_sorted_by_their_length(page):
    table = page.find_element(By.CSS_SELECTOR, "#groups .table")
    titles = [each.text for each in table.find_elements(By.CSS_SELECTOR, "th button")]
    at = titles.index("Audio")
    table.find_elements(By.CSS_SELECTOR, "th button")[at].click()
    shown = page.execute_script(
        "return [...arguments[0].querySelectorAll('tbody tr')].map((row) => +row.cells[arguments[1]].dataset.v)",
        table,
        at,
    )
    assert shown == sorted(shown, reverse=True)
    assert {text.split()[-1] for text in column(table, at)} <= {"s", "min", "h"}


HEARD = """
const player = document.querySelector("audio");
return { duration: player.duration, at: player.currentTime, error: player.error && player.error.message };
"""


@pytest.mark.parametrize("mode", ["embed", "link"])
def test_a_clip_plays(page, tmp_path, mode):
    audio = write_audio(tmp_path / "a b#1.wav", seconds=3.0)
    rows = [{"text": "a", "reference": "b", "uri": str(audio), "start_s": 1.0, "duration_s": 1.5}]
    run = runs.write_run(tmp_path / "run", runs.transcripts(rows))
    content = build_report(run, settings=ReportSettings(audio=mode))
    assert content.worst.listening.playable == 1
    path = tmp_path / "page.html"
    path.write_text(render.html(content), encoding="utf-8")
    page.get(path.as_uri())
    player = page.find_element(By.TAG_NAME, "audio")
    button = player.size["width"] // 2 - 18  # left of the middle
    ActionChains(page).scroll_to_element(player).move_to_element_with_offset(player, -button, 0).click().perform()
    start = 0.0 if mode == "embed" else 1.0
    WebDriverWait(page, 20).until(lambda page: page.execute_script(HEARD)["at"] > start + 0.2)
    played = page.execute_script(HEARD)
    assert played["error"] is None
    if mode == "embed":
        assert played["duration"] == pytest.approx(1.5, abs=0.05)
    else:
        assert played["duration"] == pytest.approx(3.0, abs=0.05)  # of the object, played from the start of the part


def test_print_is_light_complete_and_without_controls(page):
    light = color(page, "backgroundColor")
    page.find_element(By.ID, "theme").click()
    emulate(page, scheme="dark", media="print")

    shown = page.execute_script(
        """
        const seen = (selector) => [...document.querySelectorAll(selector)].some((each) => each.checkVisibility());
        const whole = (each) => each.scrollHeight <= each.clientHeight + 1;
        return {
          controls: seen("nav, .filter, .skip"),
          folded: [...document.querySelectorAll("details .scroll")].every((each) => each.checkVisibility()),
          whole: [...document.querySelectorAll(".tall > .scroll")].every(whole),
        };
        """
    )
    assert shown == {"controls": False, "folded": True, "whole": True}
    assert color(page, "backgroundColor") == light
