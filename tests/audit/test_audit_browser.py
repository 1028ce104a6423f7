"""The report in a real browser: at a desk, on a phone, in the dark and on paper. Skipped where no Chromium is."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from library.audit.report.most_exposed import ExposedPicture, thumbnail
from library.audit.report.report_page import report_html
from tests.helpers import browser
from tests.helpers.audit_results import planted_result

pytestmark = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed")
DOT = thumbnail(Image.new("RGB", (8, 8), "teal"))
SMALLEST = """Math.min(...[...document.querySelectorAll('svg text, svg tspan')].filter(one => one.textContent.trim())
    .map(one => parseFloat(getComputedStyle(one).fontSize) * Math.hypot(one.getScreenCTM().a, one.getScreenCTM().b)))"""
BESIDES = """[...document.querySelectorAll('svg text')].filter(one => {
    const box = one.getBoundingClientRect(), own = one.ownerSVGElement.getBoundingClientRect();
    return box.left < own.left - 2 || box.right > own.right + 2;
}).map(one => one.textContent)"""
WIDER = "document.documentElement.scrollWidth - innerWidth"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a leak, with pictures."""
    early, result = planted_result(1.5), planted_result(1.5)
    early = dataclasses.replace(early, label="run 000002", exposures=10.0)
    exposed = [ExposedPicture(f"a_long_name_of_a_picture_{row}.png", "members-test", 1.0, row, 80, 0.1, DOT, DOT)
               for row in range(12)]  # fmt: skip
    file = tmp_path_factory.mktemp("page") / "report.html"
    file.write_text(report_html(result, [early, result], exposed))
    return file


@pytest.fixture(scope="module")
def page() -> Iterator[browser.Page]:
    """One browser for all tests."""
    with browser.opened() as opened:
        yield opened


@pytest.mark.slow
@pytest.mark.parametrize(("width", "phone"), [(1280, False), (390, True)])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_and_its_labels_can_be_read(report, page, width: int, phone: bool, dark: bool) -> None:
    page.show(report, width, dark=dark, phone=phone)
    assert page.complaints == []  # its own policy refuses nothing of it
    assert page.value(WIDER) <= 0 and page.value("innerWidth") == width
    assert page.value(SMALLEST) >= 10.9  # pixels: 11, less the rounding of the browser
    assert page.value(BESIDES) == []  # no label is cut off
    assert page.value("[...document.images].every(one => one.naturalWidth > 0 && one.alt)")
    background = page.value("getComputedStyle(document.body).backgroundColor")
    light = sum(map(int, re.findall(r"\d+", background)))
    assert light < 150 if dark else light > 700
    ink = page.value("getComputedStyle(document.querySelector('svg text')).fill")
    assert (sum(map(int, re.findall(r"\d+", ink))) > 500) == dark


@pytest.mark.slow
def test_the_first_screen_of_a_phone_has_the_verdict_and_the_first_step(report, page) -> None:
    page.show(report, 390, phone=True)
    assert page.value("document.querySelector('.verdict li').getBoundingClientRect().bottom") < 844
    assert page.value("getComputedStyle(document.querySelector('nav')).display") != "none"


@pytest.mark.slow
def test_the_printed_page_has_tables_and_not_the_phones_cards_and_is_light(report, page) -> None:
    page.show(report, 1280, dark=True)
    pages = len(re.findall(rb"/Type\s*/Page\b", page.printed()))
    assert 2 <= pages <= 9
    page.call("Emulation.setDeviceMetricsOverride", width=696, height=1000, deviceScaleFactor=1, mobile=False)
    page.call("Emulation.setEmulatedMedia", media="print", features=[])
    assert page.value("getComputedStyle(document.querySelector('thead')).display") == "table-header-group"
    assert page.value("getComputedStyle(document.querySelector('td')).display") == "table-cell"
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.value("document.documentElement.scrollWidth") <= 696 and page.value(BESIDES) == []
    assert page.value("getComputedStyle(document.querySelector('nav')).display") == "none"
