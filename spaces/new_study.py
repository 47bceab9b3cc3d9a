"""`distune new study`: a folder with a study and a variant to begin with, which runs as it is."""

import re
from pathlib import Path

from spaces.load import BadInput
from trainables.names import nearest

TEMPLATES = Path(__file__).parent / "templates"
SOURCES = ("mlp-ensemble", "image-folder", "csv")


def write(folder: Path, source: str) -> list[Path]:
    """Write `study.yaml`, `variant.py` and, of images and tables, a little data to replace; returns what was written.

    The study is named as the folder is. Raises BadInput for a folder that exists, a name that is none, or an unknown
    source.
    """
    if source not in SOURCES:
        raise BadInput(f"--from {source}{nearest(source, SOURCES)}: allowed are {', '.join(SOURCES)}")
    if not re.fullmatch(r"[A-Za-z][\w.-]*", folder.name):
        raise BadInput(f"a study is named by letters, digits, '-', '_' and '.', a letter first, got '{folder.name}'")
    if folder.exists():
        raise BadInput(f"{folder} exists already: nothing is overwritten, give another name")
    folder.mkdir(parents=True)
    for template, name in ((f"{source}.yaml", "study.yaml"), ("variant.py", "variant.py")):
        text = (TEMPLATES / template).read_text(encoding="utf-8")
        text = text.replace("my-study/", f"{folder.as_posix()}/").replace("my-study", folder.name)
        (folder / name).write_text(text, encoding="utf-8")
    if source == "image-folder":
        _write_images(folder / "images")
    if source == "csv":
        _write_table(folder / "table.csv")
    return sorted(folder.iterdir())


def _write_images(folder: Path) -> None:
    """Four of scikit-learn's handwritten digits, 8x8 pixels, a third of them to test."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=4)
    for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("train" if number % 3 else "test") / f"digit-{label}" / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).astype("uint8")).save(path)


def _write_table(path: Path) -> None:
    """scikit-learn's copy of the breast cancer table of Wisconsin (Wolberg et al., 1995): 569 rows, 30 columns."""
    from sklearn.datasets import load_breast_cancer

    table = load_breast_cancer(as_frame=True)
    frame = table.frame.drop(columns="target")
    frame["diagnosis"] = table.target_names[table.target]
    frame.to_csv(path, index=False)
