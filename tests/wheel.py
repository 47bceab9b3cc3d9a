"""Build the wheel, install it away from this folder and try it out: `python -m tests.wheel`, or `make wheel`.

Only distune comes from the wheel. What it needs comes from the environment that this runs in, so that nothing large is
installed again; an editable distune there is kept out of sight.
"""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = (".html", ".css", ".js", ".yaml", ".parquet")  # what is no module and must be there all the same
COMMANDS = (
    ("--help",),
    ("studies",),
    ("sweep", "digits-attention-transfer", "--dry-run"),
)


def main() -> None:
    """Raise where the wheel does not build, lacks a file or does not run outside this folder."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = build(Path(folder))
        missing = lacks(wheel)
        if missing:
            raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
        program = install(wheel, Path(folder) / "venv")
        for arguments in COMMANDS:
            subprocess.run([program, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        print(f"{wheel.name}, {wheel.stat().st_size / 1e3:.0f} kB: " + ", ".join(" ".join(a) for a in COMMANDS))


def build(folder: Path) -> Path:
    """The wheel of the files that git tracks, from a copy, so that nothing of an earlier build gets into it."""
    source = folder / "source"
    for name in tracked():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("distune-*.whl")
    return wheel


def lacks(wheel: Path) -> list[str]:
    """Files of the packages that the wheel does not hold."""
    packages = ("analysis/", "search/", "spaces/", "trainables/", "distune.py")
    wanted = {name for name in tracked() if name.startswith(packages) and Path(name).suffix in (".py", *DATA)}
    return sorted(wanted - set(zipfile.ZipFile(wheel).namelist()))


def tracked() -> list[str]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def install(wheel: Path, folder: Path) -> Path:
    """A new environment that holds the wheel and sees the packages of this one; returns its `distune`."""
    venv.create(folder, with_pip=False)
    base = sysconfig.get_path("purelib", vars={"base": folder, "platbase": folder})
    python = folder / "bin" / "python"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", wheel], check=True
    )
    # A path in a .pth file comes after this environment's own packages, and the .pth files in it are not read.
    Path(base, "environment.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    found = subprocess.run(
        [python, "-c", "import distune; print(distune.__file__)"],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    if not Path(found).is_relative_to(folder):
        raise SystemExit(f"the environment imports distune from {found}, not from the wheel")
    return folder / "bin" / "distune"


if __name__ == "__main__":
    main()
