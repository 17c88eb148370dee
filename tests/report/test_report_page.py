import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from src.report.page import render
from tests.fakes.chromium import needs_chromium, open_page
from tests.fakes.parsed_html import Parsed
from tests.fakes.report_example import records

CSS = (Path(__file__).parents[2] / "src" / "report" / "report.css").read_text(encoding="ascii")


@pytest.fixture(scope="module")
def html() -> str:
    return render(records())


@pytest.fixture(scope="module")
def page(html: str) -> Parsed:
    return Parsed(html)


def test_nothing_is_loaded_from_elsewhere(html: str, page: Parsed) -> None:
    addresses = [value or "" for _, attributes in page.tags for name, value in attributes.items()
                 if name in ("src", "href", "srcset", "data", "action", "poster") or name.startswith("xlink")]
    assert addresses
    assert all(address.startswith(("#", "data:")) for address in addresses)
    assert not re.search(r"url\((?!#)|@import|https?:", html)
    assert not page.all("script", "iframe", "object", "embed")


def test_every_chart_table_and_section_has_a_name(page: Parsed) -> None:
    ids = Counter(attributes["id"] for _, attributes in page.tags if "id" in attributes)
    assert set(ids.values()) == {1}
    labels = {attributes["aria-labelledby"] for _, attributes in page.tags if "aria-labelledby" in attributes}
    assert labels <= set(ids)
    assert len(page.all("table")) == len(page.all("caption"))
    pictures = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(pictures) == len(page.all("svg")) == 7
    assert all(attributes["aria-label"] for attributes in pictures)
    assert all(attributes["scope"] for attributes in page.all("th"))


def test_headings_never_skip_a_level(page: Parsed) -> None:
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_charts_take_their_colours_from_the_page(html: str) -> None:
    drawings = "".join(re.findall(r"<svg.*?</svg>", html, re.DOTALL))
    assert "var(--ours)" in drawings
    assert not re.findall(r"#[0-9a-f]{6}\b", drawings)
    assert set(re.findall(r"var\((--[a-z0-9-]+)\)", html)) <= set(re.findall(r"(--[a-z0-9-]+):", CSS)) | {"--side"}


@pytest.mark.parametrize("scheme", range(3), ids=["light", "dark", "print"])
def test_texts_have_a_contrast_of_4_5_and_marks_of_3(scheme: int) -> None:
    colours = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", CSS.split(":root {")[1 + scheme].split("}")[0]))
    assert contrast(colours["ink"], colours["marked"]) >= 4.5
    for back in (colours["page"], colours["card"]):
        for name in ("ink", "muted", "link", "good", "warning", "bad", "neutral"):
            assert contrast(colours[name], back) >= 4.5, (name, back)
        for name in ("ours", "theirs"):
            assert contrast(colours[name], back) >= 3, (name, back)


def contrast(first: str, second: str) -> float:
    """The contrast ratio of WCAG 2.2 of two colours, 1 to 21."""
    def luminance(colour: str) -> float:
        parts = [int(colour[at:at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@needs_chromium
def test_in_chromium_it_fits_wide_and_narrow_in_light_and_dark(html: str, tmp_path: Path) -> None:
    file = tmp_path / "index.html"
    file.write_text(html, encoding="utf-8")
    for width in (1280, 390):
        assert background(file, width, "light") != background(file, width, "dark")


def background(file: Path, width: int, scheme: str) -> str:
    """The page's colour, once it fits the window, fetched nothing and reported no error."""
    with open_page(viewport={"width": width, "height": 900}, color_scheme=scheme) as page:
        requests, errors = list[str](), list[str]()
        page.on("request", lambda request: requests.append(request.url))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert (requests, errors) == ([file.as_uri()], [])
        return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))
