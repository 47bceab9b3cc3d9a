"""From a name, a YAML file and `--set` assignments to a validated `Study`, or to one line that says what is wrong."""

import dataclasses
import functools
import hashlib
import math
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import pydantic
import yaml

from spaces import attention_transfer, mlp_ensemble, promo_attention
from spaces.families import (
    GIVEN,
    KINDS,
    OF_PERCEPTRON,
    ORDINARY,
    READS_HIDDEN,
    SIZE_HYPERPARAMETERS,
    TAGS,
    WEIGHS_TEACHERS,
)
from spaces.outside import FILES
from spaces.study import A_A_CONTROL, BASELINE, Study, sized
from trainables.names import is_own, nearest

BUILT_IN: dict[str, Study] = {
    study.name: study
    for study in (mlp_ensemble.STUDY, promo_attention.STUDY, attention_transfer.CIFAR10, attention_transfer.DIGITS)
}
_STUDY = pydantic.TypeAdapter(Study)
_ENCODED_FOR_ITSELF = ("factory", "torchscript", "onnx")
# The parts of a study that name arms, and which arms one item of each is about.
_ASKED_OF: dict[str, Callable[[Any], Iterable[str]]] = {
    "contrasts": lambda contrast: (contrast[0], contrast[1]),
    "claims": lambda claim: (claim["better"], claim["worse"]),
    "effects": lambda effect: effect["arms"],
}


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-3, which has no point, as text; here it is the number that everybody means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


# Nor is 1024-64-32 the date that YAML 1.1 takes it for.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


class BadInput(ValueError):
    """The user's input cannot be used; the message is one line that says what was given and what is allowed."""


def load_study(name: str | Path, overrides: Iterable[str] = ()) -> Study:
    """The built-in study `name`, or the one in the YAML file `name`, changed by `key.path=value` assignments.

    Raises BadInput, naming what is allowed, for an unknown study, an unknown key, a wrong type or a broken rule.
    """
    if str(name) in BUILT_IN:
        raw = _plain(BUILT_IN[str(name)])
    elif Path(name).suffix in {".yaml", ".yml"}:
        raw = _read_yaml(Path(name))
    else:
        raise BadInput(
            f"unknown study '{name}'{nearest(str(name), BUILT_IN)}: give a built-in study ({', '.join(BUILT_IN)}) "
            "or the path of a .yaml file"
        )
    raw = _laid_over(raw, [_assignment(assignment) for assignment in overrides])
    return _validate(_with_sizes(_with_fingerprint(_with_absolute_paths(raw, Path.cwd()))))


def adjust(
    study: Study, *, quick: bool = False, arms: Sequence[str] = (), trials: int | None = None, **budget: int | None
) -> Study:
    """The study with its quick budget, with some of its arms, or with other numbers in its budget.

    arms: those to keep; the baseline and its A/A control always stay. trials: an arm's budget as so many trials of
    mean cost. budget: `seed_epochs_per_arm`, `seeds_per_trial`, `confirm_seeds`; None leaves a number as it is.
    """
    raw = _plain(study)
    if quick:
        raw["budget"] = dict(raw["quick"])
    raw["budget"] |= {name: value for name, value in budget.items() if value is not None}
    for arm in arms:
        if arm not in raw["arms"]:
            raise BadInput(f"unknown arm '{arm}'{nearest(arm, raw['arms'])}: {study.name} has {', '.join(raw['arms'])}")
    if arms:
        kept = {A_A_CONTROL, *study.baselines, *arms, *(sized(arm, size) for arm in arms for size in study.sizes)}
        raw = _without_arms(raw, set(raw["arms"]) - kept)
    if trials is not None:
        if trials < 1:
            raise BadInput(f"the number of trials must be 1 or more, got {trials}")
        search = trials * _validate(raw).budget.mean_trial_cost
        raw["budget"]["seed_epochs_per_arm"] = math.ceil(search / (1 - raw["budget"]["reevaluate_share"]))
    return _validate(raw)


@dataclasses.dataclass(frozen=True)
class Extension:
    """What a sweep is to be given beyond what it has.

    confirm_seeds, seed_epochs: `+40` for so many more, or the new total. arms: names to add, as `source` defines them:
    a built-in study or a YAML file, or None for the study's own name.
    """

    confirm_seeds: str | None = None
    seed_epochs: str | None = None
    arms: tuple[str, ...] = ()
    source: str | None = None


def extended(study: Study, by: Extension) -> tuple[Study, str]:
    """The study with more of something, and what was added in words. Raises BadInput for less, nothing or unknown."""
    raw, added = _plain(study), []
    for field, flag, given in (
        ("confirm_seeds", "--confirm-seeds", by.confirm_seeds),
        ("seed_epochs_per_arm", "--seed-epochs", by.seed_epochs),
    ):
        if given is not None:
            before = raw["budget"][field]
            raw["budget"][field] = after = _more(before, given, flag)
            added.append(f"{field} {before} -> {after}")
    if by.arms:
        raw = _with_arms(raw, by.arms, by.source or study.name)
        added.append(f"arms {', '.join(by.arms)}")
    if not added:
        raise BadInput("give what to add: --confirm-seeds +40, --seed-epochs +4000 or --arms NAME")
    return _validate(_with_sizes(raw)), "extended by " + ", ".join(added)


def _more(before: int, given: str, flag: str) -> int:
    try:
        after = before + int(given) if given.strip().startswith("+") else int(given)
    except ValueError:
        raise BadInput(f"{flag} takes a total such as 60 or an addition such as +40, got '{given}'") from None
    if after <= before:
        raise BadInput(f"{flag} {given} is not more than the {before} that the sweep has; nothing is ever taken away")
    return after


def _with_arms(raw: dict[str, Any], arms: Sequence[str], source: str) -> dict[str, Any]:
    """The study with these arms of the study `source`, and what that asks and claims of them and the arms there are."""
    if source not in BUILT_IN and Path(source).suffix not in {".yaml", ".yml"}:
        raise BadInput(
            f"say where the arms are defined: --from with a built-in study ({', '.join(BUILT_IN)}) or a .yaml"
        )
    other = _plain(load_study(source))
    if _kind_of("data", raw) == "csv" != _kind_of("data", other):
        other = _without_published(other)
    for arm in arms:
        if arm in raw["arms"]:
            raise BadInput(f"the sweep has the arm '{arm}' already")
        if arm not in other["arms"]:
            raise BadInput(f"unknown arm '{arm}'{nearest(arm, other['arms'])}: {source} has {', '.join(other['arms'])}")
    known = {**raw["arms"], **{arm: other["arms"][arm] for arm in arms}}
    ordered = {name: known[name] for name in dict.fromkeys([*other["arms"], *known]) if name in known}
    wider = _without_arms({**other, "arms": {**other["arms"], **known}}, set(other["arms"]) - set(known))
    asked = {}
    for part, arms_of in _ASKED_OF.items():
        brought = [one for one in wider[part] if one in raw[part] or set(arms_of(one)) & set(arms)]
        asked[part] = brought + [one for one in raw[part] if one not in brought]
    return {**raw, "arms": ordered, **asked}


def to_yaml(study: Study) -> str:
    """The study as resolved: a YAML text that `load_study` turns into an equal study, whatever is built in then."""
    return str(yaml.safe_dump(_plain(study), sort_keys=False, allow_unicode=True, width=120))


def _plain(study: Study) -> dict[str, Any]:
    """JSON-like data; values that equal their default stay in, so that a stored study never changes its meaning."""
    return cast(dict[str, Any], _STUDY.dump_python(study, mode="json"))


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read the study file {path}: {error}") from None
    except yaml.YAMLError as error:
        raise BadInput(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise BadInput(f"{path} must be a mapping such as 'extends: mlp-ensemble', got {type(raw).__name__}")
    if isinstance(raw.get("trainable"), str):
        raw["trainable"] = str(path.parent.absolute() / raw["trainable"])  # a path in a file is relative to the file
    raw = _with_absolute_paths(raw, path.parent.absolute())
    if "extends" not in raw:
        return raw
    base = raw.pop("extends")
    if not isinstance(base, str) or base not in BUILT_IN:
        raise BadInput(
            f"{path}: extends: unknown study '{base}'{nearest(str(base), BUILT_IN)}: allowed are {', '.join(BUILT_IN)}"
        )
    return _with_ordinary(_laid_over(_plain(BUILT_IN[base]), [raw]))


def _laid_over(base: dict[str, Any], changes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The study `base` with these changes laid over it in their order, and with what follows from them."""
    merged = functools.reduce(_merge, changes, base)
    before = base
    if _kind_of("data", merged) == "csv" != _kind_of("data", base):
        before = _without_published(before)
    if any(_kind_of(part, merged) != _kind_of(part, base) for part in ("student", "teacher")):
        before = _for_other_networks(before, merged)
    if before is not base:
        merged = functools.reduce(_merge, changes, before)
    merged = _without_those_left_out(base, merged)
    if _kind_of("student", merged) == "factory" != _kind_of("student", base):
        merged = _without_arms(merged, _of_variants(merged, READS_HIDDEN))
    return _with_an_arm_for_each_teacher(base, merged)


def _kind_of(part: str, raw: dict[str, Any]) -> Any:
    """The kind of `data`, `student` or `teacher`, where one is given."""
    given = raw.get(part)
    return given.get("kind") if isinstance(given, dict) else None


def _without_published(plain: dict[str, Any]) -> dict[str, Any]:
    """The study for a table of one's own: what a source measured elsewhere says nothing of it."""
    arms = {name: {**arm, "published": None} for name, arm in plain["arms"].items()}
    return {**plain, "arms": arms, "claims": [], "published_teacher": None, "notes": []}


def _with_absolute_paths(raw: dict[str, Any], where: Path) -> dict[str, Any]:
    """The paths of files made absolute: one in a file is relative to the file, one of `--set` to the working folder."""

    def absolute(part: Any, *keys: str) -> Any:
        if not isinstance(part, dict):
            return part
        given = [key for key in keys if isinstance(part.get(key), str)]
        return part | {key: os.path.normpath(where / Path(part[key]).expanduser()) for key in given}

    found = {"data": ("path", "validation_rows"), "student": FILES, "teacher": FILES}
    changed = {part: absolute(raw[part], *keys) for part, keys in found.items() if part in raw}
    arms = raw.get("arms")
    if isinstance(arms, dict):
        own = {n: a for n, a in arms.items() if isinstance(a, dict) and is_own(a.get("variant"))}
        changed["arms"] = {**arms, **{n: absolute(a, "variant") for n, a in own.items()}}
    return {**raw, **changed}


def _with_ordinary(raw: dict[str, Any]) -> dict[str, Any]:
    """An arm of one's own need not repeat what every arm has: it searches the baseline's dimensions, too.

    Its teacher rows are its own unless it says otherwise. What is malformed is left to the validation.
    """
    arms, ordinary = raw.get("arms"), ORDINARY.get(str(raw.get("family")), ())
    baseline = arms.get(BASELINE) if isinstance(arms, dict) else None
    if not isinstance(arms, dict) or not isinstance(baseline, dict):
        return raw

    def filled(arm: dict[str, Any]) -> dict[str, Any]:
        def over(part: str, given: Any) -> Any:
            known = {k: v for k, v in baseline.get(part, {}).items() if k in ordinary}
            return {**known, **given} if isinstance(given, dict) else given

        arm = {"teacher_rows": "own", **arm, "default": over("default", arm.get("default", {}))}
        if "space" in arm:
            arm["space"] = over("space", arm["space"])
        if isinstance(arm.get("published"), dict):
            arm["published"] = {**arm["published"], "config": over("default", arm["published"].get("config", {}))}
        return arm

    own = {n: a for n, a in arms.items() if isinstance(a, dict) and is_own(a.get("variant"))}
    return {**raw, "arms": {**arms, **{n: filled(a) for n, a in own.items()}}}


def _without_those_left_out(base: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """`arms: {kd_fa: null}` leaves an arm of the extended study out, and what the study asks of it."""
    arms = raw.get("arms")
    gone = {name for name, arm in arms.items() if arm is None} if isinstance(arms, dict) else set()
    for name in gone - set(base.get("arms", ())):
        raise BadInput(f"arms.{name}: no such arm to leave out{nearest(name, base['arms'])}: {', '.join(base['arms'])}")
    return _without_arms(raw, gone) if gone else raw


def _for_other_networks(plain: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """The study for a student or a teacher of another kind, as `wanted` has them.

    What a source measured with its own networks says nothing of these, and arms that change a ResNet student or read
    fixed layers of a ResNet teacher go with it. Default layers give way to the first of those that `wanted` searches;
    the hyperparameters of a perceptron go where the student is a module of the user's; one teacher from outside serves
    all seeds.
    """
    plain = _without_published(plain)
    gone = {n for n, arm in plain["arms"].items() if "layers" in arm["default"] and "layers" not in arm["space"]}
    if _kind_of("student", wanted) != _kind_of("student", plain):
        gone |= {name for name, arm in plain["arms"].items() if arm.get("student")}
    plain = _without_arms(plain, gone)
    arms = {}
    for name, arm in plain["arms"].items():
        choices = _spaces(wanted["arms"]).get(name, {}).get("layers", {})
        given = choices.get("choices") if isinstance(choices, dict) else None
        if "layers" in arm["default"] and given and arm["default"]["layers"] not in given:
            arm = {**arm, "default": {**arm["default"], "layers": given[0]}}
        if _kind_of("student", wanted) == "factory":
            arm = arm | {part: _without_keys(arm.get(part, {}), OF_PERCEPTRON) for part in ("space", "default")}
        arms[name] = arm
    trained_here = not isinstance(wanted.get("teacher"), dict) or "fitted_on" not in wanted["teacher"]
    return {**plain, "arms": arms} | ({} if trained_here else {"confirm_teachers": 1})


def _without_keys(given: dict[str, Any], gone: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if key not in gone}


def _with_fingerprint(raw: dict[str, Any]) -> dict[str, Any]:
    """The study with the SHA-256 of the file that its teacher is read from, so that no other can take its place."""
    teacher = raw.get("teacher")
    if not isinstance(teacher, dict) or teacher.get("sha256") is not None:
        return raw
    for key in ("path", "checkpoint"):
        if isinstance(teacher.get(key), str):
            try:
                with open(teacher[key], "rb") as file:
                    digest = hashlib.file_digest(file, "sha256").hexdigest()
            except OSError as error:
                raise BadInput(f"teacher.{key}: cannot read {teacher[key]}: {error.strerror}") from None
            return {**raw, "teacher": {**teacher, "sha256": digest}}
    return raw


def _with_sizes(raw: dict[str, Any]) -> dict[str, Any]:
    """Every searched arm once more for each of `sizes`; what is malformed is left to the validation.

    The A/A control stays one: it says how far two searches of the same thing lie apart.
    """
    arms, sizes = raw.get("arms"), raw.get("sizes")
    if not isinstance(arms, dict) or not isinstance(sizes, dict):
        return raw
    added = {}
    for size, different in sizes.items():
        for name, arm in arms.items():
            searched = isinstance(arm, dict) and arm.get("space") and arm.get("size") is None and name != A_A_CONTROL
            if searched and sized(name, size) not in arms and isinstance(different, dict):
                fixed = {
                    k: v for k, v in different.items() if k in SIZE_HYPERPARAMETERS.get(str(raw.get("family")), ())
                }
                space = {k: v for k, v in arm["space"].items() if k not in fixed}
                own = {"size": size, "space": space, "default": {**arm["default"], **fixed}, "published": None}
                added[sized(name, size)] = {**arm, **own}
    return {**raw, "arms": {**arms, **added}}


def _with_an_arm_for_each_teacher(before: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """Where a change gives a study of tables other teachers: an arm for each new one, none for those gone.

    With one teacher the arms that weigh several against each other are left out, too. What is malformed is left to the
    validation.
    """
    arms = raw.get("arms")
    old, new = _models(before), _models(raw)
    if old is None or new is None or set(old) == set(new) or not isinstance(arms, dict):
        return raw
    gone = {name for name, arm in arms.items() if _teacher_alone(arm) in set(old) - set(new)}
    if len(new) == 1:
        gone |= _of_variants(raw, WEIGHS_TEACHERS)
    about = {"variant": "one_teacher", "teacher_rows": "own", "about": "the teacher alone"}
    shown = {*old, *arms, *(_teacher_alone(arm) for arm in arms.values())}
    added = {m: {**about, "default": {"teacher": m}} for m in new if m not in shown}
    return _without_arms({**raw, "arms": {**arms, **added}}, gone)


def _of_variants(raw: dict[str, Any], variants: Sequence[str]) -> set[str]:
    """The names of the arms with one of these variants."""
    arms = raw["arms"] if isinstance(raw.get("arms"), dict) else {}
    return {name for name, arm in arms.items() if isinstance(arm, dict) and arm.get("variant") in variants}


def _models(raw: dict[str, Any]) -> list[str] | None:
    """The names of a table study's teachers, or None where there are none or they are malformed."""
    teacher = raw.get("teacher")
    if raw.get("family") == "tabular" and _kind_of("teacher", raw) == "logits":
        return [GIVEN]
    models = teacher.get("models") if isinstance(teacher, dict) else None
    return list(models) if isinstance(models, list | tuple) and all(isinstance(m, str) for m in models) else None


def _teacher_alone(arm: Any) -> Any:
    """The teacher that an arm shows alone, or None."""
    default = arm.get("default") if isinstance(arm, dict) and arm.get("variant") == "one_teacher" else None
    return default.get("teacher") if isinstance(default, dict) else None


def _without_arms(raw: dict[str, Any], gone: set[str]) -> dict[str, Any]:
    """The study without these arms and what it asks of them; what is malformed is left to the validation."""

    def kept(part: str) -> Any:
        asked, arms_of = raw.get(part, ()), _ASKED_OF[part]
        try:
            return [one for one in asked if not set(arms_of(one)) & gone]
        except (TypeError, KeyError, IndexError):
            return asked

    return {
        **raw,
        "arms": {name: arm for name, arm in raw["arms"].items() if name not in gone},
        **{part: kept(part) for part in _ASKED_OF},
    }


def _assignment(text: str) -> dict[str, Any]:
    """`a.b.c=value` as nested mappings; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise BadInput(f"--set takes key=value with dots between levels, such as budget.confirm_seeds=40, got '{text}'")
    try:
        nested: Any = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise BadInput(f"--set {key}: the value '{value}' is not valid YAML") from None
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return cast(dict[str, Any], nested)


def _merge(base: Any, changes: Any, where: str = "") -> Any:
    """`base` with `changes` laid over it, level by level; a dimension that turns into another kind is replaced."""
    if not isinstance(base, dict) or not isinstance(changes, dict):
        return changes
    if "choices" in base or "choices" in changes or changes.get("kind", base.get("kind")) != base.get("kind"):
        return changes
    merged = dict(base)
    for key, value in changes.items():
        if key != "space" or where:
            merged[key] = _merge(base[key], value, f"{where}.{key}") if key in base else value
    if "space" in changes and not where:  # last, so that it meets the arms as they will be
        merged["arms"] = _everywhere(merged["arms"], changes["space"])
    return merged


def _everywhere(arms: dict[str, Any], space: Any) -> dict[str, Any]:
    """A top-level `space:` changes a dimension in every arm that searches it, so that the arms' ranges stay equal."""
    if not isinstance(space, dict):
        raise BadInput(f"space: must map hyperparameters to ranges, got {space!r}")
    spaces = _spaces(arms)
    searched = {name for own in spaces.values() for name in own}
    for name in space:
        if name not in searched:
            raise BadInput(f"space.{name}: no arm searches it{nearest(name, searched)}: {', '.join(sorted(searched))}")
    changed = {
        key: {n: _merge(d, space[n]) if n in space else d for n, d in own.items()} for key, own in spaces.items()
    }
    return {**arms, **{key: {**arms[key], "space": own} for key, own in changed.items()}}


def _spaces(arms: Any) -> dict[str, dict[str, Any]]:
    """The spaces of the arms that have one; whatever is malformed is left to the validation."""
    if not isinstance(arms, dict):
        raise BadInput(f"arms: must map names to arms, got {arms!r}")
    own = {key: arm.get("space") for key, arm in arms.items() if isinstance(arm, dict)}
    return {key: space for key, space in own.items() if isinstance(space, dict)}


def _validate(raw: Mapping[str, Any]) -> Study:
    family = str(raw.get("family"))
    for part, kinds in KINDS.get(family, {}).items():
        given = raw[part].get("kind") if isinstance(raw.get(part), dict) else None
        if (family, part) == ("tabular", "teacher") and given in _ENCODED_FOR_ITSELF:
            raise BadInput(
                f"teacher.kind={given}: a model from outside reads a table in an encoding of its own, which is not "
                "known here: give what it said of every row, as kind: logits"
            )
        if given is not None and given not in kinds:
            raise BadInput(_unknown_kind(part, given, kinds))
    try:
        return _STUDY.validate_python(raw)
    except pydantic.ValidationError as error:
        lines = list(dict.fromkeys(_one_line(raw, e) for e in error.errors()))
        raise BadInput(lines[0] + (f" (and {len(lines) - 1} more like it)" if lines[1:] else "")) from None


def _one_line(raw: Any, error: Any) -> str:
    """One of pydantic's errors as `where: what was given and what is allowed`."""
    path = [str(p) for p in error["loc"] if p not in ("range", "choice") and p not in TAGS]
    where = ".".join(path) or "study"
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        parent = raw
        for part in path[:-1]:
            parent = parent.get(part, {}) if isinstance(parent, dict) else {}
        allowed = _allowed_keys(raw, path)
        return f"unknown key {where}{nearest(path[-1], allowed)}: allowed are {', '.join(allowed)}"
    if error["type"].startswith("missing"):
        return f"{where} is missing"
    if error["type"] == "union_tag_invalid":
        return _unknown_kind(where, error["ctx"]["tag"], KINDS.get(str(raw.get("family")), {}).get(path[-1], TAGS))
    reason = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{where}: {reason}"
    return f"{where}: got {error['input']!r}: {reason[0].lower()}{reason[1:]}"


def _unknown_kind(where: str, given: Any, allowed: Iterable[str]) -> str:
    return f"{where}.kind: got '{given}'{nearest(str(given), allowed)}: allowed are {', '.join(map(repr, allowed))}"


def _allowed_keys(raw: Any, path: list[str]) -> list[str]:
    """The fields of the dataclass that an unknown key was given to, found by walking a study of the same family."""
    family = raw.get("family") if isinstance(raw, dict) else None
    node: Any = next((s for s in BUILT_IN.values() if s.family == family), next(iter(BUILT_IN.values())))
    for part in path[:-1]:
        if isinstance(node, dict):
            node = node.get(part, next(iter(node.values()), None))
        elif isinstance(node, tuple):
            node = node[0]
        else:
            node = getattr(node, part)
    kinds = KINDS.get(str(family), {}).get(path[0], {}) if len(path) == 2 else {}
    if kinds:
        node = kinds.get(raw[path[0]].get("kind"), node)
    return [f.name for f in dataclasses.fields(node)] if dataclasses.is_dataclass(node) else []
