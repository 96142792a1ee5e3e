"""The report as Chromium shows it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from detect import report

pytestmark = pytest.mark.browser
HOSTILE = "<script>alert(1)</script>"


class Shown:
    """A report in the browser."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # of the page before
        browser.get(path.resolve().as_uri())

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)

    def one(self, selector: str) -> Any:
        (found,) = self.all(selector)
        return found

    def visible(self, selector: str) -> int:
        script = (
            "return [...document.querySelectorAll(arguments[0])].filter(each => each.getClientRects().length).length"
        )
        return self.browser.execute_script(script, selector)

    def requests(self) -> list[str]:
        """The addresses that were asked for."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]


@pytest.fixture
def shown(make: Callable[..., Any], browser: Any) -> Shown:
    made = make(("box", HOSTILE))
    made.log(*({"kind": "train", "epoch": 1, "iteration": i, "lr": 0.1, "loss": 9 / i} for i in range(1, 60)))
    made.evaluate(60)
    return Shown(browser, report(made.work_dir))


def test_the_page_needs_nothing_else_and_complains_of_nothing(shown: Shown) -> None:
    assert shown.all("svg.found image")
    addresses = shown.requests()
    assert addresses[0].startswith("file:")
    assert addresses[0].endswith("/report.html")
    assert all(address.startswith("data:") for address in addresses[1:])
    assert shown.browser.get_log("browser") == []


def test_the_slider_hides_what_scores_less(shown: Shown) -> None:
    from selenium.webdriver.common.keys import Keys

    slider = shown.one("#score")
    assert shown.one("#score-told").text == "0.30"
    assert shown.visible(".detection .box") == 5
    assert shown.one("#totals").text == "2 right, 2 wrong, 1 missed"
    slider.send_keys(Keys.ARROW_RIGHT * 25)
    assert shown.one("#score-told").text == "0.55"
    assert shown.visible(".detection .box") == 3
    assert shown.one("#totals").text == "1 right, 1 wrong, 2 missed"
    slider.send_keys(Keys.END)
    assert shown.visible(".detection .box") == 0
    slider.send_keys(Keys.HOME)
    assert shown.visible(".detection .box") == 5
    told = [each.text for each in shown.all(".sample .counts")]
    assert sorted(told) == ["0 right, 0 wrong, 0 missed", "1 right, 0 wrong, 0 missed", "1 right, 2 wrong, 1 missed"]


def test_ground_truth_lies_over_or_beside_what_was_found_or_nowhere(shown: Shown) -> None:
    truth, beside = (shown.one(f"#controls input[value={name}]") for name in ("truth", "beside"))
    over, alone = ".overlay .true .box", ".truth-alone"
    assert (shown.visible(f".sample {over}"), shown.visible(alone)) == (3, 0)
    truth.click()
    assert (shown.visible(f".sample {over}"), shown.visible(alone)) == (0, 0)
    assert shown.visible(".detection .box") == 5
    truth.click()
    beside.click()
    assert (shown.visible(f".sample {over}"), shown.visible(alone)) == (0, 3)
    truth.click()
    assert (shown.visible(f".sample {over}"), shown.visible(alone)) == (0, 0)


def test_masks_and_names_can_be_switched_off(shown: Shown) -> None:
    for name in ("mask", "name"):
        assert shown.visible(f".detection .{name}") == 5
        shown.one(f"#controls input[value={name}s]").click()
        assert shown.visible(f".detection .{name}") == 0


def test_a_name_that_is_a_script_is_text(shown: Shown) -> None:
    assert [each.text for each in shown.all("#class-table tbody th")] == ["box", HOSTILE]
    assert len(shown.all("script")) == 1


def test_classes_are_sorted_by_a_click(shown: Shown) -> None:
    def names() -> list[str]:
        return [each.text for each in shown.all("#class-table tbody th")]

    class_name, objects = shown.all("#class-table thead button")[:2]
    objects.click()
    assert names() == ["box", HOSTILE]
    objects.click()
    assert names() == [HOSTILE, "box"]
    class_name.click()
    assert names() == [HOSTILE, "box"]
    class_name.click()
    assert names() == ["box", HOSTILE]


def test_a_narrow_window_needs_no_sideways_scrolling(shown: Shown) -> None:
    wanted = {"width": 400, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    shown.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", wanted)
    try:
        assert shown.browser.execute_script("return document.documentElement.scrollWidth") <= 400
    finally:
        shown.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_long_name_is_cut_but_for_who_points_at_it(make: Callable[..., Any], browser: Any) -> None:
    name = "a long name, " * 15
    made = make((name, "box"))
    made.evaluate(60)
    shown = Shown(browser, report(made.work_dir))
    cut, whole = shown.all("#class-table tbody th")
    assert cut.get_attribute("title") == name
    assert cut.size == whole.size
    assert cut.get_property("scrollWidth") > cut.size["width"]
    labels = shown.all(".detection .name")
    assert len(labels) == 5
    for label in labels:
        assert "… 0." in label.text
        assert label.rect["width"] < shown.one("#picture-1").rect["width"]
    assert any(title.get_attribute("textContent").startswith(name) for title in shown.all(".shape title"))
