"""What the report of a large sweep costs: seconds and memory to build it, its size, and how soon it can be read.

    python -m tests.benchmarks.report_size --trials 10000 --json

The ledger is written as `tests.benchmarks.rebuild` does, then confirmed. Each of `n` builds is a process of its own,
which is why its memory is its own too; `first_paint_s` is of headless Chromium, null where there is none.
"""

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from spaces import to_yaml
from tests.benchmarks import rebuild
from tests.made_reports import confirmed

REPEATS = 3
LIMITS = {"seconds": 20.0, "mb_of_memory": 1500.0, "mb_of_file": 12.0, "first_paint_s": 2.0}


def build(run: Path) -> dict[str, float]:
    """One build in this process: seconds without imports, and the process's largest memory."""
    from analysis.report import write

    began = time.perf_counter()
    path = write(run)
    took = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    return {"seconds": took, "mb_of_memory": peak, "mb_of_file": path.stat().st_size / 1e6}


def first_paint(page: Path) -> list[float] | None:
    """Seconds to the first contentful paint, `REPEATS` times."""
    chromium = shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if chromium is None:
        return None
    paint = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
    found = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(REPEATS):
            opened = browser.new_page()
            opened.goto(page.as_uri())
            opened.wait_for_function(paint)
            found.append(opened.evaluate(paint) / 1000)
            opened.close()
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.build:
        print(json.dumps(build(given.build)))
        return
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        study = rebuild.study_for(given.trials * 6 // 5)  # its budget is not to end the search before
        (run / "study.yaml").write_text(to_yaml(study), encoding="utf-8")
        with rebuild.Ledger.create(run, {"study": study.name, "seed": 0}) as ledger:
            rebuild.write(ledger, study, given.trials)
            confirmed(ledger, study)
            trials = len(ledger.trials())
        command = [sys.executable, "-m", "tests.benchmarks.report_size", "--build", str(run)]
        builds = [json.loads(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(REPEATS)]
        painted = first_paint(run / "report.html")
    raw = {name: [b[name] for b in builds] for name in builds[0]} | {"first_paint_s": painted}
    medians = {name: None if values is None else statistics.median(values) for name, values in raw.items()}
    result = {
        "n": REPEATS,
        "trials": trials,
        **medians,
        "spread": {name: values and [min(values), max(values)] for name, values in raw.items()},
        "limits": LIMITS,
        "within": all(value is None or value <= LIMITS[name] for name, value in medians.items()),
    }
    print(json.dumps(result) if given.json else json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
