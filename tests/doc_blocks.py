"""The code blocks of README.md, CONTRIBUTING.md and docs/, and what holds each of them to be right."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markdown_it import MarkdownIt

import distune
from spaces import load_study

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
SHELL = ("distune", "make", "python", "pytest", "pip", "source", "cd", "git", "wandb")
FILE = re.compile(r"<!-- file: (\S+) -->")
NOT_RUN = re.compile(r"<!-- not run: (\S.*?) -->")
# Commands that are only parsed here, and why.
LONG = {
    "sweep": "searches for minutes; its --dry-run is run, if there are data",
    "resume": "goes on with a sweep that was stopped; tests/test_sweep.py",
    "extend": "trains more seeds; tests/test_extend.py",
    "audit": "trains every arm to its first rung; tests/test_audit.py",
    "wandb": "starts wandb; tests/test_wandb.py",
    "check": "tries every arm; tests/test_own_variants.py",
    "dashboard": "serves until Ctrl-C; tests/test_optuna_view.py",
}


def leaves(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its whole name, such as `sweep` and `new study`."""
    found = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{name} ") if hasattr(command, "commands") else {before + name: command}
    return found


COMMANDS = leaves(distune.command())


def split(words: list[str]) -> tuple[str, list[str]]:
    """(name of the command, its arguments) of the words after `distune`. Raises ValueError for an unknown one."""
    for length in (1, 2):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return name, words[length:]
    raise ValueError(f"distune has no command {words[0]}")


@dataclass(frozen=True)
class Block:
    """kind: python, yaml, shell, or other, which is not code.

    not_run, file: of the comment before it, why it is not run, and the name under which the reader is to save it.
    """

    page: str
    line: int
    kind: str
    text: str
    not_run: str | None
    file: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    return blocks_of(page.read_text("utf-8"), str(page.relative_to(ROOT)))


def blocks_of(text: str, page: str) -> list[Block]:
    """Fenced blocks by their language; indented ones are shell where their first word is a command."""
    found, before = [], ""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block"):
            language = token.info.split(maxsplit=1)[0] if token.info else ""
            kind = {"python": "python", "yaml": "yaml", "sh": "shell"}.get(language, "other")
            words = token.content.replace("$ ", "", 1).split()
            if not language and words and words[0] in SHELL:
                kind = "shell"
            marks = [mark.group(1) if mark else None for mark in (NOT_RUN.search(before), FILE.search(before))]
            found.append(Block(page, token.map[0] + 1, kind, token.content, *marks))
        if token.nesting == 0 or token.content:
            before = token.content
    return found


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a shell block; with a prompt `$ ` only the lines that have it are commands."""
    whole = re.sub(r"\\\n\s*", " ", block.text)
    lines = [line for line in whole.splitlines() if line.strip() and not line.startswith("#")]
    if any(line.startswith("$ ") for line in lines):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    return [shlex.split(line, comments=True) for line in lines]


def check_command(words: list[str]) -> None:
    """Raise where a command could not be run: an unknown program, target, module, subcommand or option."""
    program, *arguments = words
    if program not in SHELL:
        raise ValueError(f"no known program: {program}")
    if program == "make":
        targets = re.findall(r"^([a-z.]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        unknown = set(arguments) - set(targets)
        if unknown:
            raise ValueError(f"make has no target {', '.join(unknown)}")
    elif program == "python" and arguments[0] == "-m":
        module = ROOT / Path(*arguments[1].split(".")).with_suffix(".py")
        if not module.is_file():
            raise ValueError(f"no module {arguments[1]}")
        unknown = [a for a in arguments[2:] if a.startswith("--") and f'"{a}"' not in module.read_text("utf-8")]
        if unknown:
            raise ValueError(f"{arguments[1]} has no option {', '.join(unknown)}")
    elif program == "pytest":
        missing = [a for a in arguments if a.startswith("tests/") and not (ROOT / a.partition("::")[0]).exists()]
        if missing:
            raise ValueError(f"no {', '.join(missing)}")
    elif program == "distune":
        parse(arguments)


def synopses(text: str) -> list[list[str]]:
    """The words of every `distune …` in running text, with what is optional in it but without its brackets."""
    found = [
        t.content
        for token in MarkdownIt().enable("table").parse(text)
        for t in token.children or ()
        if t.type == "code_inline"
    ]
    return [re.sub(r"[\[\]]|\.\.\.", " ", t).split() for t in found if re.match(r"distune \w", t)]


def check_synopsis(words: list[str]) -> None:
    """Raise ValueError for a command or an option that distune does not have."""
    name, arguments = split(words[1:])
    options = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
    unknown = {word.partition("=")[0] for word in arguments if word.startswith("--")} - options
    if unknown:
        raise ValueError(f"distune {name} has no option {', '.join(unknown)}")


def parse(arguments: list[str]) -> Any:
    """The context of a distune command, as the command line makes it, without running it."""
    if arguments and arguments[0].startswith("-"):
        given = [a for a in arguments if a != "--help"]
        return distune.command().make_context("distune", given, resilient_parsing=True)
    name, rest = split(arguments)
    return COMMANDS[name].make_context(name, rest)


def is_quick(words: list[str]) -> bool:
    """Whether a command is run here: of distune, on the finished run `runs/first` or on no run at all."""
    if words[0] != "distune" or words[1].startswith("-") or any(word.isupper() for word in words):
        return False
    if words[1] in LONG:
        quick = {"sweep": "--dry-run", "dashboard": "--once"}
        return quick.get(words[1]) in words and "my-images.yaml" not in words
    return "--watch" not in words and not any(w.startswith("runs/") and w != "runs/first" for w in words)


def check_study(text: str, folder: Path) -> None:
    """Load a YAML block as a study. Raises spaces.BadInput."""
    path = folder / "block.yaml"
    path.write_text(text, "utf-8")
    load_study(path)
