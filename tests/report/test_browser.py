"""The report in a real browser, headless Chromium: it loads all of itself and nothing else, sorts, and fits a phone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from report_pages import write_page

selenium = pytest.importorskip("selenium", reason="selenium is not installed: pip install -r requirements.txt")
from selenium import webdriver  # noqa: E402
from selenium.webdriver.chrome.options import Options  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no chromium and chromedriver: apt-get install chromium chromium-driver"
)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """A browser with a profile of its own, which ends with the tests."""
    options = Options()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Of the page of five runs, with class names that are HTML."""
    return write_page(tmp_path_factory.mktemp("page")).as_uri()


def look(browser: webdriver.Chrome, width: int, scheme: str = "light") -> None:
    """Makes the page `width` pixels wide, for someone who prefers this colour scheme."""
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})


def test_the_page_loads_without_errors_or_requests_and_shows_every_picture(browser, address):
    browser.get_log("performance")  # empties it
    browser.get(address)
    assert browser.get_log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert [url for url in asked if not url.startswith("data:image/png;base64,")] == [address]
    found = browser.execute_script("return [...document.images].map(image => [image.naturalWidth, image.alt])")
    assert [(width, text.split(",")[0]) for width, text in found] == [
        (900, "A bar ends at the mean of an arm. Points are its runs"),
        (900, "Up to 9 misclassified test images of each arm"),
        (900, "Held-out images"),
    ]


def column(browser: webdriver.Chrome, number: int) -> list[str]:
    """The texts of a column of the table of runs."""
    cells = f"#comparison table.sortable tbody tr > :nth-child({number})"
    return [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, cells)]


def test_a_click_on_a_title_sorts_and_another_reverses(browser, address):
    browser.get(address)
    title = browser.find_element(By.CSS_SELECTOR, "#comparison table.sortable th:nth-child(4)")
    assert title.text.startswith("test accuracy (%)") and title.get_attribute("aria-sort") is None
    given = column(browser, 4)
    title.find_element(By.TAG_NAME, "button").click()
    assert column(browser, 4) == ["25.00", "41.67", "66.67", "75.00", "91.67"] != given
    assert title.get_attribute("aria-sort") == "ascending"
    title.find_element(By.TAG_NAME, "button").click()
    assert column(browser, 4) == ["91.67", "75.00", "66.67", "41.67", "25.00"]
    assert title.get_attribute("aria-sort") == "descending"


def test_the_keyboard_sorts_too_and_what_is_unknown_comes_last_either_way(browser, address):
    browser.get(address)
    buttons = browser.find_elements(By.CSS_SELECTOR, "#comparison table.sortable th button")
    browser.execute_script("arguments[0].focus()", buttons[7])  # then on to the next with the Tab key
    browser.switch_to.active_element.send_keys(Keys.TAB)
    assert browser.switch_to.active_element.text.startswith("epochs to scratch's best validation")
    for known in (["1", "2"], ["2", "1"]):
        browser.switch_to.active_element.send_keys(Keys.ENTER)
        assert column(browser, 9) == known + ["not reached"] * 3
    buttons[0].send_keys(Keys.SPACE)
    names = [name.rpartition("/")[2] for name in column(browser, 1)]
    assert names == sorted(names) and len(names) == 5
    titles = browser.find_elements(By.CSS_SELECTOR, "#comparison th[aria-sort]")
    assert [title.text.split()[0] for title in titles] == ["run"]  # of the last column that was sorted alone


@pytest.mark.parametrize("width", [360, 390, 1280])
def test_neither_the_page_nor_a_table_scrolls_sideways(browser, address, width):
    look(browser, width)
    browser.get(address)
    page, inner = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert page <= inner <= width
    browser.execute_script("document.querySelectorAll('details').forEach(part => part.open = true)")
    wide = browser.execute_script(
        "return [...document.querySelectorAll('.scroll')].filter(part => part.scrollWidth > part.clientWidth).length"
    )
    assert wide == 0


def colours(browser: webdriver.Chrome) -> tuple[int, int]:
    """Brightness of text and page, 0 to 255."""
    style = browser.execute_script(
        "const style = getComputedStyle(document.body); return [style.color, style.backgroundColor]"
    )
    text, page = (int(colour.removeprefix("rgb(").split(",")[0]) for colour in style)
    return text, page


def test_light_and_dark_are_as_the_reader_prefers(browser, address):
    browser.get(address)
    look(browser, 1200, "light")
    text, page = colours(browser)
    assert text < 60 and page > 240
    look(browser, 1200, "dark")
    text, page = colours(browser)
    assert text > 220 and page < 40


def test_names_that_are_html_are_shown_and_do_nothing(browser, address):
    browser.get(address)
    names = browser.find_elements(By.CSS_SELECTOR, "#classes tbody th")
    assert names[0].text == "<img src=x onerror=hack()>"
    assert browser.execute_script("return document.scripts.length") == 1
    assert browser.get_log("browser") == []


def test_a_printed_page_has_the_answer_and_no_more_width_than_paper(browser, address, tmp_path: Path):
    browser.get(address)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    size = {"width": 700, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 700
        assert not browser.find_element(By.TAG_NAME, "nav").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_on_a_phone_each_number_stands_beside_its_title_and_the_accuracies_are_on_the_first_screen(browser, address):
    look(browser, 390)
    browser.get(address)
    cell = browser.find_element(By.CSS_SELECTOR, "#comparison table.sortable tbody td.number")
    shown = browser.execute_script("return getComputedStyle(arguments[0], '::before').content", cell)
    assert shown == '"test accuracy (%)"' and cell.text == "91.67"
    assert not browser.find_element(By.CSS_SELECTOR, "#comparison thead").is_displayed()
    look(browser, 1280)
    picture = browser.find_element(By.TAG_NAME, "img").rect
    assert picture["y"] + picture["height"] < 800 and picture["width"] == 495  # 3.3 inches


def test_recipe_and_environment_open_with_a_click_and_are_printed(browser, address):
    browser.get(address)
    look(browser, 1280)
    table = browser.find_element(By.CSS_SELECTOR, "#recipe table")
    assert not table.is_displayed()
    browser.find_element(By.CSS_SELECTOR, "#recipe summary").click()
    assert table.is_displayed()
