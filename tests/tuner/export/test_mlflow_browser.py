"""What a user sees in MLflow: a real server, a real Chromium, and screenshots of each page.

They are kept in the folder that ADATP_SCREENSHOTS names, otherwise in pytest's.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from dashboards.inspection.cards import cards_picture
from dashboards.pareto.figure import pareto_picture
from dashboards.picture.picture import write
from dashboards.report.page import report_html
from tests.inspections import make_inspection
from tests.summaries import make_regressions, make_summary
from tuner.reporting.values import PrunedTrial

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]

KNOBS = ("tau_s", "tau_t", "alpha_boost", "gamma_cap", "p")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SLOW = 60_000  # ms; of one step, on a loaded machine
# A first visitor is shown a panel over a third of the page. Sandboxed frames have no storage.
WITHOUT_ASSISTANT = """
if (origin.startsWith("http")) {
    localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
    localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
}
"""


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser):
    """A first-time visitor on a laptop; anything that a page's scripts throw fails the test."""
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(WITHOUT_ASSISTANT)
    context.set_default_timeout(SLOW)
    page = context.new_page()
    errors = []
    context.on("weberror", lambda error: errors.append(str(error.error)))
    yield page
    context.close()
    assert errors == []


@pytest.fixture(scope="module")
def shoot(tmp_path_factory):
    folder = Path(os.environ.get("ADATP_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return lambda page, name: page.screenshot(path=folder / f"mlflow-{name}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, empty_database):
    """With the server's database."""
    folder = tmp_path_factory.mktemp("mlflow")
    shutil.copy(empty_database, folder / "server.db")
    return folder


def _with_stopped(summary, count):
    """The last trials are those that the pruner ended."""
    gone = summary.trials[-count:]
    pruned = tuple(
        PrunedTrial(trial.number, trial.configuration, trial.outcome.flops_ratio, by=1, videos=15)
        for trial in gone
    )
    best = max(
        (trial for trial in summary.trials[:-count] if trial.within_budget),
        key=lambda trial: trial.outcome.accuracy,
    )
    return replace(summary, trials=summary.trials[:-count], pruned=pruned, best=best)


@pytest.fixture(scope="module")
def large(folder):
    """260 trials and 40 pruned ones, written beside the server as `tuner run` does by default."""
    from tuner.export.mlflow_mirror import MlflowMirror

    mirror = MlflowMirror(f"sqlite:///{folder / 'server.db'}")
    summary = _with_stopped(make_summary(300, study="large"), 40)
    for when in ("first", "again"):
        begun = time.monotonic()
        mirror.record(summary)
        print(f"\n300 runs, {when}: {time.monotonic() - begun:.1f} s")  # noqa: T201
    return summary


@pytest.fixture(scope="module")
def server(browser, folder, server_environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=server_environment, start_new_session=True
        )
    try:
        address = f"http://127.0.0.1:{port}"
        _wait_for(f"{address}/health", process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_for(url, process, log, seconds=300):
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(url):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not answer:\n{log.read_text()}")


@pytest.fixture(scope="module")
def study():
    return _with_stopped(make_summary(24, regressions=make_regressions(8)), 3)


@pytest.fixture(scope="module")
def recorded(server, folder, study):
    """A study on the server, with its report."""
    from tuner.export.mlflow_mirror import MlflowMirror

    files = write(pareto_picture(study), folder / "figures")
    report = folder / "figures" / "report.html"
    report.write_text(report_html(study, (pareto_picture(study), cards_picture(make_inspection()))))
    begun = time.monotonic()
    written = MlflowMirror(server).record(study, [report, *files])
    print(f"\n24 runs through a server: {time.monotonic() - begun:.1f} s")  # noqa: T201
    return written


def _experiment(recorded):
    return recorded.page.split("/runs/")[0]


def _open(page, recorded, link):
    """From the address that `tuner run` prints, by a link of the description: it opens another tab."""
    page.goto(recorded.page)
    with page.context.expect_page() as opened:
        page.get_by_role("link", name=link, exact=True).click()
    return opened.value


def _headers(page):
    """Titles of the table's columns that have been drawn, from left to right."""
    page.wait_for_selector(".ag-header-cell")
    script = "all => all.map(one => [one.getBoundingClientRect().x, one.innerText.trim()])"
    drawn = page.locator(".ag-header-cell").evaluate_all(script)
    return [text for _, text in sorted(drawn) if text]


def _names(page):
    """Names of the runs that have been drawn, from top to bottom."""
    page.wait_for_selector(".ag-row a:has-text('trial')")
    script = "all => all.map(one => [one.getBoundingClientRect().y, one.innerText.trim()])"
    return [text for _, text in sorted(page.locator(".ag-row a:has-text('trial')").evaluate_all(script))]


def test_the_printed_address_leads_to_the_result_and_to_everything_else(page, recorded, study, shoot):
    page.goto(recorded.page)
    for link in ("trials in a table", "trials as parallel coordinates", "report", "pareto"):
        page.get_by_role("link", name=link, exact=True).wait_for()
    page.get_by_text(f"Best within the budget: trial {study.best.number}").wait_for()
    # Not among tools for prompts, where MLflow 3 begins.
    page.get_by_role("link", name="Runs", exact=True).first.wait_for()
    assert page.get_by_text("Evaluation runs").count() == 0
    shoot(page, "study")


def test_trials_are_listed_by_accuracy_under_names_and_columns_that_say_something(
    page, recorded, study, shoot
):
    page = _open(page, recorded, "trials in a table")
    names = _names(page)
    ordered = sorted(study.trials, key=lambda trial: -trial.outcome.accuracy)
    assert [int(name[6:9]) for name in names[:3]] == [trial.number for trial in ordered[:3]]
    assert any(re.fullmatch(r"trial \d{3} \(best\): \d\d\.\d % at 0\.\d{3}", name) for name in names)
    headers = _headers(page)
    assert headers[0] == "Run Name"
    assert headers[2 : 2 + len(KNOBS)] == list(KNOBS)
    assert headers[2 + len(KNOBS) :][:2] == ["flops_ratio", "accuracy"]
    page.get_by_text("24 matching runs").wait_for()
    shoot(page, "trials")


def test_the_menu_of_views_offers_the_trials(page, recorded, study, shoot):
    page.goto(f"{_experiment(recorded)}?workflowType=machine_learning")
    page.get_by_role("button", name="Views").click()
    shoot(page, "views")
    page.get_by_text("demo 5f2c9d7b: trials").click()
    assert set(KNOBS) <= set(_headers(page))


def test_parallel_coordinates_show_five_knobs_accuracy_and_flops(page, recorded, shoot):
    page = _open(page, recorded, "trials as parallel coordinates")
    page.get_by_text("Parallel Coordinates").wait_for()
    for name in (*KNOBS, "flops_ratio", "accuracy"):
        page.locator("svg").get_by_text(name, exact=True).first.wait_for()
    shoot(page, "parallel")


def test_comparing_chosen_trials_begins_with_three_knobs_and_takes_the_others(page, recorded, shoot):
    page = _open(page, recorded, "trials in a table")
    _names(page)
    boxes = page.locator(".ag-row .ag-checkbox-input")
    for index in range(10):
        boxes.nth(index).check()
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("Comparing 10 Runs from 1 Experiment").wait_for()
    axes = page.locator(".parcoords .axis-title")
    axes.first.wait_for()
    assert axes.all_text_contents() == ["alpha_boost", "gamma_cap", "p", "accuracy"]
    parameters, metrics = page.locator(".du-bois-light-select-multiple").all()
    for select, wanted in ((parameters, ("tau_s", "tau_t")), (metrics, ("flops_ratio",))):
        for name in wanted:
            select.click()
            page.keyboard.type(name)
            page.keyboard.press("Enter")
        page.keyboard.press("Escape")
    page.wait_for_function("document.querySelectorAll('.parcoords .axis-title').length == 7")
    assert set(axes.all_text_contents()) == {*KNOBS, "accuracy", "flops_ratio"}
    shoot(page, "compare")


def test_the_report_works_in_the_artifact_view(page, recorded, study, shoot):
    page = _open(page, recorded, "report")
    frame = page.frame_locator("iframe")
    frame.get_by_text("May I ship it?").wait_for()
    shoot(page, "report-answer")
    # Figures are drawn when they come near the screen.
    frame.get_by_role("heading", name="Accuracy against compute").scroll_into_view_if_needed()
    points = frame.locator(".js-plotly-plot .scatterlayer .point")
    points.first.wait_for(state="attached")  # a pruned trial's tick has no width
    # Its scripts ran: they drew the points.
    assert points.count() >= len(study.trials)
    shoot(page, "report")


def test_the_regression_table_opens(page, recorded, study, shoot):
    page = _open(page, recorded, "regressions, question by question")
    page.get_by_text("View as table").wait_for()
    for regression in study.regressions:
        page.get_by_role("cell", name=regression.question, exact=True).first.wait_for()
    page.get_by_text("baseline_text").first.wait_for()
    shoot(page, "regressions")


@pytest.mark.soak
def test_three_hundred_trials_stay_usable(page, server, large, shoot):
    from tuner.export.mlflow_mirror import MlflowMirror

    recorded = MlflowMirror(server).find(large)
    page.goto(recorded.page)
    link = page.get_by_role("link", name="trials in a table", exact=True)
    link.wait_for()
    begun = time.monotonic()
    with page.context.expect_page() as opened:
        link.click()
    table = opened.value
    first, *_ = _names(table)
    print(f"\n300 runs listed after {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert int(first[6:9]) == max(large.trials, key=lambda trial: trial.outcome.accuracy).number
    shoot(table, "large")
    table.get_by_text("100 matching runs").wait_for()
    table.locator(".ag-body-viewport").first.evaluate("body => body.scrollTo(0, body.scrollHeight)")
    table.get_by_role("button", name="Load more").click()
    table.get_by_text("200 matching runs").wait_for()
    page = _open(page, recorded, "trials as parallel coordinates")
    begun = time.monotonic()
    page.locator("svg").get_by_text("tau_s", exact=True).first.wait_for()
    print(f"\ntheir parallel coordinates after {time.monotonic() - begun:.1f} s")  # noqa: T201
    shoot(page, "large-parallel")
