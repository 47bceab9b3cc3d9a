"""The workspace and the report of a sweep, by wandb-workspaces: JSON beside the runs, and online saved on the server.

A published number is a run, so that a panel that shows an arm's runs shows its published level too: a W&B panel has no
reference line.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws

from analysis.front import MEASURE
from analysis.tracking.contents import CONFIRM, PUBLISHED, SEARCH, Contents
from analysis.tracking.folders import FOLDER, REPORT, SAVED_VIEWS, WORKSPACE
from analysis.units import Unit
from search.ledger import Ledger
from spaces import Study, load_study

Json = dict[str, Any]
PANELS_A_ROW, WIDTH, HEIGHT = 2, 24, 8  # W&B's grid is 24 wide


def make(run: Path, project: str, result: Json, words: list[str]) -> None:
    """Write both as JSON under RUN/wandb."""
    workspace, report = _views(run, project, "", result, words)  # with an entity the server would be asked for it
    for name, view in ((WORKSPACE, workspace), (REPORT, report)):
        model = view._to_model()  # the only way to the JSON without a server
        text = model.model_dump_json(by_alias=True, exclude_none=True, indent=1)
        (run / FOLDER / name).write_text(text, encoding="utf-8")


def _views(run: Path, project: str, entity: str, result: Json, words: list[str]) -> tuple[ws.Workspace, wr.Report]:
    study = load_study(run / "study.yaml")
    with Ledger.open(run) as ledger:
        sweep = Contents(study, ledger).sweep
    return of_workspace(study, project, entity, sweep), of_report(study, project, entity, sweep, result, words)


def save() -> None:
    """Save both on the server, over what was saved before. `sys.argv`: run folder, project, entity or nothing.

    What `study_run` prints comes by standard input.
    """
    import wandb

    run, project, entity = Path(sys.argv[1]), sys.argv[2], sys.argv[3] or str(wandb.Api().default_entity)
    workspace, report = _views(run, project, entity, *json.load(sys.stdin))
    path = run / FOLDER / SAVED_VIEWS
    saved = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    workspace._internal_name, workspace._internal_id = saved.get("workspace", ("", ""))
    report.id = saved.get("report", "")
    workspace.save()
    report.save()
    kept = {"workspace": [workspace._internal_name, workspace._internal_id], "report": report.id}
    path.write_text(json.dumps(kept | {"urls": [workspace.url, report.url]}), encoding="utf-8")


def of_workspace(study: Study, project: str, entity: str, sweep: str) -> ws.Workspace:
    """Panels over the sweep's runs, grouped by arm. sweep: what the ids of its runs begin with."""
    sections = [
        ws.Section("Ablation", panels=_ablation(study), is_open=True, pinned=True),
        ws.Section("Learning curves", panels=_curves(study), is_open=True),
        ws.Section("What was searched", panels=[_coordinates(study, arm) for arm in study.searched]),
        ws.Section("Gradient shares", panels=_shares(study)),
        ws.Section("Budget", panels=_budget()),
    ]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"{study.name} {sweep}",
        sections=sections,
        settings=ws.WorkspaceSettings(x_axis="epoch", ignore_outliers=False),
        runset_settings=ws.RunsetSettings(
            filters=[ws.Summary("sweep_id") == sweep], groupby=[ws.Metric("Group"), ws.Metric("JobType")]
        ),
    )


def of_report(study: Study, project: str, entity: str, sweep: str, result: Json, words: list[str]) -> wr.Report:
    """The answer in words and the table first, then the panels, each arm's hyperparameters over its own trials."""
    own = f"SummaryMetric('sweep_id') == '{sweep}'"
    runsets = {
        kind: wr.Runset(entity, project, name=kind, filters=f"{own} and Metric('JobType') == '{kind}'")
        for kind in (SEARCH, CONFIRM, PUBLISHED)
    }
    blocks: list[Any] = [
        wr.H1("Which variant helps?"),
        *[wr.CalloutBlock(line) for line in words or ["Nothing has been confirmed yet."]],
        wr.MarkdownBlock(ablation_markdown(result)),
        *[wr.P(line) for line in _claims(result)],
        wr.PanelGrid(runsets=[runsets[CONFIRM], runsets[PUBLISHED]], panels=_ablation(study)),
        wr.H2("Learning curves, by arm, beside the published levels"),
        wr.PanelGrid(runsets=[runsets[SEARCH], runsets[PUBLISHED]], panels=_curves(study)),
        wr.H2("What mattered"),
    ]
    for arm in study.searched:
        of_arm = f"{own} and Metric('JobType') == '{SEARCH}' and Metric('Group') == '{arm}'"
        trials = wr.Runset(entity, project, name=f"trials of {arm}", filters=of_arm)
        importance = wr.ParameterImportancePlot(with_respect_to=study.val_metric, layout=_place(1))
        blocks += [wr.H3(arm), wr.PanelGrid(runsets=[trials], panels=[_coordinates(study, arm), importance])]
    blocks += [
        wr.H2("What each loss term sends the student"),
        wr.PanelGrid(runsets=[runsets[SEARCH]], panels=_shares(study)),
        wr.H2("Budget"),
        wr.PanelGrid(runsets=[runsets[SEARCH]], panels=_budget()),
        *([wr.H2("Notes"), wr.UnorderedList(items=list(result["notes"]))] if result["notes"] else []),
    ]
    title = f"{study.name}: which distillation variant helps"
    return wr.Report(project=project, entity=entity, title=title, description=study.about, blocks=blocks)


def ablation_markdown(result: Json) -> str:
    """The ablation table as Markdown: published, as published, tuned, and the verdict of each arm."""
    unit = Unit.of(result["metric"])
    lines = ["| arm | published | as published | tuned | difference | verdict |", "|---|---:|---:|---:|---:|---|"]
    for arm in result["arms"]:
        published = "" if arm["published"] is None else unit.value(arm["published"])
        delta = arm.get("delta_vs_baseline")
        difference = "" if not delta else f"{unit.difference(delta['mean'])} {unit.interval(delta['ci95'], sign=True)}"
        values = [_value(arm.get(kind), unit) for kind in ("as_published", "tuned")]
        values[1] = values[1] or _value(arm.get("fixed"), unit)
        cells = [arm["arm"], published, *values, difference, arm.get("verdict") or ""]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _value(told: Mapping[str, Any] | None, unit: Unit) -> str:
    return "" if not told else f"{unit.value(told['mean'])} {unit.interval(told['ci95'])} (n = {told['n']})"


def _claims(result: Json) -> list[str]:
    return [f"Published claim: {c['claim']}. Here: {c['verdict']}." for c in result["published_claims"]]


def _ablation(study: Study) -> list[Any]:
    test = f"test_{study.metric}"
    bars = wr.BarPlot(
        title=f"{test}, confirmed and published",
        metrics=[wr.SummaryMetric(test)],
        groupby="group",
        groupby_aggfunc="mean",
        groupby_rangefunc="stderr",
        layout=_place(0),
    )
    nll = wr.BarPlot(title="test_nll", metrics=[wr.SummaryMetric("test_nll")], groupby="group", layout=_place(1))
    panels = [bars, nll]
    if study.objective is not None:
        measure = MEASURE[study.objective[1]]
        axes = {"x": wr.SummaryMetric(measure), "y": wr.SummaryMetric(test), "log_x": True}
        panels.append(wr.ScatterPlot(title=f"{test} against {measure}", **axes, layout=_place(2)))
    return panels


def _curves(study: Study) -> list[Any]:
    return [
        wr.LinePlot(
            title=name,
            x="epoch",
            y=[wr.Metric(name)],
            groupby="group",
            groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
            layout=_place(i),
        )
        for i, name in enumerate((study.val_metric, "val_nll"))
    ]


def _coordinates(study: Study, arm: str) -> Any:
    logs = {name: bool(getattr(dimension, "log", False)) for name, dimension in study.arms[arm].space.items()}
    columns = [
        wr.ParallelCoordinatesPlotColumn(wr.Config(name), display_name=name, log=log or None)
        for name, log in logs.items()
    ]
    score = wr.ParallelCoordinatesPlotColumn(wr.SummaryMetric(study.val_metric), display_name=study.val_metric)
    return wr.ParallelCoordinatesPlot(columns=[*columns, score], title=arm, layout=_place(0))


def _shares(study: Study) -> list[Any]:
    what = {"share": "share of the gradient", "cosine": "cosine with the cross-entropy's gradient"}
    return [
        wr.LinePlot(title=title, x="epoch", metric_regex=f"gradient/.*/{name}", groupby="group", layout=_place(i))
        for i, (name, title) in enumerate(what.items())
    ]


def _budget() -> list[Any]:
    return [
        wr.BarPlot(
            title=title,
            metrics=[wr.SummaryMetric(name)],
            groupby="group",
            groupby_aggfunc="sum",
            layout=_place(i),
        )
        for i, (name, title) in enumerate({"seed_epochs": "seed-epochs", "total_seconds": "seconds"}.items())
    ]


def _place(number: int) -> wr.Layout:
    width = WIDTH // PANELS_A_ROW
    return wr.Layout(x=number % PANELS_A_ROW * width, y=number // PANELS_A_ROW * HEIGHT, w=width, h=HEIGHT)
