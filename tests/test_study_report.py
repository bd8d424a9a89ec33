"""The report: what its files hold, and that it works in a browser."""

from __future__ import annotations

import csv
import os
import re
import shutil

import pytest
import yaml

from dllm_sampling import RunConfig
from dllm_sampling.study import Results, report
from tests.study_files import SMALL, finished, small

NASTY = "Mia has 2 pens </pre><script>window.broken = 1</script> & | more"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    data = folder / "data.jsonl"
    lines = [f'{{"q": "{NASTY}. Mia buys {i}. How many pens?", "a": "{2 + i}"}}' for i in range(6)]
    data.write_text("\n".join(lines))
    task = {
        "name": "file",
        "path": str(data),
        "prompt": "{{ q }}",
        "answer": "{{ a }}",
        "check": "last_number",
        "gen_length": 32,
    }
    published = [
        {
            "task": "word_problems",
            "sampler": "threshold 0.9",
            "accuracy": 0.785,
            "tokens_per_second": 54.4,
            "source": "Table 1",
        }
    ]
    results = small(
        limit=6, tasks=["word_problems", task], published=published, name="A <study> of its own"
    ).run(folder / "out")
    report.write(results)
    return folder / "out"


def test_all_its_files_are_written(folder):
    for name in ("report.html", "report.md", "results.csv", "curves.csv", "manifest.json"):
        assert (folder / name).stat().st_size > 100, name
    plots = {path.name for path in (folder / "plots").iterdir()}
    for task in (0, 1):
        for kind in ("pareto", "sweep-0", "time", "distribution"):
            assert f"{task}-{kind}.svg" in plots
            assert f"{task}-{kind}.png" in plots
    assert (folder / "plots" / "0-pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_needs_nothing_but_itself(folder):
    html = (folder / "report.html").read_text()
    linked = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(target.startswith(("#", "data:")) for target in linked)
    assert "@import" not in html
    assert "url(" not in html.replace("url(#", "")


def test_what_stands_in_prompts_is_text(folder):
    html = (folder / "report.html").read_text()
    assert "<script>window.broken" not in html
    assert "&lt;script&gt;window.broken" in html
    assert "A &lt;study&gt; of its own" in html


def test_the_markdown_table_has_as_many_cells_in_every_line(folder):
    text = (folder / "report.md").read_text()
    table = [line for line in text.splitlines() if line.startswith("|")]
    widths = {line.replace("\\|", "").count("|") for line in table[: 2 + 3]}
    assert len(widths) == 1
    assert "no difference shown" in text
    assert "78.5%" in text  # the published figure
    assert "Table 1" in text
    for plot in re.findall(r"\((plots/[^)]*)\)", text):
        assert (folder / plot).exists()


def test_the_same_records_make_the_same_report(folder, tmp_path):
    report.write(Results(folder), tmp_path)
    for name in ("report.html", "report.md", "results.csv", "plots/0-pareto.svg"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_csv_holds_what_the_rows_hold(folder):
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    results = Results(folder)
    assert len(rows) == len(results.rows) == 6
    for row, own in zip(rows, results.rows, strict=True):
        assert row["sampler"] == own.sampler
        for name, estimate in own.estimates.items():
            assert float(row[name]) == estimate.value
    assert rows[2]["published_accuracy"] == "0.785"


def test_a_rows_config_runs(folder, tmp_path):
    results = Results(folder)
    config = yaml.safe_dump(dict(results.rows[1].run))
    (tmp_path / "run.yaml").write_text(config)
    assert RunConfig.read(tmp_path / "run.yaml").sampler.unmasking.threshold == 0.5
    code, out, err = finished(
        "generate",
        "Mia has 27 pens. Mia buys 5. Mia loses 8. How many pens?",
        "--config",
        tmp_path / "run.yaml",
        "--quiet",
    )
    assert code == 0, err
    assert "####" in out


def test_report_writes_a_folder_anew_and_elsewhere(folder, tmp_path):
    code, out, err = finished("report", folder, "--output", tmp_path / "copy")
    assert code == 0, err
    assert (tmp_path / "copy" / "report.html").exists()
    assert "threshold 0.9" in out
    code, _, err = finished("report", tmp_path)
    assert code == 2
    assert "holds no manifest.json" in err


def test_an_unfinished_study_is_reported_as_such(tmp_path):
    results = small(limit=6).run(tmp_path, only="one at a time")
    report.write(results)
    text = (tmp_path / "report.md").read_text()
    assert "## Not finished" in text
    assert "threshold 0.9 / seed 0" in text


# In a browser -----------------------------------------------------------------------------------------

CHROMIUM = shutil.which("chromium")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1500,1100"
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=DRIVER, env={**os.environ, "NO_PROXY": "*"})
    driver = webdriver.Chrome(options=options, service=service)
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, folder):
    browser.get((folder / "report.html").as_uri())
    return browser


TABLE = "section:first-of-type table.results:not(.curves)"


def samplers(page):
    return [button.text for button in page.find_elements("css selector", f"{TABLE} td.sampler button")]


def heading(page, title):
    return next(b for b in page.find_elements("css selector", f"{TABLE} thead button") if b.text == title)


def values(page, column):
    """What the lines below the baseline are sorted by."""
    rows = page.find_elements("css selector", f"{TABLE} tr.line:not(.baseline)")
    cells = [row.find_elements("css selector", ":scope > td")[column] for row in rows]
    return [float(cell.get_attribute("data-key")) for cell in cells]


def test_it_opens_without_a_word_in_the_console(page):
    assert "A <study> of its own" in page.title
    assert page.get_log("browser") == []
    assert page.execute_script("return window.broken") is None
    assert len(page.find_elements("css selector", "figure svg")) == 8


def test_a_table_sorts_with_the_baseline_on_top(page):
    assert samplers(page) == ["one at a time", "threshold 0.5", "threshold 0.9"]
    for title, column in (("forwards", 4), ("tokens/s", 3)):
        heading(page, title).click()
        assert samplers(page)[0] == "one at a time"
        assert values(page, column) == sorted(values(page, column), reverse=True)
        heading(page, title).click()
        assert samplers(page)[0] == "one at a time"
        assert values(page, column) == sorted(values(page, column))
    heading(page, "sampler").click()
    assert samplers(page) == ["one at a time", "threshold 0.9", "threshold 0.5"]


def test_a_row_unfolds_to_its_config_and_answers_beside_the_baselines(page):
    button = page.find_element("css selector", "tr.line:not(.baseline) td.sampler button")
    detail = page.find_element("css selector", "tr.line:not(.baseline) + tr.detail")
    assert not detail.is_displayed()
    button.click()
    assert detail.is_displayed()
    assert button.get_attribute("aria-expanded") == "true"
    config = yaml.safe_load(detail.find_element("css selector", "pre.config").text)
    assert config["sampler"]["unmasking"]["threshold"] == 0.5
    answers = detail.find_elements("css selector", "table.answers tr")
    assert len(answers) == 1 + 5
    assert len(answers[1].find_elements("css selector", "pre")) == 3
    button.click()
    assert not detail.is_displayed()


def test_copying_a_config_selects_it(page):
    page.find_element("css selector", "tr.line:not(.baseline) td.sampler button").click()
    copy = page.find_element("css selector", "tr.line:not(.baseline) + tr.detail button.copy")
    copy.click()
    selected = page.execute_script("return getSelection().toString()")
    assert yaml.safe_load(selected)["gen_length"] == 64


def test_the_details_follow_their_rows_when_sorted(page):
    heading(page, "tokens/forward").click()
    rows = page.find_elements("css selector", f"{TABLE} > tbody > tr")
    kinds = [row.get_attribute("class").split()[0] for row in rows]
    assert kinds == ["line", "detail"] * 3
    for line, detail in zip(rows[::2], rows[1::2], strict=True):
        name = line.find_element("css selector", "button").text
        config = yaml.safe_load(
            detail.find_element("css selector", "pre.config").get_attribute("textContent")
        )
        threshold = config["sampler"]["unmasking"].get("threshold")
        assert name == (f"threshold {threshold}" if threshold else SMALL["baseline"])
