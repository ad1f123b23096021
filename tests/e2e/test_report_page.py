"""The HTML report in Debian's Chromium, through its driver. Skipped if they are not installed."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline.report import render
from tests.support import reports

DESKTOP, PHONE = (1280, 900), (360, 740)
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
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE},
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
