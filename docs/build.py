"""Build the documentation: `python -m docs.build`, or `make docs`. The site comes to build/site/index.html.

The pages are copied to build/docs, where the parts of the reference that are made from the program are filled in:
commands from the typer app, the keys of a study from the classes that validate it.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic

import distune
from spaces import Study

Schema = Mapping[str, Any]
LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def main() -> int:
    """Build the site; every warning is an error. Returns the exit status."""
    here, pages = Path(__file__).parent, Path("build/docs")
    shutil.rmtree("build/docs", ignore_errors=True)
    shutil.copytree(here, pages, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    for path in pages.rglob("*.md"):
        path.write_text(filled(path.read_text("utf-8")), "utf-8")
    return subprocess.run([sys.executable, "-m", "zensical", "build", "--clean", "--strict"], check=False).returncode


def filled(page: str) -> str:
    """A page with `<!-- generated: NAME -->` replaced by that part."""
    for name, part in PARTS.items():
        mark = f"<!-- generated: {name} -->"
        if mark in page:
            page = page.replace(mark, part())
    return page


def commands() -> str:
    """Every command with its help, its examples as they stand there, and its arguments and options."""
    parts = []
    for name, command in _leaves(distune.command()):
        context = command.make_context(name, [], resilient_parsing=True)
        usage = " ".join(["distune", name, *command.collect_usage_pieces(context)])
        parts += [f"## {name}", "```text", usage, "```", _help(command.help or ""), *_options(command, context)]
    return "\n\n".join(parts)


def _leaves(group: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """(whole name, command) of every command, such as `new study`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _leaves(command, f"{name} ")
        else:
            yield before + name, command


def _help(text: str) -> str:
    """Paragraphs as they are; what follows a backspace keeps its lines."""
    paragraphs = [p.strip("\n") for p in text.split("\n\n")]
    return "\n\n".join(f"```text\n{p[1:].strip()}\n```" if p.startswith("\b") else _flat(p) for p in paragraphs)


def _options(command: Any, context: Any) -> list[str]:
    found = [p.get_help_record(context) for p in command.params]
    rows = [f"| `{names.replace('|', ' or ')}` | {_flat(about)} |" for names, about in filter(None, found)]
    return ["\n".join(["| argument or option | |", "|---|---|", *rows])]


def study() -> str:
    """A table of keys for the study and for every class within it."""
    schema = pydantic.TypeAdapter(Study).json_schema()
    first = ("Study", schema)
    return "\n\n".join(_keys(name, part) for name, part in (first, *schema["$defs"].items()))


def _keys(name: str, schema: Schema) -> str:
    about = "\n\n".join(_flat(p) for p in schema.get("description", "").split("\n\n"))
    needed = schema.get("required", ())
    rows = [
        f"| `{key}` | {_type(of)} | {'required' if key in needed else _default(of)} |"
        for key, of in schema["properties"].items()
    ]
    return "\n".join([f"## {name}", "", about, "", "| key | value | default |", "|---|---|---|", *rows])


def _default(of: Schema) -> str:
    return f"`{json.dumps(of['default'], ensure_ascii=False)}`" if "default" in of else ""


def _type(of: Schema) -> str:
    """A JSON schema in a few words, with links to the tables of the classes that it names."""
    if "$ref" in of:
        name = of["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "const" in of:
        return f"`{of['const']}`"
    if "enum" in of:
        return " or ".join(f"`{value}`" for value in of["enum"])
    for several in ("anyOf", "oneOf"):
        if several in of:
            return " or ".join(_type(one) for one in of[several])
    if of.get("type") == "array":
        items = of.get("items") or {"anyOf": of.get("prefixItems", [])}
        return f"list of {_type(items)}"
    if of.get("type") == "object":
        values = of.get("additionalProperties")
        return f"mapping of names to {_type(values if isinstance(values, dict) else {})}"
    limits = [f"{sign} {of[name]:g}" for name, sign in LIMITS.items() if name in of]
    return " ".join([str(of.get("type", "anything")), *limits])


def _flat(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


PARTS: dict[str, Callable[[], str]] = {"commands": commands, "study": study}

if __name__ == "__main__":
    sys.exit(main())
