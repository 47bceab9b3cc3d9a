"""The documentation is true: every code block runs or parses, links lead somewhere, the diagram is the contract."""

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ET

import pytest
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import distune
from search.ledger import Ledger
from spaces import BadInput
from tests.doc_blocks import (
    COMMANDS,
    LONG,
    PAGES,
    ROOT,
    SHELL,
    blocks,
    blocks_of,
    check_command,
    check_study,
    check_synopsis,
    commands,
    is_quick,
    split,
    synopses,
)
from tests.made_runs import confirmed_run

ALL = [block for page in PAGES for block in blocks(page)]
SHELLS = [b for b in ALL if b.kind == "shell"]
QUICK = list(dict.fromkeys(shlex.join(words) for b in SHELLS for words in commands(b) if is_quick(words)))
ARMS = ("hard_labels", "hard_labels_again", "label_smoothing", "kd_shuffled", "kd")
SMALL = {
    "extends": "mlp-ensemble",
    "data": {"n_samples": 800, "fresh_rows": 0},
    "teacher": {"members": 2, "hidden": [16], "dropout": [0.1], "epochs": 3},
    "student": {"hidden": [8]},
}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder as the documentation's reader has it: a finished run at runs/first, and the files of the pages."""
    folder = tmp_path_factory.mktemp("reader")
    confirmed_run(folder, SMALL, ARMS)
    (folder / "runs").mkdir()
    run = (folder / "run").rename(folder / "runs" / "first")
    with Ledger.open(run) as ledger:
        ledger.clock("confirmation", "end")
    for block in ALL:
        if block.file:
            (folder / block.file).write_text(block.text)
        if block.kind == "yaml" and (name := re.search(r"^name: (\S+)", block.text, re.MULTILINE)):
            (folder / f"{name.group(1)}.yaml").write_text(block.text)
    return folder


def test_the_pages_hold_blocks_of_every_kind():
    kinds = {kind: sum(b.kind == kind for b in ALL) for kind in ("python", "yaml", "shell")}
    assert kinds["python"] >= 3
    assert kinds["yaml"] >= 6
    assert kinds["shell"] >= 20
    assert {words[1] for words in map(shlex.split, QUICK)} >= {
        "studies",
        "compare",
        "watch",
        "export",
        "report",
        "runs",
    }


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "python"], ids=str)
def test_python_blocks_run(block, here, monkeypatch):
    if block.not_run:
        compile(block.text, str(block), "exec")
        return
    monkeypatch.chdir(here)
    exec(compile(block.text, str(block), "exec"), {"__name__": "__docs__"})


@pytest.mark.parametrize("block", [b for b in ALL if b.kind == "yaml"], ids=str)
def test_yaml_blocks_are_studies(block, here):
    if block.not_run:
        assert "extends" in yaml.safe_load(block.text)
        return
    check_study(block.text, here)


@pytest.mark.parametrize("block", SHELLS, ids=str)
def test_shell_blocks_parse(block):
    for words in commands(block):
        check_command(words)


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_run(line, here, monkeypatch):
    monkeypatch.chdir(here)
    done = CliRunner().invoke(distune.app, shlex.split(line)[1:])
    assert done.exit_code == 0, done.output


def test_the_readme_lists_every_command():
    named = [split(words[1:])[0] for words in synopses((ROOT / "README.md").read_text("utf-8"))]
    assert set(named) == set(COMMANDS)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_in_running_text_exist(page):
    for words in synopses(page.read_text("utf-8")):
        check_synopsis(words)


@pytest.mark.parametrize("text", ["use `distune swep STUDY`", "use `distune sweep STUDY [--quik]`"])
def test_a_command_in_running_text_that_does_not_exist_fails(text):
    (words,) = synopses(text)
    with pytest.raises(ValueError, match="distune"):
        check_synopsis(words)


def test_an_export_of_the_tutorial_checks_itself(here, monkeypatch):
    monkeypatch.chdir(here)
    done = CliRunner().invoke(distune.app, ["export", "runs/first", "--arm", "kd", "--to", "to-check"])
    assert done.exit_code == 0, done.output
    done = subprocess.run([sys.executable, "to-check/run.py"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "logits differ" in done.stdout


def test_what_is_not_run_says_why_and_is_a_command():
    assert set(LONG) <= set(COMMANDS)
    assert all(len(reason) > 10 for reason in LONG.values())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("    distune swep mlp-ensemble\n", "no command swep"),
        ("    distune sweep mlp-ensemble --quik\n", "--quik"),
        ("    distune compare\n", "runs"),
        ("    make nothing\n", "no target nothing"),
        ("    python -m tests.benchmarks.nothing\n", "no module"),
        ("    python -m tests.benchmarks.rebuild --nothing\n", "no option --nothing"),
        ("```sh\ndistun studies\n```\n", "no known program"),
        ("    pytest tests/test_nothing.py\n", "no tests/test_nothing.py"),
        ("    distune studies\n    distune sweep\n", "study"),
    ],
)
def test_a_broken_shell_block_fails(text, error):
    (block,) = blocks_of(text, "page.md")
    assert block.kind == "shell"
    with pytest.raises(Exception, match=re.escape(error)):  # noqa: PT012 - of any of its commands
        for words in commands(block):
            check_command(words)


def test_a_broken_yaml_block_fails(tmp_path):
    with pytest.raises(BadInput, match="did you mean 'budget'"):
        check_study("extends: mlp-ensemble\nbugdet: {confirm_seeds: 40}\n", tmp_path)


def test_a_broken_python_block_fails(here, monkeypatch):
    (block,) = blocks_of('```python\nimport distune\ndistune.open_run("runs/first").nothing()\n```\n', "page.md")
    with pytest.raises(AttributeError):
        test_python_blocks_run(block, here, monkeypatch)


def test_only_a_comment_with_a_reason_before_a_block_keeps_it_from_running():
    fence = "```python\nraise SystemError\n```\n"
    assert blocks_of(f"<!-- not run: it takes an hour -->\n{fence}", "p")[0].not_run == "it takes an hour"
    assert blocks_of(f"<!-- not run: -->\n{fence}", "p")[0].not_run is None
    assert blocks_of(f"<!-- not run: it takes an hour -->\n{fence}\ntext\n\n{fence}", "p")[1].not_run is None


def test_output_is_not_taken_for_commands():
    text = "```\n$ distune studies\nbuilt-in studies\n```\n\n    kd   better   97.20\n"
    first, second = blocks_of(text, "page.md")
    assert commands(first) == [["distune", "studies"]]
    assert second.kind == "other"
    assert "kd" not in SHELL


def links(page):
    for token in MarkdownIt().parse(page.read_text("utf-8")):
        for child in token.children or ():
            target = child.attrGet("href") or child.attrGet("src")
            if target:
                yield target


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_to_files_and_headings(page):
    for target in links(page):
        if re.match(r"https://", target):
            continue
        assert ":" not in target, f"{page.name}: {target}"
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(found), f"{page.name}: {target}"


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text("utf-8")
    listed = set(re.findall(r": (\S+\.md)$", text, re.MULTILINE))
    assert listed == {p.relative_to(ROOT / "docs").as_posix() for p in PAGES if p.is_relative_to(ROOT / "docs")}


def layers_of(picture):
    """The names of the boxes of class `layer`, from top to bottom."""
    texts = [t for t in ET.fromstring(picture).iter() if "layer" in t.get("class", "").split()]
    return [t.text for t in sorted(texts, key=lambda t: float(t.get("y")))]


def test_the_diagram_shows_the_layers_that_import_linter_keeps():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (kept,) = [c["layers"] for c in contracts if c["type"] == "layers"]
    picture = (ROOT / "docs" / "pictures" / "architecture.svg").read_text("utf-8")
    assert layers_of(picture) == kept
    assert layers_of(picture.replace(">search<", ">somewhere<")) != kept


@pytest.mark.parametrize("picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda p: p.name)
def test_pictures_load_nothing_from_a_network(picture):
    assert not re.search(r"""(?:url\(|href=)["']?https?:""", picture.read_text("utf-8"))


def test_compare_json_is_documented_key_by_key(here):
    page = (ROOT / "docs" / "reference" / "compare-json.md").read_text("utf-8")
    keys = {k.removesuffix("[]") for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for k in _quoted(row)}
    result = distune.open_run(here / "runs" / "first").compare()
    assert set(result) - {"arms"} <= keys
    assert {k for arm in result["arms"] for k in arm} <= keys
    sometimes = {"fixed", "best_of_epochs", "population_delta"}
    assert keys <= set(result) | {k for arm in result["arms"] for k in arm} | sometimes


def _quoted(row):
    return re.findall(r"`([^`]+)`", row)


def test_the_reference_has_every_command_and_every_key():
    build = _build()
    commands, study = build.commands(), build.study()
    for name, command in COMMANDS.items():
        assert f"## {name}\n" in commands
        for parameter in command.params:
            assert all(option in commands for option in parameter.opts if option.startswith("--"))
    for key in ("seed_epochs_per_arm", "confirm_seeds", "teacher_rows", "validation_fraction"):
        assert f"| `{key}` |" in study
    assert "<!-- generated" not in build.filled((ROOT / "docs" / "reference" / "cli.md").read_text("utf-8"))


def _build():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="pip install 'distune[docs]'")
def test_the_site_builds_without_warnings_and_loads_nothing_from_a_network():
    done = subprocess.run([sys.executable, "-m", "docs.build"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = list((ROOT / "build" / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) / 2
    for page in pages:
        loaded = re.findall(
            r"<(?:script|link|img|iframe)\b[^>]*?(?:src|href)=[\"']?(\S+?)[\"'\s>]", page.read_text("utf-8")
        )
        assert not [target for target in loaded if re.match(r"(https?:)?//", target)], page.name
