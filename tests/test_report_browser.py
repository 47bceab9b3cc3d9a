"""The report in headless Chromium: it draws, sorts and brushes, complains of nothing and asks no network."""

import dataclasses
import json
import os
import shutil

import pytest

from analysis.report import write
from tests.made_ledgers import new_run, small_study
from tests.made_reports import confirmed, finished_run, searched
from tests.test_cli import distune as cli

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOFTWARE_GL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")  # parallel coordinates


def _missing():
    """Why there is no browser to test with, or None."""
    try:
        import playwright.sync_api  # noqa: F401 - only whether it is there
    except ImportError:
        return "playwright is not installed: pip install 'distune[browser]'"
    return None if CHROMIUM else "there is no chromium: apt-get install chromium"


@pytest.fixture(scope="module")
def browser():
    if reason := _missing():
        if os.environ.get("DISTUNE_NEED_BROWSER") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *SOFTWARE_GL])
        yield opened
        opened.close()


class Watched:
    """A page with what it complained of and what it asked for."""

    def __init__(self, browser, run, **context):
        self.context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context})
        self.page, self.complaints, self.requests = self.context.new_page(), [], []
        self.page.on("console", lambda m: self.complaints.append(m.text) if m.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = (run / "report.html").as_uri()
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(self.url)

    def draw_all(self):
        self.page.evaluate(
            "document.querySelectorAll('section').forEach((s) => s.scrollIntoView({behavior:'instant'}))"
        )
        for figure in self.page.query_selector_all(".plot"):
            if figure.is_visible():
                figure.scroll_into_view_if_needed()
                figure.wait_for_selector(".main-svg", timeout=10_000)

    def left_the_page(self):
        return [url for url in self.requests if url != self.url and not url.startswith(("data:", "blob:"))]

    def column(self, number):
        return self.page.eval_on_selector_all(
            "#all tbody tr", "(rows, n) => rows.map((r) => r.cells[n].textContent)", number
        )


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = finished_run(tmp_path_factory.mktemp("browser") / "run", trials=30, arms=("kd",))
    write(folder)
    return folder


@pytest.fixture
def opened(browser, run):
    watched = Watched(browser, run)
    yield watched
    watched.context.close()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 390)])
def test_every_figure_is_drawn_without_a_complaint_or_a_request(browser, run, scheme, width):
    watched = Watched(browser, run, color_scheme=scheme, viewport={"width": width, "height": 800})
    watched.draw_all()
    assert watched.complaints == []
    assert watched.left_the_page() == []
    assert watched.page.evaluate("document.documentElement.scrollWidth") <= width
    assert watched.page.evaluate("document.documentElement.dataset.theme") == scheme
    watched.context.close()


def test_the_table_shows_the_numbers_of_compare(opened, run):
    said = json.loads(cli("compare", run, "--json").stdout)
    shown = opened.page.eval_on_selector_all(
        "#answer > .scroll tbody tr", "(rows) => rows.map((r) => [...r.cells].map((c) => c.textContent))"
    )
    for arm, cells in zip(said["arms"], shown, strict=True):
        low, high = (100 * v for v in arm["tuned"]["ci95"])
        assert cells[4] == f"{100 * arm['tuned']['mean']:.2f} [{low:.2f}, {high:.2f}]"


def test_a_heading_sorts_and_sorts_back(opened):
    scores = opened.page.locator("#all thead button").nth(2)
    scores.click()
    first = [float(v) for v in opened.column(2)]
    assert first == sorted(first, reverse=True)
    assert opened.page.locator("#all thead th").nth(2).get_attribute("aria-sort") == "descending"
    scores.click()
    again = [float(v) for v in opened.column(2)]
    assert again == sorted(again)
    assert again[0] < first[-1]
    assert opened.complaints == []


def test_search_and_pages_reach_every_trial(opened):
    page = opened.page
    assert page.inner_text("#count") == "90 of 90 trials"
    seen = set(opened.column(0))
    while page.is_enabled("#next"):
        page.click("#next")
        seen |= set(opened.column(0))
    assert len(seen) == 90
    page.fill("#find", "crashed")
    assert page.inner_text("#count") == "3 of 90 trials"
    assert set(opened.column(4)) == {"crashed"}


def test_brushing_an_axis_keeps_its_trials_in_the_table(opened):
    page = opened.page
    page.locator("#parallel .plot:visible").scroll_into_view_if_needed()
    page.wait_for_selector("#parallel .plot:visible .axis-brush", timeout=10_000)
    box = page.locator("#parallel .plot:visible .axis-brush").last.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 0.15 * box["height"])
    page.mouse.down()
    page.mouse.move(x, box["y"] + 0.30 * box["height"], steps=4)
    page.mouse.move(x, box["y"] + 0.45 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_selector("#unbrush:visible")
    low, high = page.evaluate("document.querySelector('#parallel-kd .plot').data[0].dimensions.at(-1).constraintrange")
    kept = [float(v) for v in opened.column(2)]
    assert 0 < len(kept) < 30
    assert all(low <= score <= high for score in kept)
    assert {name.split("-")[0] for name in opened.column(0)} == {"kd"}
    page.click("#unbrush")
    assert page.inner_text("#count") == "90 of 90 trials"
    assert opened.complaints == []


def test_another_arm_can_be_chosen(opened):
    page = opened.page
    page.select_option("[data-choose=parallel]", label="hard_labels")
    page.wait_for_selector("#parallel-hard_labels .main-svg")
    assert page.is_hidden("#parallel-kd")
    assert opened.complaints == []


def test_the_button_turns_the_figures_dark(opened):
    opened.page.wait_for_selector("#differences .ytick text")
    colour = "getComputedStyle(document.querySelector('#differences .ytick text')).fill"
    before = opened.page.evaluate(colour)
    opened.page.click("#theme")
    assert opened.page.evaluate("document.documentElement.dataset.theme") == "dark"
    opened.page.wait_for_function(f"{colour} !== '{before}'")
    assert opened.complaints == []


def test_html_in_a_name_runs_nothing(browser, tmp_path):
    evil = "<img src=x onerror=window.hit=1></script><script>window.hit=1</script>"
    study = small_study()
    arms = {evil if name == "kd_shuffled" else name: definition for name, definition in study.arms.items()}
    contrasts = tuple((evil if a == "kd_shuffled" else a, b, q) for a, b, q in study.contrasts if b != "kd_shuffled")
    study = dataclasses.replace(study, name=evil, about=evil, arms=arms, contrasts=contrasts)
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study)
        confirmed(ledger, study)
    write(tmp_path / "run")
    watched = Watched(browser, tmp_path / "run")
    for figure in ("differences", "levels", "importance-shares"):  # where plotly is given names of arms
        watched.page.locator(f"#{figure}").scroll_into_view_if_needed()
        watched.page.wait_for_selector(f"#{figure} .main-svg")
    assert watched.page.evaluate("window.hit") is None
    assert watched.page.inner_text("h1") == evil
    assert watched.complaints == []
    assert watched.left_the_page() == []
    watched.context.close()
