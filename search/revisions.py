"""What a sweep is, kept in its ledger: its study and the code that trains, and every time that either was changed.

A sweep that goes on with other code or another study than it began with would mix results that are not comparable, so
it says what changed and does not.
"""

import hashlib
import importlib.metadata
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

import trainables
from search.families import outside
from search.ledger import Ledger, Revision
from spaces import BadInput, Study, load_study, to_yaml
from trainables.artefacts import write_atomically
from trainables.names import is_own

STUDY_FILE = "study.yaml"
PACKAGES = ("torch", "torchvision", "numpy", "scikit-learn", "xgboost", "optuna", "ray")
MAY_MOVE = (
    "trainable",
    "data.path",
    "student.function",
    "teacher.path",
    "teacher.checkpoint",
)  # where a file lies: what is in it is compared by its own fingerprint
SHOWN = 6


def code_of(study: Study) -> dict[str, str]:
    """{file: fingerprint} of the code that trains, the user's included, and {package: version} of what it stands on."""
    root = Path(trainables.__file__).parent
    files = {f"trainables/{path.relative_to(root).as_posix()}": path for path in root.rglob("*.py")}
    files |= {what: Path(path) for what, path in outside.code_files(study).items()}
    if study.trainable is not None:
        files["the study's trainable"] = Path(study.trainable.rpartition(":")[0])
    for name, arm in study.arms.items():
        if is_own(arm.variant):
            path, _, function = arm.variant.rpartition(":")
            files[f"the variant {function} of {name}"] = Path(path)
    found = {name: _fingerprint(path) for name, path in sorted(files.items())}
    return found | {"python": platform.python_version()} | {p: importlib.metadata.version(p) for p in PACKAGES}


def begin(ledger: Ledger, study: Study) -> None:
    """The first revision of a new sweep."""
    ledger.revise(Revision(to_yaml(study), code_of(study), "begun", 0))


def write_study(run: Path, text: str) -> None:
    """`study.yaml` is written from the ledger, whole or not at all."""
    write_atomically(run / STUDY_FILE, text.encode())


def current(ledger: Ledger, run: Path, force: bool) -> Study:
    """The study to go on with. Raises BadInput where it or its code is not what the ledger says, unless `force`."""
    revisions = ledger.revisions()
    path = run / STUDY_FILE
    if not revisions:  # begun by an earlier version
        study = load_study(path)
        ledger.revise(Revision(to_yaml(study), code_of(study), "taken over from an earlier version", 0))
        return study
    newest = revisions[-1]
    found = path.read_text(encoding="utf-8") if path.is_file() else None
    if found is None or found in [r.study for r in revisions[:-1]]:
        write_study(run, newest.study)  # an extension was interrupted before it came to this
    study = load_study(path)
    edited = _differences(yaml.safe_load(newest.study), yaml.safe_load(to_yaml(study)))
    moved = {*MAY_MOVE, *(f"arms.{name}.variant" for name, arm in study.arms.items() if is_own(arm.variant))}
    if not set(edited) <= moved:
        if not force:
            raise BadInput(
                f"{path} was edited since the sweep began: {_listed(edited)}. Budget, seeds and arms are changed with "
                "`distune extend`; --force goes on with the study as the sweep began it"
            )
        write_study(run, newest.study)
        study = load_study(path)
    now = code_of(study)
    changed = _differences(newest.code, now)
    if changed and not force:
        raise BadInput(
            f"the code that trains has changed since {run} began: {_listed(changed)}. Results before and after would "
            "not be comparable: go on with what it began with, or with --force"
        )
    if changed:
        why = f"resumed with other code than it began with: {_listed(changed)}"
        ledger.revise(Revision(newest.study, now, why, newest.round))
        ledger.note(why)
    return study


def _differences(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """{dotted name: "before -> after"} of all that is not the same."""
    found: dict[str, str] = {}
    for name, was, now in _both(before, after):
        if isinstance(was, Mapping) and isinstance(now, Mapping):
            found |= _differences(was, now, f"{prefix}{name}.")
        elif was != now:
            found[f"{prefix}{name}"] = f"{_short(was)} -> {_short(now)}"
    return found


def _both(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys([*before, *after]):
        yield name, before.get(name), after.get(name)


def _listed(differences: Mapping[str, str]) -> str:
    items = [f"{name} ({change})" for name, change in differences.items()]
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 30 else text[:27] + "..."


def _fingerprint(path: Path) -> str:
    if not path.is_file():
        raise BadInput(f"{path}, which the study names, is not there: put it back, or say in study.yaml where it is")
    return hashlib.blake2b(path.read_bytes(), digest_size=6).hexdigest()
