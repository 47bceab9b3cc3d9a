"""distune: which distillation variant helps, at which settings, and by more than noise.

The face: the command line and the public names. In Python:

    >>> import distune
    >>> study = distune.load_study("mlp-ensemble")
    >>> run = distune.sweep(study, quick=True, out="runs/first")   # doctest: +SKIP
    >>> run.compare()["arms"]                                      # doctest: +SKIP

Heavy imports wait until a command needs them, so that `distune --help` answers at once.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    import pandas as pd

    from spaces import Study
    from trainables import losses
    from trainables.variants import Outputs, Term

__all__ = ["Outputs", "Run", "Term", "load_exported", "load_study", "losses", "open_run", "sweep"]

USAGE, FAILED, INTERRUPTED = 2, 1, 130
RUNS = Path("runs")


def __getattr__(name: str) -> Any:
    """What a variant of one's own is written with: `from distune import Outputs, Term, losses`. torch, but no Ray."""
    if name == "losses":
        from trainables import losses

        return losses
    if name in ("Outputs", "Term"):
        from trainables import variants

        return getattr(variants, name)
    raise AttributeError(f"module 'distune' has no attribute {name!r}")


def load_study(name: str | Path, overrides: tuple[str, ...] | list[str] = ()) -> Study:
    """A built-in study, or one from a YAML file, with `key=value` overrides. Raises spaces.BadInput."""
    from spaces import load_study

    return load_study(name, overrides)


def sweep(
    study: Study | str,
    *,
    out: str | Path | None = None,
    seed: int = 0,
    quick: bool = False,
    arms: tuple[str, ...] | list[str] = (),
    seed_epochs: int | None = None,
    trials: int | None = None,
    seeds_per_trial: int | None = None,
    confirm_seeds: int | None = None,
    max_concurrent: int | None = None,
    cpus_per_trial: float = 1.0,
    gpus_per_trial: float = 0.0,
    address: str | None = None,
    storage: str | None = None,
    time_budget: float | None = None,
    cost_per_gpu_hour: float | None = None,
    wandb: str | None = None,
    epoch_timeout: float = 3600.0,
    verbose: bool = False,
    quiet: bool = False,
) -> Run:
    """Search every arm with the same budget, confirm what it chose under fresh seeds, and return the finished run.

    out: a folder that does not exist yet; default `runs/<study>-<time>`. time_budget: seconds. wandb: `offline`,
    `online` or `off`; default what WANDB_MODE says, else `offline`. The rest are the flags of `distune sweep`. Raises
    spaces.BadInput before anything is written, search.sweep.SweepFailed and Interrupted after.
    """
    from spaces import adjust
    from spaces import load_study as load

    adjusted = adjust(
        load(study) if isinstance(study, str) else study,
        quick=quick,
        arms=arms,
        trials=trials,
        seed_epochs_per_arm=seed_epochs,
        seeds_per_trial=seeds_per_trial,
        confirm_seeds=confirm_seeds,
    )
    from analysis import tracking
    from search import sweep as path
    from search.progress import Progress

    folder = Path(out) if out is not None else path.default_run_folder(adjusted.name)
    options = path.Options(
        cpus_per_trial,
        gpus_per_trial,
        max_concurrent,
        address,
        verbose,
        epoch_timeout,
        storage,
        time_budget,
        cost_per_gpu_hour,
    )
    progress = Progress(quiet)
    with tracking.following(folder, tracking.chosen_mode(wandb), progress.say) as no_more_comes:
        path.start(adjusted, folder, seed, options, progress)
        no_more_comes()
        _write_report(Run(folder), progress.say)
    return Run(folder)


def open_run(path: str | Path) -> Run:
    """An existing run folder. Raises search.ledger.NotALedger where it is none, or its ledger is damaged."""
    from search.ledger import Ledger

    Ledger.open(Path(path), check=True).close()
    return Run(Path(path))


class Run:
    """A run folder: what its ledger holds, as tables."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    def compare(self) -> dict[str, Any]:
        """The comparison: the same object as `distune compare --json` prints."""
        from analysis.comparison import compare

        return compare(self.path)

    def insights(self) -> dict[str, Any]:
        """What the sweep says beyond its verdicts (docs/statistics.md): power, optimism, importance, cost."""
        from analysis.insights import insights

        return insights(self.path)

    def trials(self) -> pd.DataFrame:
        """One row a trial: what was asked, how it ended, and its configuration as `config.<name>`."""
        import pandas as pd

        from search.ledger import Ledger

        with Ledger.open(self.path) as ledger:
            ends = ledger.ends()
            rows = []
            for t in ledger.trials():
                end = ends.get(t.trial)
                about = {"trial": t.trial, "arm": t.arm, "subsearch": t.subsearch, "origin": t.origin}
                about |= {"ended": end.how if end else None, "epoch": end.epoch if end else None}
                rows.append(about | {f"config.{k}": v for k, v in t.config.items()})
        return pd.DataFrame(rows)

    def epochs(self) -> pd.DataFrame:
        """One row an epoch of a trial: seed means, standard errors and seconds."""
        import pandas as pd

        from search.ledger import Ledger

        with Ledger.open(self.path) as ledger:
            fields = ("trial", "epoch", "seeds", "seconds", "score", "se", "nll")
            return pd.DataFrame([{f: getattr(e, f) for f in fields} for e in ledger.epochs()], columns=list(fields))

    def confirmed(self) -> pd.DataFrame:
        """One row a confirmed or re-evaluated seed, with its metrics."""
        import pandas as pd

        from search.ledger import Ledger

        with Ledger.open(self.path) as ledger:
            fields = ("purpose", "arm", "subsearch", "fit", "replicate", "trial", "epochs", "seconds")
            return pd.DataFrame([{f: getattr(r, f) for f in fields} | r.metrics for r in ledger.runs()])

    def report(self, figure: Path | None = None) -> Path:
        """Write RUN/report.html, and the main figure if its path (.png or .pdf) is given; returns the page's path."""
        from analysis.report import paper_figure, write

        if figure is not None:
            paper_figure.write(self.compare(), figure)
        return write(self.path)

    def student(self, arm: str) -> Any:
        """The arm's deployed student as a torch module: of the chosen configuration, the seed with median accuracy."""
        from search.students import load_student

        return load_student(self.path, arm)

    def export(
        self,
        arm: str,
        to: str | Path,
        formats: tuple[str, ...] | list[str] = ("safetensors", "onnx"),
        *,
        with_teachers: bool = False,
        quiet: bool = True,
    ) -> dict[str, Any]:
        """Write that student to the folder `to`, ready to run without distune; returns its `config.json`.

        Raises spaces.BadInput where the arm cannot be exported or the folder holds something else.
        """
        from analysis.card import model_card
        from search.export.bundle import export

        def say(line: str) -> None:
            if not quiet:
                print(line, file=sys.stderr)

        comparison = self.compare()
        return export(
            self.path, arm, Path(to), tuple(formats), with_teachers, lambda facts: model_card(comparison, facts), say
        )


def load_exported(folder: str | Path) -> Any:
    """The student of an export as a torch module, from its `config.json` and `student.safetensors`."""
    from search.export.modules import rebuilt

    return rebuilt(Path(folder))


app = typer.Typer(
    help="Which distillation variant helps, at which settings, and by more than noise.",
    epilog="Start with: distune sweep mlp-ensemble --quick",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


new = typer.Typer(help="Write a starting point: `distune new study NAME`.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new, name="new")


def _built_in_studies(incomplete: str) -> list[str]:
    from spaces import BUILT_IN

    return [name for name in BUILT_IN if name.startswith(incomplete)]


StudyArgument = Annotated[
    str,
    typer.Argument(
        metavar="STUDY", help="A built-in study or the path of a .yaml file.", autocompletion=_built_in_studies
    ),
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change the study, such as budget.confirm_seeds=40 or space.learning_rate.low=1e-4.",
    ),
]
Wandb = Annotated[
    str | None,
    typer.Option(
        metavar="offline|online|off", help="Where W&B gets the sweep [default: WANDB_MODE, else offline, in RUN/wandb]."
    ),
]
Address = Annotated[
    str | None, typer.Option(metavar="HOST:PORT", help="A Ray cluster to join, or auto [default: this machine].")
]
MaxConcurrent = Annotated[int | None, typer.Option(help="Trials at once [default: as many as fit].")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show what Ray and the workers say.")]


@app.command()
def studies(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A built-in study or a .yaml file.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the built-in studies, or explain one.

    \b
    distune studies
    distune studies mlp-ensemble      # arms with their formulas, spaces, budget, published numbers
    distune studies my-study.yaml
    """
    from analysis.listing import describe, list_studies
    from spaces import BUILT_IN, to_yaml

    if as_json:
        import yaml

        chosen = [load_study(name)] if name else list(BUILT_IN.values())
        _print_json({study.name: yaml.safe_load(to_yaml(study)) for study in chosen})
    elif name:
        describe(load_study(name))
    else:
        list_studies(BUILT_IN.values())


@new.command("study")
def new_study(
    name: Annotated[Path, typer.Argument(metavar="NAME", help="Folder to write, new; the study is named as it is.")],
    source: Annotated[
        str, typer.Option("--from", metavar="mlp-ensemble|image-folder|csv", help="What to begin with.")
    ] = "mlp-ensemble",
) -> None:
    """Write a commented study and a variant of your own, which run as they are.

    \b
    distune new study my-study
    distune new study my-images --from image-folder
    distune check my-study/study.yaml
    distune sweep my-study/study.yaml --quick
    """
    from spaces.new_study import write

    for path in write(name, source):
        print(path)
    print(f"next: distune check {name / 'study.yaml'}")


@app.command("sweep")
def sweep_command(
    study: StudyArgument,
    seed_epochs: Annotated[int | None, typer.Option(help="Budget of each searched arm in seed-epochs.")] = None,
    trials: Annotated[int | None, typer.Option(help="The same as a number of trials of mean cost.")] = None,
    arms: Annotated[
        str | None, typer.Option(help="Only these arms, separated by commas; the baseline always runs.")
    ] = None,
    seeds_per_trial: Annotated[int | None, typer.Option(help="Seeds trained together in a trial.")] = None,
    confirm_seeds: Annotated[int | None, typer.Option(help="Fresh seeds of each confirmed arm.")] = None,
    max_concurrent: MaxConcurrent = None,
    cpus_per_trial: Annotated[float, typer.Option(help="CPUs of a trial.")] = 1.0,
    gpus_per_trial: Annotated[float, typer.Option(help="GPUs of a trial; a fraction shares one.")] = 0.0,
    address: Address = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URI", help="Where checkpoints and records go: a folder that all nodes see, s3://... or gs://..."
        ),
    ] = None,
    time_budget: Annotated[
        str | None, typer.Option(metavar="TIME", help="End in about this time, such as 90m or 8h, with less search.")
    ] = None,
    cost_per_gpu_hour: Annotated[float | None, typer.Option(help="To say what the sweep has cost.")] = None,
    wandb: Wandb = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Run folder, new [default: runs/STUDY-TIME].")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the whole sweep.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="A small budget for a first look.")] = False,
    as_json: AsJson = False,
    epoch_timeout: Annotated[float, typer.Option(help="Seconds after which an epoch counts as hanging.")] = 3600.0,
    verbose: Verbose = False,
) -> None:
    """Search every arm with one budget, confirm the best, compare.

    \b
    distune sweep mlp-ensemble --quick
    distune sweep mlp-ensemble --arms kd,label_smoothing --trials 40 --out runs/forty
    distune sweep my-study.yaml --set budget.confirm_seeds=40 --dry-run
    """
    from spaces import BadInput, adjust

    if seed_epochs is not None and trials is not None:
        raise BadInput("give --seed-epochs or --trials, not both: they name the same budget")
    chosen = adjust(
        load_study(study, set_ or []),
        quick=quick,
        arms=[a for a in (arms or "").split(",") if a],
        trials=trials,
        seed_epochs_per_arm=seed_epochs,
        seeds_per_trial=seeds_per_trial,
        confirm_seeds=confirm_seeds,
    )
    for flag, value in (
        ("--max-concurrent", max_concurrent),
        ("--cpus-per-trial", cpus_per_trial),
        ("--epoch-timeout", epoch_timeout),
        ("--cost-per-gpu-hour", cost_per_gpu_hour),
    ):
        if value is not None and value <= 0:
            raise BadInput(f"{flag} must be above 0, got {value}")
    if gpus_per_trial < 0:
        raise BadInput(f"--gpus-per-trial must be 0 or more, got {gpus_per_trial}")
    if cost_per_gpu_hour is not None and not gpus_per_trial:
        raise BadInput("--cost-per-gpu-hour needs --gpus-per-trial: a trial takes no GPU")
    limit = None if time_budget is None else _seconds(time_budget)
    if dry_run:
        from analysis.listing import plan, show_plan
        from search.local import estimate

        planned = plan(chosen, estimate(chosen, max_concurrent))
        _print_json(planned) if as_json else show_plan(planned)
        return
    if out is not None and out.exists():
        raise BadInput(f"{out} exists already: resume it with `distune resume {out}`, or give another --out")
    from search.sweep import default_run_folder

    folder = out or default_run_folder(chosen.name)
    with _leaving(folder):
        run = sweep(
            chosen,
            out=folder,
            seed=seed,
            max_concurrent=max_concurrent,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            address=address,
            storage=storage,
            time_budget=limit,
            cost_per_gpu_hour=cost_per_gpu_hour,
            wandb=wandb,
            epoch_timeout=epoch_timeout,
            verbose=verbose,
        )
    _finish(run, as_json)


Force = Annotated[
    bool, typer.Option("--force", help="Go on although the code that trains, or study.yaml, is not what it was.")
]


@app.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN|URI", help="A run folder, or the storage of a lost one.")],
    out: Annotated[Path | None, typer.Option(help="Run folder for what a storage holds [default: runs/NAME].")] = None,
    address: Address = None,
    max_concurrent: MaxConcurrent = None,
    force: Force = False,
    wandb: Wandb = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Go on with a sweep that was stopped, from its ledger.

    \b
    distune resume runs/first
    distune resume runs/first --address auto                  # on another cluster than before
    distune resume s3://bucket/sweeps/first --address auto    # where the machine that drove it is lost

    What is finished is not done again.
    """
    from analysis import tracking
    from search.progress import Progress
    from search.sweep import resume as go_on
    from spaces import BadInput

    progress, given = Progress(), _given(address, max_concurrent, verbose)
    folder = Path(run)
    if _is_elsewhere(run):
        folder = _fetched(run, out, progress.say)
        given["storage"] = run.rstrip("/")
    elif out is not None:
        raise BadInput(f"--out is for a sweep that is fetched from a storage, and {run} is a run folder")
    opened = open_run(folder)
    with _leaving(folder), tracking.following(folder, tracking.chosen_mode(wandb), progress.say) as no_more_comes:
        go_on(folder, progress, force, given)
        no_more_comes()
        _write_report(opened, progress.say)
    _finish(opened, as_json)


def _is_elsewhere(run: str) -> bool:
    """Whether it is a sweep's storage and no run folder: a bucket, or a folder that a driver has signed."""
    from search.records import DRIVER, RECORDS
    from search.storage import is_bucket

    return is_bucket(run) or (Path(run) / DRIVER).is_file() or (Path(run) / RECORDS).is_dir()


def _fetched(uri: str, out: Path | None, say: Callable[[str], None]) -> Path:
    """A run folder of what the storage holds. Raises BadInput."""
    from search import records
    from search.storage import Storage
    from spaces import BadInput

    folder = out or Path("runs") / uri.rstrip("/").rpartition("/")[2]
    if folder.exists():
        raise BadInput(f"{folder} exists already: resume it with `distune resume {folder}`, or give another --out")
    trials, seeds = records.fetch(Storage(uri), folder)
    say(f"{folder}: fetched from {uri}; records of {trials} trials and {seeds} seeds were newer than its ledger")
    return folder


def _given(address: str | None, max_concurrent: int | None, verbose: bool) -> dict[str, Any]:
    """Of the options of a sweep those that are other than when it began."""
    options = {"address": address, "max_concurrent": max_concurrent, "verbose": verbose or None}
    return {name: value for name, value in options.items() if value is not None}


def _seconds(text: str) -> float:
    """Of a time such as 90s, 30m, 8h or 2d; a plain number is seconds. Raises BadInput."""
    from spaces import BadInput

    units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    number, unit = (text[:-1], units[text[-1]]) if text[-1:] in units else (text, 1.0)
    try:
        seconds = float(number) * unit
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < float("inf"):
        raise BadInput(f"--time-budget must be a time such as 90m, 8h or 2d, got {text}")
    return seconds


@app.command()
def extend(
    run: RunArgument,
    confirm_seeds: Annotated[
        str | None, typer.Option(metavar="+N", help="More confirmation seeds: +40, or a new total.")
    ] = None,
    seed_epochs: Annotated[
        str | None, typer.Option(metavar="+N", help="More budget of each searched arm: +4000, or a new total.")
    ] = None,
    arms: Annotated[str | None, typer.Option(help="Arms to add, separated by commas.")] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="STUDY", help="Where those arms are defined [default: the study].")
    ] = None,
    address: Address = None,
    max_concurrent: MaxConcurrent = None,
    force: Force = False,
    wandb: Wandb = None,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Give a sweep more confirmation seeds, budget or arms.

    \b
    distune extend runs/first --confirm-seeds +40
    distune extend runs/first --seed-epochs +4000      # then confirmed under fresh seeds
    distune extend runs/first --arms kd_shuffled

    What is finished is not done again. From the second look at the test split on, verdicts use a stricter level, which
    the comparison states.
    """
    opened = open_run(run)
    from analysis import tracking
    from search.progress import Progress
    from search.sweep import extend as give_more
    from spaces import Extension

    added, progress = tuple(a for a in (arms or "").split(",") if a), Progress()
    with _leaving(run), tracking.following(run, tracking.chosen_mode(wandb), progress.say) as no_more_comes:
        extension, given = (
            Extension(confirm_seeds, seed_epochs, added, source),
            _given(address, max_concurrent, verbose),
        )
        give_more(run, extension, progress, force, given)
        no_more_comes()
        _write_report(opened, progress.say)
    _finish(opened, as_json)


@app.command("watch")
def watch_command(
    run: RunArgument,
    once: Annotated[bool, typer.Option("--once", help="Print where it stands now, and stop.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show how far a sweep is, live, from its ledger.

    \b
    distune watch runs/first             # in another terminal, until the sweep has finished
    distune watch runs/first --once

    It only reads.
    """
    open_run(run)
    from analysis import watching

    _print_json(watching.standing(run)) if as_json else watching.watch(run, once)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="One run folder, or several.")],
    form: Annotated[
        str | None, typer.Option("--format", metavar="latex|markdown|csv", help="Print the ablation table for a paper.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print the ablation table of a run, or of several.

    \b
    distune compare runs/first
    distune compare runs/first --format latex > table.tex
    distune compare runs/first runs/second      # the same arms on other data, or with another budget
    """
    opened = [open_run(run) for run in runs]
    from analysis import paper_tables
    from spaces import BadInput

    table = next((f for f in paper_tables.FORMATS if f == form), None)
    if form is not None and (table is None or as_json):
        given = "--json and --format" if as_json else f"--format {form}"
        raise BadInput(f"{given}: give --json, or --format with one of {', '.join(paper_tables.FORMATS)}")
    if len(opened) > 1:
        from analysis import side_by_side

        result = side_by_side.compare_runs(runs)
        if table is not None:
            print(side_by_side.paper(result, table), end="")
        elif as_json:
            _print_json(result)
        else:
            from analysis.tables import wide_console

            wide_console().print(side_by_side.render(result), highlight=False)
    elif table is not None:
        print(paper_tables.ablation(opened[0].compare(), table), end="")
    else:
        _show(opened[0], as_json)


@app.command()
def export(
    run: RunArgument,
    arm: Annotated[str, typer.Option(help="Whose student.")],
    to: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write: new, empty, or of an earlier export.")],
    format_: Annotated[
        str | None, typer.Option("--format", metavar="safetensors|onnx", help="Only one of them [default: both].")
    ] = None,
    with_teachers: Annotated[
        bool, typer.Option("--with-teachers", help="Export the teachers too, of an arm that needs them.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write an arm's confirmed student to a folder of its own.

    \b
    distune export runs/first --arm kd --to kd-student
    cd kd-student && python run.py       # needs numpy and onnxruntime; checks itself

    The folder runs without distune and holds a model card. Preprocessing is part of student.onnx. Before anything is
    left in DIR, its predictions are compared with those that the ledger holds of every test row.
    """
    formats = (format_,) if format_ else ("safetensors", "onnx")
    facts = open_run(run).export(arm, to, formats, with_teachers=with_teachers, quiet=False)
    if as_json:
        _print_json({"folder": str(to), **facts})
        return
    from analysis.card import check_lines

    print(*check_lines(facts), sep="\n")
    print(f"exported: {to}" + (f"  (try it: python {to / 'run.py'})" if "onnx" in formats else ""))


@app.command()
def report(
    run: RunArgument,
    watch: Annotated[
        bool, typer.Option("--watch", help="Rebuild it every few seconds until the sweep has finished.")
    ] = False,
    figure: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also write the main figure, as .png or .pdf.")
    ] = None,
) -> None:
    """Write RUN/report.html: verdicts, figures and every trial.

    \b
    distune report runs/first
    distune report runs/first --watch                  # beside a sweep; the page loads itself again
    distune report runs/first --figure main.pdf
    """
    opened = open_run(run)
    from analysis.report import paper_figure, write_while_it_grows

    if figure is not None:
        paper_figure.refuse_format(figure)
    if watch:
        write_while_it_grows(run, lambda line: print(line, file=sys.stderr, flush=True))
    _draw_maps(run, again=False)
    print(opened.report(figure))


@app.command()
def audit(study: StudyArgument, set_: Set = None, as_json: AsJson = False) -> None:
    """Show what each loss term sends the student.

    \b
    distune audit digits-attention-transfer
    distune audit my-study.yaml --json

    Every arm trains to its first rung. norm: of the unweighted term's gradient; share: of the weighted norms; cosine:
    with the cross-entropy's gradient.
    """
    chosen = load_study(study, set_ or [])
    from analysis.listing import show_audit
    from search.local import audit_study

    rows = audit_study(chosen, lambda line: print(line, file=sys.stderr))
    _print_json({"study": study, "terms": rows}) if as_json else show_audit(rows)


@app.command()
def check(
    study: StudyArgument,
    quick: Annotated[bool, typer.Option("--quick", help="Of the small budget.")] = False,
    set_: Set = None,
    as_json: AsJson = False,
) -> None:
    """Say what a sweep would do and cost, and whether it can.

    \b
    distune check mlp-ensemble
    distune check my-study.yaml --quick

    Data, shapes, gradients, packing, memory and time are checked. A variant of your own is called on a dry batch, under
    its default and at every end of its space. No teacher is trained.
    """
    from analysis.listing import show_check
    from search.local import check_study
    from spaces import adjust

    chosen = adjust(load_study(study, set_ or []), quick=quick)
    found = check_study(chosen, None, lambda line: print(line, file=sys.stderr))
    _print_json(found) if as_json else show_check(found)


@app.command()
def dashboard(
    run: RunArgument,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any that is free.")] = 8080,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets in everybody on the network.")
    ] = "127.0.0.1",
    once: Annotated[bool, typer.Option("--once", help="Only bring RUN/optuna.journal up to date, and stop.")] = False,
) -> None:
    """Show a run's trials in optuna-dashboard, live.

    \b
    distune dashboard runs/first
    distune dashboard runs/first --port 8081
    distune dashboard runs/first --once      # and how to open its studies in Optuna

    Every sub-search of every arm is an Optuna study in RUN/optuna.journal, which may be deleted at any time.
    """
    open_run(run)
    from analysis.dashboard import bring_up_to_date, serve

    if once:
        print(*bring_up_to_date(run), sep="\n")
    else:
        serve(run, host, port, lambda line: print(line, file=sys.stderr, flush=True))


@app.command("wandb")
def wandb_command(
    run: RunArgument,
    online: Annotated[bool, typer.Option("--online", help="Upload it too, with `wandb sync`.")] = False,
) -> None:
    """Export a run to W&B, or go on with an export.

    \b
    distune wandb runs/first              # offline, into runs/first/wandb
    distune wandb runs/first --online     # to WANDB_PROJECT [default: the study's name] of WANDB_ENTITY
    wandb leet runs/first/wandb           # the curves in the terminal

    What is there already is not written or sent again.
    """
    open_run(run)
    from analysis import tracking

    mode = "online" if online else "offline"
    if not tracking.export(run, tracking.chosen_mode(mode), lambda line: print(line, file=sys.stderr, flush=True)):
        raise typer.Exit(FAILED)


@app.command()
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look for run folders.")] = RUNS, as_json: AsJson = False
) -> None:
    """List run folders: study, state, trials, and when they began.

    \b
    distune runs
    distune runs /data/runs --json
    """
    from analysis.listing import list_runs, show_runs

    found = list_runs(folder)
    _print_json({"runs": found}) if as_json else show_runs(found, folder)


@app.command()
def clean(
    run: RunArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be freed, and free nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Free what a run folder holds that can be made again.

    \b
    distune clean runs/first --dry-run

    Ray's folders, checkpoints of ended trials and projections of the ledger go. The ledger, study.yaml and the
    confirmed students stay, and so does what an unfinished sweep resumes from.
    """
    from search.clean import clean as free

    parts = free(run, dry_run)
    if as_json:
        freed = {part.what: part.size for part in parts}
        _print_json({"run": str(run), "dry_run": dry_run, "bytes": sum(freed.values()), "parts": freed})
        return
    for part in parts:
        print(f"{part.size / 1e6:8.1f} MB  {part.what}")
    total = sum(part.size for part in parts) / 1e6
    print(f"{total:8.1f} MB {'would be freed' if dry_run else 'freed'} in {run}")


def _show(run: Run, as_json: bool) -> None:
    result = run.compare()
    if as_json:
        _print_json(result)
    else:
        from analysis.tables import show

        show(result)


def _finish(run: Run, as_json: bool) -> None:
    result = run.compare()
    if as_json:
        _print_json(result)
        print(f"run folder: {run.path}", file=sys.stderr)
        return
    from analysis import answer
    from analysis.tables import show, wide_console

    show(result, but=answer.answer(result))
    wide_console().print(answer.render(result, run.path), highlight=False, soft_wrap=True)


def _write_report(run: Run, say: Callable[[str], None]) -> None:
    """The page of a sweep that has ended. It is whole without one, so nothing that goes wrong here stops it."""
    try:
        _draw_maps(run.path, again=True)
        say(f"report: {run.report()}")
    except Exception as error:
        say(f"warning: no report, {type(error).__name__}: {error}")


def _draw_maps(run: Path, again: bool) -> None:
    """Keep the maps of a finished image run for its report, or say why not; again: although there are some."""
    if load_study(run / "study.yaml").family != "vision" or not _is_finished(run):
        return
    from search import maps

    try:
        if again or not (run / maps.FILE).is_file():
            maps.write(run)
    except (ValueError, OSError) as error:
        print(f"the report has no maps: {error}", file=sys.stderr)


def _is_finished(run: Path) -> bool:
    from search.ledger import Ledger

    with Ledger.open(run) as ledger:
        return ledger.finished


@contextlib.contextmanager
def _leaving(run: Path) -> Iterator[None]:
    """Whatever ends a sweep before its end is said, with how to go on; bad input is refused as everywhere."""
    from search.ledger import NotALedger
    from spaces import BadInput

    try:
        yield
    except (BadInput, NotALedger):
        raise
    except (Exception, KeyboardInterrupt) as error:
        _leave(run, error)


def _leave(run: Path, error: BaseException) -> None:
    """Say what stopped the sweep and how to go on with it."""
    from search.sweep import Interrupted, SweepFailed

    failed = not isinstance(error, Interrupted | KeyboardInterrupt)
    if failed and not isinstance(error, SweepFailed):
        traceback.print_exception(error)
    print(f"distune: {error}" if failed else "distune: stopped", file=sys.stderr)
    if run.exists():
        print(f"resume with: distune resume {run}", file=sys.stderr)
    raise typer.Exit(FAILED if failed else INTERRUPTED)


def _print_json(value: Any) -> None:
    print(json.dumps(value, allow_nan=False, ensure_ascii=False))


def command() -> Any:
    """The command line as a click group, for documentation and tests."""
    return typer.main.get_command(app)


def main() -> None:
    """The command line. A usage error is one line on stderr and exit status 2."""
    from typer.exceptions import Abort, TyperException

    try:
        code = app(standalone_mode=False, prog_name="distune")
    except TyperException as error:
        _refuse(error.format_message())
    except (Abort, KeyboardInterrupt):
        sys.exit(INTERRUPTED)
    except (ValueError, sqlite3.Error) as error:
        from search.ledger import NotALedger, unusable
        from spaces import BadInput

        if isinstance(error, sqlite3.Error):
            _refuse(unusable(Path("the ledger"), error))
        if not isinstance(error, BadInput | NotALedger):
            raise
        _refuse(str(error))
    sys.exit(code if isinstance(code, int) else 0)


def _refuse(message: str) -> NoReturn:
    print("distune: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(USAGE)


if __name__ == "__main__":
    main()
