"""`python run.py FILE`: a class for each row of a .npy, of `x` in a .npz, or of a .csv of numbers without a header.

`python run.py`: check on example.npz.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def main() -> None:
    student = onnxruntime.InferenceSession(HERE / "student.onnx")
    if len(sys.argv) == 2:
        x = np.loadtxt(sys.argv[1], delimiter=",", ndmin=2) if sys.argv[1].endswith(".csv") else np.load(sys.argv[1])
        print(*student.run(["logits"], {"x": x if isinstance(x, np.ndarray) else x["x"]})[0].argmax(axis=1), sep="\n")
        return
    example = np.load(HERE / "example.npz")
    difference = np.abs(student.run(["logits"], {"x": example["x"]})[0] - example["expected"])
    print(f"{len(difference)} rows: logits differ from the confirmed student's by {difference.max():.1e} at most")
    sys.exit(0 if difference.max() < 1e-4 else 1)


if __name__ == "__main__":
    main()
