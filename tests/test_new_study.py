"""`distune new study` and `distune check`: what is written runs as it is, and nothing is overwritten."""

import json

import pytest

from search.local import check_study
from spaces import BadInput, load_study
from spaces.new_study import SOURCES, write
from tests.test_cli import distune


@pytest.mark.parametrize("source", SOURCES)
def test_what_is_written_can_be_swept_as_it_is(tmp_path, source):
    folder = tmp_path / "my-own"
    written = write(folder, source)
    assert {folder / "study.yaml", folder / "variant.py"} <= set(written)
    study = load_study(folder / "study.yaml")
    assert study.name == "my-own"
    assert "my-study" not in (folder / "study.yaml").read_text() + (folder / "variant.py").read_text()
    found = check_study(study, 1, lambda line: None)
    assert [term["status"] for term in found["arms"]["my_variant"]["terms"]] == ["alive", "alive"]
    assert found["arms"]["my_variant"]["runs"] == ("one by one" if source == "image-folder" else "packed")


def test_the_variant_is_about_thirty_lines(tmp_path):
    write(tmp_path / "mine", "mlp-ensemble")
    assert len((tmp_path / "mine" / "variant.py").read_text().splitlines()) <= 36


def test_nothing_is_overwritten(tmp_path):
    folder = tmp_path / "mine"
    write(folder, "mlp-ensemble")
    (folder / "study.yaml").write_text("mine")
    with pytest.raises(BadInput, match="exists already: nothing is overwritten"):
        write(folder, "mlp-ensemble")
    assert (folder / "study.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "source", "says"),
    [("mine", "csvs", "did you mean 'csv'"), ("a b", "csv", "a letter first, got 'a b'"), ("1st", "csv", "got '1st'")],
)
def test_a_name_or_source_that_is_none_is_refused(tmp_path, name, source, says):
    with pytest.raises(BadInput, match=says):
        write(tmp_path / name, source)
    assert list(tmp_path.iterdir()) == []


def test_from_nothing_to_a_check_at_the_command_line(tmp_path):
    done = distune("new", "study", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    assert f"next: distune check {tmp_path / 'mine' / 'study.yaml'}" in done.stdout
    study = tmp_path / "mine" / "study.yaml"
    done = distune("check", study, "--quick", "--json", "--set", "data.n_samples=300")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["arms"]["my_variant"]["runs"] == "packed"
    variant = tmp_path / "mine" / "variant.py"
    variant.write_text(variant.read_text().replace('hp["temperature"]', 'hp["temprature"]'))
    line = next(n for n, text in enumerate(variant.read_text().splitlines(), 1) if "temprature" in text)
    for command in ("check", "sweep", "audit"):
        done = distune(command, study)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("distune: arms.my_variant: ")
        assert len(done.stderr.splitlines()) == 1
        assert f"variant.py:{line}: hp has no 'temprature' (did you mean 'temperature'?)" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]
