"""The figures of the comparison and of its insights, as plotly's JSON. Colours that follow the theme are set in it."""

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.report.parts import Figure, Json, Table, label, rounded
from analysis.tables import SIZE, p_value
from analysis.units import Unit
from spaces import BASELINE

PALETTE = ("#4a7de0", "#e0851b", "#2e9e6b", "#d2557a", "#8d6bd6", "#12a3b4", "#b3892b", "#6f8f2e", "#c2527f", "#5f86a8")
GREY = "#848b98"
VERDICTS = {"better": "#1f9d57", "worse": "#d64545", "equivalent": "#2f86c9"}
DASHES = ("solid", "dot", "dash")
SYMBOLS = {"better": "triangle-up", "worse": "triangle-down", "equivalent": "square"}
HEAT = [[0, "rgba(74,125,224,0.04)"], [1, "rgba(74,125,224,0.9)"]]
ROW = 34  # pixels of an arm's row


def colours(arms: Sequence[str]) -> dict[str, Json]:
    """{arm: plotly's line}: the same arm looks the same everywhere; the baseline is grey."""
    others = [arm for arm in arms if arm != BASELINE]
    lines = {
        arm: {"color": PALETTE[i % len(PALETTE)], "dash": DASHES[i // len(PALETTE) % len(DASHES)]}
        for i, arm in enumerate(others)
    }
    return {BASELINE: {"color": GREY, "dash": "solid"}, **lines}


def differences(result: Json, unit: Unit) -> Figure | None:
    """The answer: every arm minus the tuned baseline, with the interval that its verdict is read off."""
    arms = [a for a in result["arms"] if a["delta_vs_baseline"]]
    if not arms:
        return None
    published = _published_gains(result)
    rows = {a["arm"]: float(i) for i, a in enumerate(arms)}
    data: list[Json] = []
    for verdict in dict.fromkeys(a["verdict"] for a in arms):
        own = [a for a in arms if a["verdict"] == verdict]
        means = [a["delta_vs_baseline"]["mean"] for a in own]
        bars = [a["delta_vs_baseline"]["ci95_family"] for a in own]
        trace = _dots([a["arm"] for a in own], means, bars, unit, rows)
        trace |= {"name": verdict or "no verdict"}
        trace["marker"] = {
            "color": VERDICTS.get(verdict or "", GREY),
            "size": 11,
            "symbol": SYMBOLS.get(verdict or "", "circle"),
        }
        data.append(trace)
    marks = [(a["arm"], published[a["arm"]]) for a in arms if a["arm"] in published]
    if marks:
        data.append(_marks([m[0] for m in marks], [m[1] for m in marks], unit, rows))
    margin = unit.scale * result["margin"]
    layout = _rows(list(rows), unit.points)
    layout["xaxis"]["range"] = _window(data, -unit.scale, unit.scale)
    layout["shapes"] = [
        {"type": "rect", "xref": "x", "yref": "paper", "x0": -margin, "x1": margin, "y0": 0, "y1": 1}
        | {"fillcolor": "rgba(132,139,152,0.16)", "line": {"width": 0}, "layer": "below"},
        {"type": "line", "xref": "x", "yref": "paper", "x0": 0, "x1": 0, "y0": 0, "y1": 1}
        | {"line": {"color": GREY, "width": 1, "dash": "dot"}},
    ]
    numbers = [
        (
            a["arm"],
            a["verdict"] or "none",
            unit.difference(a["delta_vs_baseline"]["mean"]),
            unit.interval(a["delta_vs_baseline"]["ci95_family"], sign=True) or "no interval",
            p_value(a["delta_vs_baseline"]["p_adjusted"]),
            unit.difference(published.get(a["arm"])),
        )
        for a in arms
    ]
    table = Table(("arm", "verdict", "difference", "interval (Holm)", "p (Holm)", "published"), numbers, 2)
    note = (
        f"The band is the margin of ±{unit.scale * result['margin']:.{unit.digits}f} {unit.points}, within which two "
        "arms count as equal. An arm without a bar has one seed or one winner: no interval."
    )
    title = f"Every arm minus tuned {result['baseline']}, in {unit.points}"
    return Figure("differences", title, data, layout, table, note, _height(len(arms)))


def levels(result: Json, unit: Unit) -> Figure | None:
    """What every arm reaches: tuned, as published by us, and as the source reports it."""
    arms = result["arms"]
    tuned = [(a["arm"], a["tuned"] or a.get("fixed") or {}) for a in arms]
    given = [(a["arm"], a["as_published"] or {}) for a in arms]
    place = {a["arm"]: float(i) for i, a in enumerate(arms)}
    both = {arm for (arm, t), (_, g) in zip(tuned, given, strict=True) if t.get("mean") is not None and g.get("mean")}
    data = []
    for pairs, name, above, marker in (
        (tuned, "tuned here", 0.14, {"size": 11, "color": PALETTE[0]}),
        (given, "published settings, run here", -0.14, {"size": 9, "color": PALETTE[1], "symbol": "square"}),
    ):
        shown = [(arm, c) for arm, c in pairs if c.get("mean") is not None]
        if shown:
            at = {arm: row - above * (arm in both) for arm, row in place.items()}
            means, intervals = [c["mean"] for _, c in shown], [c["ci95"] for _, c in shown]
            dots = _dots([arm for arm, _ in shown], means, intervals, unit, at)
            data.append({**dots, "name": name, "marker": marker})
    marks = [(a["arm"], a["published"]) for a in arms if a["published"] is not None]
    if marks:
        data.append(_marks([m[0] for m in marks], [m[1] for m in marks], unit, place))
    if not data:
        return None
    rows = [
        (
            arm,
            unit.value(t.get("mean")),
            unit.interval(t.get("ci95")) or "-",
            unit.value(g.get("mean")),
            unit.interval(g.get("ci95")) or "-",
            unit.value(a["published"]),
        )
        for a, (arm, t), (_, g) in zip(arms, tuned, given, strict=True)
    ]
    table = Table(("arm", "tuned", "95 %", "published settings", "95 %", "published"), rows)
    axis = f"{result['metric']}, {unit.values}"
    layout = _rows([a["arm"] for a in arms], axis)
    layout["xaxis"]["range"] = _window(data, 0.0, unit.scale)
    return Figure("levels", "What every arm reaches", data, layout, table, "", _height(len(arms)))


def _published_gains(result: Json) -> dict[str, float]:
    values = {a["arm"]: a["published"] for a in result["arms"] if a["published"] is not None}
    base = values.get(result["baseline"])
    return {} if base is None else {arm: value - base for arm, value in values.items()}


def _dots(
    arms: Sequence[str], means: Sequence[float], intervals: Sequence[Any], unit: Unit, rows: Mapping[str, float]
) -> Json:
    up = [unit.scale * (i[1] - m) if i else 0 for m, i in zip(means, intervals, strict=True)]
    down = [unit.scale * (m - i[0]) if i else 0 for m, i in zip(means, intervals, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [unit.scale * m for m in means],
        "y": [rows[a] for a in arms],
        "text": [label(a) for a in arms],
        "error_x": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 2, "width": 5},
        "customdata": [unit.interval(i) or "no interval" for i in intervals],
        "hovertemplate": f"%{{text}}<br>%{{x:.{unit.digits}f}} %{{customdata}}<extra></extra>",
    }


def _marks(arms: Sequence[str], values: Sequence[float], unit: Unit, rows: Mapping[str, float]) -> Json:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "as the source reports it",
        "x": [unit.scale * v for v in values],
        "y": [rows[a] for a in arms],
        "text": [label(a) for a in arms],
        "marker": {"symbol": "diamond-tall-open", "size": 12, "color": "#b0399b", "line": {"width": 2}},
        "hovertemplate": f"%{{text}}<br>%{{x:.{unit.digits}f}} published<extra></extra>",
    }


def _rows(arms: Sequence[str], title: str) -> Json:
    """One row an arm, the first on top; the legend below the axis, where a phone has room for it."""
    return {
        "xaxis": {"title": {"text": label(title)}, "zeroline": False, "automargin": True},
        "yaxis": {
            "tickmode": "array",
            "tickvals": list(range(len(arms))),
            "ticktext": [label(a) for a in arms],
            "range": [len(arms) - 0.4, -0.6],
            "automargin": True,
            "zeroline": False,
            "showgrid": False,
        },
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": True,
        "margin": {"l": 8, "r": 12, "t": 30, "b": 44},
        "hovermode": "closest",
    }


def _window(data: Sequence[Json], low: float, high: float) -> list[float]:
    """What the dots and their bars span, no further than the metric goes: two winners can leave a bar without end."""
    ends: list[float] = []
    for trace in data:
        bars = trace.get("error_x", {"array": [0] * len(trace["x"]), "arrayminus": [0] * len(trace["x"])})
        for x, up, down in zip(trace["x"], bars["array"], bars["arrayminus"], strict=True):
            ends += [x - down, x + up]
    first, last = max(low, min(ends)), min(high, max(ends))
    room = 0.04 * (last - first) or 0.01 * high
    return [first - room, last + room]


def _height(rows: int) -> int:
    return 130 + ROW * rows


def _lines(traces: list[Json], x: str, y: str, *, log: bool = False) -> Json:
    return {
        "xaxis": {"title": {"text": x}, **({"type": "log", "dtick": "D2"} if log else {}), "automargin": True},
        "yaxis": {"title": {"text": y}, "automargin": True},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "showlegend": any("name" in t for t in traces),
        "margin": {"l": 8, "r": 12, "t": 30, "b": 44},
        "hovermode": "closest",
    }


def expected_performance(found: Mapping[str, Any], unit: Unit, lines: Mapping[str, Json]) -> Figure | None:
    """The best of n random trials, in expectation, against the budget; the band is its 95 % interval."""
    data: list[Json] = []
    rows = []
    for arm, e in found.items():
        if not e or not e["trials"]:
            continue
        x, line = e["seed_epochs"] or e["trials"], lines[arm]
        bounded = [(at, i) for at, i in zip(x, e["ci95"], strict=True) if i]
        if bounded:
            around = [at for at, _ in bounded] + [at for at, _ in reversed(bounded)]
            edge = [unit.scale * i[1] for _, i in bounded] + [unit.scale * i[0] for _, i in reversed(bounded)]
            band = {"fill": "toself", "fillcolor": f"{line['color']}22", "line": {"width": 0}, "hoverinfo": "skip"}
            data.append({"type": "scatter", "mode": "lines", "x": around, "y": edge, "showlegend": False, **band})
            data[-1]["legendgroup"] = label(arm)
        mean = [unit.scale * m for m in e["mean"]]
        data.append({"type": "scatter", "mode": "lines+markers", "x": x, "y": mean, "name": label(arm), "line": line})
        data[-1] |= {"legendgroup": label(arm), "marker": {"size": 5}}
        rows += [
            (arm, str(n), f"{at:,.0f}", unit.value(m), unit.interval(i) or "-")
            for n, at, m, i in zip(e["trials"], x, e["mean"], e["ci95"], strict=True)
        ]
    if not data:
        return None
    layout = _lines(data, "seed-epochs of random search", f"expected best on validation, {unit.values}", log=True)
    table = Table(("arm", "random trials", "seed-epochs", "expected best", "95 %"), rows)
    return Figure("evp", "Expected validation performance against the budget", data, layout, table, "", 380)


def anytime(found: Mapping[str, Any], unit: Unit, lines: Mapping[str, Json], by: str) -> Figure | None:
    """The best score so far as the search went on. by: seed_epochs or seconds."""
    data, rows = [], []
    for arm, steps in found.items():
        if not steps:
            continue
        y = [unit.scale * s["best"] for s in steps]
        trace = {"type": "scatter", "mode": "lines", "x": [s[by] for s in steps], "y": y, "name": label(arm)}
        data.append({**trace, "line": {**lines[arm], "shape": "hv"}, "legendgroup": label(arm)})
        fresh = [s for s in steps if s.get("fresh") is not None]
        if fresh:
            marks: Json = {
                "x": [s[by] for s in fresh],
                "y": [unit.scale * s["fresh"] for s in fresh],
                "showlegend": False,
            }
            marks |= {"marker": {"symbol": "x-thin-open", "size": 8, "color": lines[arm]["color"]}}
            data.append({"type": "scatter", "mode": "markers", "legendgroup": label(arm), **marks})
        rows += [
            (arm, f"{s['seed_epochs']:,}", f"{s['seconds']:,.1f}", unit.value(s["best"]), unit.value(s.get("fresh")))
            for s in steps
        ]
    if not data:
        return None
    what = "seed-epochs of the arm's search" if by == "seed_epochs" else "seconds of the arm's training"
    layout = _lines(data, what, f"best on validation so far, {unit.values}")
    table = Table(("arm", "seed-epochs", "seconds", "best so far", "fresh seeds"), rows)
    note = (
        "A cross is the same configuration under fresh seeds, where it has some: below its line, the search flattered."
    )
    title = f"Best value found so far, against {by.replace('_', '-')}"
    return Figure(f"anytime-{by}", title, data, layout, table, note, 360)


def importance(found: Mapping[str, Any]) -> Figure | None:
    """A row for every arm, a column for every hyperparameter, what share of the score's variation it explains."""
    shown = {arm: i for arm, i in found.items() if i and i["parameters"]}
    names = list(dict.fromkeys(name for i in shown.values() for name in i["parameters"]))
    if not names:
        return None
    arms = list(shown)
    z = [[shown[arm]["parameters"].get(name) for name in names] for arm in arms]
    text = [["" if v is None else f"{100 * v:.0f}" for v in row] for row in z]
    heat = {
        "type": "heatmap",
        "z": z,
        "x": [label(n) for n in names],
        "y": [label(a) for a in arms],
        "zmin": 0,
        "zmax": 1,
    }
    heat |= {"text": text, "texttemplate": "%{text}", "colorscale": HEAT, "showscale": False, "xgap": 2, "ygap": 2}
    heat["hovertemplate"] = "%{y}, %{x}: %{text} %<extra></extra>"
    layout = {
        "xaxis": {"automargin": True, "type": "category", "side": "top", "tickangle": -35, "showgrid": False},
        "yaxis": {"automargin": True, "type": "category", "autorange": "reversed", "showgrid": False},
        "margin": {"l": 8, "r": 30, "t": 30, "b": 10},
    }
    rows = [
        (arm, *("-" if v is None else f"{100 * v:.1f}" for v in row), str(shown[arm]["n"]), shown[arm]["caveat"] or "")
        for arm, row in zip(arms, z, strict=True)
    ]
    table = Table(("arm", *names, "trials", "caveat"), rows)
    note = "Percent of what separates the best tenth of the trials from the rest (PED-ANOVA); empty: not of this arm."
    return Figure(
        "importance-shares", "Which hyperparameter mattered", [heat], layout, table, note, 120 + ROW * len(arms)
    )


def interactions(found: Mapping[str, Any], unit: Unit) -> list[Figure]:
    """Temperature against the weight of the term that it softens, one point a trial, an arm a figure."""
    figures = []
    for arm, i in found.items():
        if not i or not i["points"]:
            continue
        x, y, score = zip(*i["points"], strict=True)
        values = [unit.scale * s for s in score]
        trace: Json = {"type": "scatter", "mode": "markers", "x": list(map(rounded, x)), "y": list(map(rounded, y))}
        trace["marker"] = {"color": list(map(rounded, values)), "colorscale": "Viridis", "size": 8, "showscale": True}
        trace["marker"]["colorbar"] = {"thickness": 10, "title": {"text": unit.values}}
        trace["hovertemplate"] = f"%{{x}}, %{{y}}: %{{marker.color:.{unit.digits}f}}<extra></extra>"
        layout = _lines([], label(i["x"]), label(i["y"])) | {"showlegend": False}
        layout["xaxis"] |= {"type": "log", "dtick": "D2"}
        gain = "too few random trials to say whether they interact"
        if i.get("gain") is not None:
            gain = f"Share of the scores' variance that their product explains: {i['gain']:.3f}"
            gain += f" [{i['ci95'][0]:.3f}, {i['ci95'][1]:.3f}]" if i["ci95"] else ""
        rows = [(f"{a:.4g}", f"{b:.4g}", unit.value(s)) for a, b, s in i["points"][:200]]
        caption = f"the first 200 of {len(i['points'])} trials" if len(i["points"]) > 200 else ""
        table = Table((i["x"], i["y"], "score"), rows, 0, "", caption)
        figures.append(Figure(f"interaction-{arm}", f"{arm}: {i['x']} and {i['y']}", [trace], layout, table, gain, 300))
    return figures


def gradient_shares(found: Mapping[str, Any], unit: Unit) -> list[Figure]:
    """Each term's share of the gradient against the score of its trial; arms with one term say nothing."""
    figures = []
    for arm, terms in found.items():
        if len(terms) < 2:
            continue
        data: list[Json] = [
            {
                **{"type": "scatter", "mode": "markers", "name": label(term), "marker": {"size": 7, "opacity": 0.75}},
                "x": [rounded(share) for share, *_ in points],
                "y": [rounded(unit.scale * score) for _, score, *_ in points],
                "text": [label(trial) for *_, trial in points],
                "hovertemplate": f"%{{text}}: %{{x:.3f}}, %{{y:.{unit.digits}f}}<extra></extra>",
            }
            for term, points in terms.items()
        ]
        for trace, colour in zip(data, PALETTE * len(data), strict=False):
            trace["marker"]["color"] = colour
        rows = [
            (term, str(len(points)), *(f"{q:.3f}" for q in _quartiles([p[0] for p in points])))
            for term, points in terms.items()
        ]
        table = Table(("term", "trials", "lowest share", "median", "highest"), rows)
        layout = _lines(data, "share of the gradient", f"score, {unit.values}")
        layout["xaxis"]["range"] = [-0.03, 1.03]
        figures.append(Figure(f"gradient-{arm}", f"{arm}: share of each term", data, layout, table, "", 300))
    return figures


def _quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    ordered = sorted(values)
    return (ordered[0], ordered[len(ordered) // 2], ordered[-1]) if ordered else (0.0, 0.0, 0.0)


def cost(result: Json, lines: Mapping[str, Json]) -> Figure | None:
    """Seconds of training that every searched arm took for its budget."""
    budget = {arm: b for arm, b in result["budget"].items() if b["seconds"]}
    if not budget:
        return None
    bar: Json = {"type": "bar", "orientation": "h", "y": list(range(len(budget))), "text": [label(a) for a in budget]}
    bar["textposition"] = "none"
    bar |= {
        "x": [rounded(b["seconds"]) for b in budget.values()],
        "marker": {"color": [lines[a]["color"] for a in budget]},
    }
    bar["hovertemplate"] = "%{text}: %{x:,.0f} s<extra></extra>"
    rows = [(a, f"{b['seconds']:,.1f}", f"{b['seed_epochs']:,}", str(b["trials"])) for a, b in budget.items()]
    table = Table(("arm", "seconds", "seed-epochs", "trials"), rows)
    layout = _rows(list(budget), "seconds of training in the search") | {"showlegend": False}
    return Figure("cost-seconds", "What the search cost", [bar], layout, table, "", 90 + 28 * len(budget))


def latency(result: Json, unit: Unit, lines: Mapping[str, Json]) -> Figure | None:
    """What an arm reaches against how long its model takes for one sample."""
    points = []
    for arm in result["arms"]:
        took = (arm.get("evaluation") or {}).get("ms_per_sample_batch_1")
        mean = (arm["tuned"] or arm.get("fixed") or {}).get("mean")
        if took and took["mean"] and mean is not None:
            points.append((arm["arm"], took["mean"], mean))
    if len(points) < 2:
        return None
    data = [
        {
            **{"type": "scatter", "mode": "markers", "name": label(arm), "x": [rounded(ms)], "y": [unit.scale * mean]},
            "marker": {"size": 11, "color": lines[arm]["color"]},
            "hovertemplate": f"%{{x:.3f}} ms, %{{y:.{unit.digits}f}}",
        }
        for arm, ms, mean in points
    ]
    rows = [(arm, f"{ms:.3f}", unit.value(mean)) for arm, ms, mean in points]
    table = Table(("arm", "ms a sample, batch 1", result["metric"]), rows)
    layout = _lines(data, "ms a sample, batch of 1", f"{result['metric']}, {unit.values}", log=True)
    return Figure("latency-quality", "Quality against latency", data, layout, table, "", 340)


def front(result: Json, unit: Unit) -> Figure | None:
    """What every student reaches against its size; on the front are those that none beats at their size or below."""
    if not result["front"] or not result["front"]["points"]:
        return None
    points, measure = result["front"]["points"], SIZE[result["front"]["objective"][1]]
    best = [p for p in points if p["on_front"]]
    line: Json = {"type": "scatter", "mode": "lines", "name": "front"}
    line |= {"line": {"shape": "hv", "color": GREY, "dash": "dot"}}
    line |= {"x": [rounded(p["measured"]) for p in best], "y": [unit.scale * p["mean"] for p in best]}
    data: list[Json] = [line]
    for own, name in ((True, "chosen on validation for its size"), (False, "other students")):
        shown = [p for p in points if (p["arm"] in result["front"]["chosen"].values()) is own]
        if shown:
            data.append({**_upright(shown, unit), "name": name})
            data[-1]["marker"] = {"size": 11 if own else 7, "color": PALETTE[0] if own else PALETTE[1]}
    rows = [
        (p["arm"], f"{p['measured']:,.4g}", unit.value(p["mean"]), unit.interval(p["ci95"]) or "-", _yes(p in best))
        for p in points
    ]
    table = Table(("arm", measure, result["metric"], "95 %", "on the front"), rows)
    layout = _lines(data, measure, f"{result['metric']}, {unit.values}", log=True)
    return Figure("size-front", "Quality against size", data, layout, table, result["front"]["sentence"], 360)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _upright(points: Sequence[Json], unit: Unit) -> Json:
    """Dots over sizes, with their intervals."""
    bars = [p["ci95"] or [p["mean"], p["mean"]] for p in points]
    up = [unit.scale * (bar[1] - p["mean"]) for p, bar in zip(points, bars, strict=True)]
    down = [unit.scale * (p["mean"] - bar[0]) for p, bar in zip(points, bars, strict=True)]
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [rounded(p["measured"]) for p in points],
        "y": [unit.scale * p["mean"] for p in points],
        "text": [label(p["arm"]) for p in points],
        "error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.5, "width": 4},
        "hovertemplate": f"%{{text}}<br>%{{x:,}}: %{{y:.{unit.digits}f}}<extra></extra>",
    }
