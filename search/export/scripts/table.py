"""`python run.py rows.csv`: each row's probability of the positive class. `python run.py`: check on example.npz."""

import csv
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

HERE = Path(__file__).parent
NA = {
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
}
TRUTH = {"true": 1.0, "false": 0.0}


def text(cell: str, column: dict[str, Any]) -> str:
    """A category as the student knows it: 1.0 and 1 are one, and an empty cell is a missing one."""
    if cell in NA:
        return str(column["missing_text"])
    try:
        value = float(cell)
        known = str(int(value)) if value.is_integer() else str(value)
    except ValueError:
        return cell
    return known if cell not in column["categories"] else cell


def number(cell: str) -> float:
    return np.nan if cell in NA else TRUTH[cell.lower()] if cell.lower() in TRUTH else float(cell)


def inputs(path: str) -> dict[str, Any]:
    config = json.loads((HERE / "config.json").read_text(encoding="utf-8"))
    columns, encoding = config["inputs"], config["data"].get("encoding", "utf-8")
    with open(path, newline="", encoding="utf-8-sig" if encoding.lower() in ("utf-8", "utf8") else encoding) as file:
        rows = list(csv.DictReader(file, delimiter=config["data"].get("delimiter", ",")))
    return {
        c["input"]: np.array([text(r[c["column"]], c) if c["categories"] else number(r[c["column"]]) for r in rows])
        for c in columns
    }


def main() -> None:
    student = onnxruntime.InferenceSession(HERE / "student.onnx")
    if len(sys.argv) == 2:
        logit = student.run(["logit"], inputs(sys.argv[1]))[0].astype(np.float64)
        print(*(f"{p:.6f}" for p in 1 / (1 + np.exp(-logit))), sep="\n")
        return
    example = dict(np.load(HERE / "example.npz"))
    expected = example.pop("expected")
    difference = np.abs(student.run(["logit"], {i.name: example[i.name] for i in student.get_inputs()})[0] - expected)
    print(f"{len(expected)} rows: logits differ from the confirmed student's by {difference.max():.1e} at most")
    sys.exit(0 if difference.max() < 1e-4 else 1)


if __name__ == "__main__":
    main()
