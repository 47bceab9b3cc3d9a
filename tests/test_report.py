"""analysis/report without a browser: it says what `compare` says, of any run, and lets nothing out of its text."""

import dataclasses
import html.parser
import json
import re
import subprocess
import sys

import numpy as np
import plotly.graph_objects as go
import pytest

import distune
from analysis.comparison import compare
from analysis.report import curves, page, paper_figure, write, write_while_it_grows
from analysis.report.parts import embedded
from search.ledger import NotALedger, TrialRecord
from spaces import BadInput
from tests.made_ledgers import new_run, row, small_study
from tests.made_reports import confirmed, finished_run, searched
from tests.test_cli import distune as cli


class Page(html.parser.HTMLParser):
    """Tables by section as lists of rows of text, embedded data, and every element with its attributes."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.data, self.elements, self.text = {}, {}, [], ""
        self._section = self._open = self._cell = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.elements.append((tag, given))
        if tag == "section":
            self._section = given["id"]
        elif tag == "table":
            self.tables.setdefault(self._section, []).append([])
        elif tag == "tr":
            self.tables[self._section][-1].append([])
        elif tag in ("td", "th"):
            self._cell = ""
        elif tag in ("script", "style"):
            self._open = given.get("id", tag)

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.tables[self._section][-1][-1].append(self._cell)
            self._cell = None
        elif tag in ("script", "style"):
            self._open = None

    def handle_data(self, data):
        if self._open is None:
            self.text += data
            if self._cell is not None:
                self._cell += data
        elif self._open.startswith("data-"):
            self.data[self._open] = json.loads(data)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished_run(tmp_path_factory.mktemp("report") / "run")


@pytest.fixture(scope="module")
def whole(run):
    return Page(page.render(run))


def percent(value):
    return f"{100 * value:.2f}"


def test_the_table_holds_the_numbers_of_compare(run, whole):
    said = json.loads(cli("compare", run, "--json").stdout)
    assert whole.data["data-comparison"] == said
    heading, *rows = whole.tables["answer"][-1]
    assert heading[:4] == ["arm", "verdict", "published", "as published"]
    for arm, cells in zip(said["arms"], rows, strict=True):
        tuned, delta = arm["tuned"], arm["delta_vs_baseline"]
        assert cells[0].removesuffix(" (A/A)") == arm["arm"]
        assert cells[4] == f"{percent(tuned['mean'])} [{percent(tuned['ci95'][0])}, {percent(tuned['ci95'][1])}]"
        if delta:
            assert cells[1] == arm["verdict"]
            low, high = delta["ci95_family"]
            assert cells[6] == f"{100 * delta['mean']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def test_the_top_says_the_verdict_and_the_claims_their_sentence(run, whole):
    said = compare(run)
    assert "Better than tuned hard_labels, in points: kd +" in whole.text
    assert "Unfinished" not in whole.text
    (claim,) = said["published_claims"]
    assert whole.tables["claims"][0][1][1] == claim["verdict"]
    assert claim["sentence"] in whole.tables["claims"][0][1][2]


def test_the_forest_plot_draws_the_differences_and_their_intervals(run, whole):
    drawn = whole.data["data-figures"]["differences"]
    at = dict(zip(drawn["layout"]["yaxis"]["ticktext"], drawn["layout"]["yaxis"]["tickvals"], strict=True))
    points = {}
    for trace in drawn["data"]:
        if "error_x" in trace:
            bars = zip(trace["y"], trace["x"], trace["error_x"]["arrayminus"], trace["error_x"]["array"], strict=True)
            points |= {y: (x - low, x, x + high) for y, x, low, high in bars}
    for arm in compare(run)["arms"]:
        if arm["delta_vs_baseline"]:
            low, high = arm["delta_vs_baseline"]["ci95_family"]
            expected = [100 * v for v in (low, arm["delta_vs_baseline"]["mean"], high)]
            assert points[at[arm["arm"]]] == pytest.approx(expected)


def test_every_figure_is_one_that_plotly_knows_and_has_its_numbers_and_a_name_beside_it(whole):
    for key, figure in whole.data["data-figures"].items():
        go.Figure(figure)  # raises for a property that does not exist
        plot = next(a for t, a in whole.elements if a.get("data-figure") == key)
        assert plot["role"] == "img"
        assert plot["aria-label"].endswith("the numbers are in the table below")
    kinds = {key.split("-")[0] for key in whole.data["data-figures"]}
    assert kinds >= {"differences", "levels", "curves", "parallel", "evp", "anytime", "importance", "gradient", "cost"}


def test_no_two_elements_have_one_name(whole):
    names = [attributes["id"] for _, attributes in whole.elements if "id" in attributes]
    assert len(names) == len(set(names))


def test_every_trial_is_in_the_page_with_how_it_ended_and_no_number_that_is_none(run, whole):
    trials = whole.data["data-trials"]
    columns = dict(zip(trials["names"], trials["columns"], strict=True))
    asked = distune.open_run(run).trials()
    assert columns["trial"] == asked["trial"].tolist()
    assert columns["ended"] == asked["ended"].tolist()
    assert {"diverged", "crashed", "finished"} <= set(columns["ended"])
    at = columns["trial"].index("kd-00005")
    last = distune.open_run(run).epochs().query("trial == 'kd-00005'")["score"].iloc[-2]
    assert columns["score"][at] == pytest.approx(100 * last, abs=1e-3)  # its last epoch is NaN
    assert columns["smoothing"][at] is None
    assert set(trials["messages"].values()) == {"RuntimeError: <b>out</b> of memory"}


def test_nothing_is_asked_of_a_network(whole):
    for tag, attributes in whole.elements:
        for name in ("src", "href", "action", "data", "poster"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    (policy,) = [a["content"] for t, a in whole.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "http" not in policy


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--"


def test_html_in_names_and_in_yaml_is_text(tmp_path):
    study = dataclasses.replace(small_study(), name=EVIL, about=EVIL, notes=(EVIL,), source=EVIL)
    arms = {EVIL if name == "kd_shuffled" else name: definition for name, definition in study.arms.items()}
    contrasts = tuple((EVIL if a == "kd_shuffled" else a, b, q) for a, b, q in study.contrasts if b != "kd_shuffled")
    study = dataclasses.replace(study, arms=arms, contrasts=contrasts)
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study, 5)
        config = study.arms["kd"].default | {"batch_size": EVIL}
        ledger.ask(TrialRecord(EVIL, "kd", 0, EVIL, config, 0.0))
        ledger.report(EVIL, [row(1, 0.99), row(2, 0.99), row(3, 0.99)])
        ledger.end(EVIL, "crashed", 1, EVIL)
        confirmed(ledger, study)
    text = page.render(tmp_path / "run")
    read = Page(text)
    assert "<script>alert" not in text
    assert not [1 for tag, attributes in read.elements if tag == "img" and attributes.get("src") == "x"]
    assert sum(tag == "script" for tag, _ in read.elements) == text.count("<script") == text.count("</script>")
    assert EVIL in read.text
    assert (
        EVIL in dict(zip(read.data["data-trials"]["names"], read.data["data-trials"]["columns"], strict=True))["trial"]
    )
    for figure in read.data["data-figures"].values():
        assert "<img" not in json.dumps(figure)


def test_embedded_json_keeps_its_values_and_ends_no_element():
    value = {"</script>": ["<!--", "a & b", "\u2028", float("nan"), float("inf"), 1.5, None]}
    text = embedded(value)
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"</script>": ["<!--", "a & b", "\u2028", None, None, 1.5, None]}


def test_a_sweep_that_is_not_finished_says_so_first(tmp_path):
    study = small_study()
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study, 3)
        ledger.ask(dataclasses.replace(ledger.trials()[0], trial="running"))
    read = Page(page.render(tmp_path / "run"))
    trials = 3 * len(study.searched)
    assert f"Unfinished. {trials} of {trials + 1} trials have ended" in re.sub(r"\s+", " ", read.text)
    assert "No arm has been compared with the tuned baseline yet." in read.text
    assert "differences" not in read.data["data-figures"]
    assert "curves-kd" in read.data["data-figures"]


@pytest.mark.parametrize("trials", [0, 1])
def test_a_run_without_a_finished_trial_has_a_page(tmp_path, trials):
    study = small_study()
    with new_run(tmp_path / "run", study) as ledger:
        if trials:
            ledger.ask(dataclasses.replace(_first(study), trial="only"))
            ledger.report("only", [row(1, float("nan"))])
    read = Page(page.render(tmp_path / "run"))
    assert ("No trial has been asked yet." in read.text) == (trials == 0)
    assert f"0 of {trials} trials have ended" in read.text
    assert len(read.data["data-trials"]["columns"][0]) == trials


def _first(study):
    return TrialRecord("t", "kd", 0, "sobol", dict(study.arms["kd"].default), 0.0)


def test_one_arm_beside_the_baseline_is_enough(tmp_path):
    study = small_study(("kd",))
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study)
        confirmed(ledger, study)
    read = Page(page.render(tmp_path / "run"))
    assert [r[0] for r in read.tables["answer"][-1][1:]] == ["hard_labels", "hard_labels_again (A/A)", "kd"]


def test_one_seed_has_no_interval_and_the_page_says_so(tmp_path):
    study = small_study(subsearches=1, seed_epochs_per_arm=18)
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study, 4)
        confirmed(ledger, study, seeds_each=1)
    read = Page(page.render(tmp_path / "run"))
    assert "one seed is confirmed, so there is no interval" in read.text
    row_of_kd = next(r for r in read.tables["answer"][-1] if r[0] == "kd")
    assert re.fullmatch(r"\d+\.\d\d ", row_of_kd[4])
    assert "no interval" in read.tables["answer"][0][1][3]


def test_a_metric_that_an_arm_lacks_is_a_dash(whole):
    heading, *rows = whole.tables["beside"][-1]
    at = heading.index("ms, batch 1")
    assert {r[0]: r[at] for r in rows}["hard_labels_again"] == "-"
    assert {r[0]: r[at] for r in rows}["kd"] == "0.200"


def test_a_page_that_is_watched_loads_itself_again_until_the_sweep_is_over(tmp_path):
    study, folder, seen = small_study(), tmp_path / "run", []
    with new_run(folder, study) as ledger:
        searched(ledger, study)

        def wait(_):
            seen.append('http-equiv="refresh" content="5"' in (folder / page.FILE).read_text())
            confirmed(ledger, study)

        write_while_it_grows(folder, lambda line: None, wait)
    assert seen == [True]
    assert 'http-equiv="refresh"' not in (folder / page.FILE).read_text()
    assert not list(folder.glob("*.tmp"))


def test_ctrl_c_leaves_a_page_that_does_not_load_itself(tmp_path):
    with new_run(tmp_path / "run", small_study()):
        pass

    def wait(_):
        raise KeyboardInterrupt

    write_while_it_grows(tmp_path / "run", lambda line: None, wait)
    assert 'http-equiv="refresh"' not in (tmp_path / "run" / page.FILE).read_text()


def test_many_curves_are_thinned_and_the_page_says_how_many_there_were(tmp_path):
    study = small_study(("kd",))
    with new_run(tmp_path / "run", study) as ledger:
        searched(ledger, study, 60)
    figure = Page(page.render(tmp_path / "run"))
    drawn = figure.data["data-figures"]["curves-kd"]["data"][0]
    assert drawn["x"].count(None) == curves.CURVES
    assert "30 of the other 59 trials are drawn" in figure.text


def test_the_command_prints_where_the_page_is(run):
    done = cli("report", run)
    assert (done.returncode, done.stdout) == (0, f"{run / 'report.html'}\n"), done.stderr


@pytest.mark.parametrize("suffix", [".png", ".pdf"])
def test_the_main_figure_is_a_file_for_a_paper(run, tmp_path, suffix):
    assert distune.open_run(run).report(tmp_path / f"main{suffix}") == run / "report.html"
    start = (tmp_path / f"main{suffix}").read_bytes()[:5]
    assert start.startswith(b"\x89PNG" if suffix == ".png" else b"%PDF-")


def test_a_figure_that_cannot_be_is_refused_in_one_line(run, tmp_path):
    for path, says in ((tmp_path / "main.svg", ".png or .pdf"), (tmp_path / "no" / "main.png", "there is no folder")):
        with pytest.raises(BadInput, match=says):
            distune.open_run(run).report(path)
    with new_run(tmp_path / "run", small_study()):
        pass
    with pytest.raises(BadInput, match="nothing has been confirmed"):
        paper_figure.write(compare(tmp_path / "run"), tmp_path / "main.png")
    done = cli("report", run, "--figure", tmp_path / "main.svg")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(NotALedger):
        write(tmp_path)


def test_a_report_that_fails_is_a_warning_and_no_failed_sweep(run, monkeypatch):
    def fail(*_):
        raise RuntimeError("no room")

    monkeypatch.setattr("analysis.report.write", fail)
    said: list[str] = []
    distune._write_report(distune.open_run(run), said.append)
    assert said == ["warning: no report, RuntimeError: no room"]


def test_what_repeats_the_sweep_is_in_the_page(run, whole):
    (command,) = re.findall(r"distune sweep study\.yaml[^\n<]*", whole.text)
    assert command == "distune sweep study.yaml"
    assert (run / "study.yaml").read_text() in whole.text


def test_the_report_imports_neither_torch_nor_ray():
    code = "import sys, analysis.report\nassert not {'torch', 'ray'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_maps_are_shown_with_what_they_are_of(run):
    rng = np.random.default_rng(0)
    arrays = {"images": rng.integers(0, 255, (2, 3, 16, 16), dtype=np.uint8), "classes": np.array([0, 4])}
    arrays |= {"arms": np.array(["kd"]), "layer": np.array("layer3"), "teacher": rng.random((2, 4, 4))}
    arrays |= {"mask": np.zeros((2, 4, 4)), "students": rng.random((1, 2, 4, 4))}
    np.savez(run / "maps.npz", **arrays)
    try:
        read = Page(page.render(run))
    finally:
        (run / "maps.npz").unlink()
    pictures = [attributes for tag, attributes in read.elements if tag == "img"]
    assert len(pictures) == 2 * 4
    assert all(p["src"].startswith("data:image/png;base64,") for p in pictures)
    assert pictures[3]["alt"] == "test image 1, class 0: attention map of kd"
