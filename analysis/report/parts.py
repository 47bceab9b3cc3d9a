"""What a page is made of: sections of paragraphs, tables, figures and pictures; and how their data travel in it."""

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup
from rich import table as rich_table
from rich.text import Text

Json = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells are plain text; the first `left` columns are text, the others numbers. folded: shown when asked for."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1
    title: str = ""
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class Figure:
    """A plotly figure. title: what is seen, for everybody; note: what to know of it; table: the numbers behind it."""

    key: str
    title: str
    data: list[Json]
    layout: Json
    table: Table | None = None
    note: str = ""
    height: int = 320

    def spec(self) -> Json:
        layout = {"margin": {"l": 60, "r": 16, "t": 12, "b": 48}, "height": self.height, **self.layout}
        return {"data": self.data, "layout": layout}


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI."""

    uri: str
    alt: str


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows under headings, each row with a title."""

    headings: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Picture]]]
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """choices: of its figures one at a time is shown, chosen by name."""

    key: str
    title: str
    lead: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    choices: bool = False
    tables: Sequence[Table] = ()
    gallery: Gallery | None = None
    notes: Sequence[str] = field(default=())

    @property
    def is_empty(self) -> bool:
        return not (self.lead or self.figures or self.tables or self.gallery or self.notes)


def from_rich(table: rich_table.Table) -> Table:
    """A table of the terminal as one of the page, so that both print the same numbers."""
    columns = [[_plain(cell) for cell in column.cells] for column in table.columns]
    return Table(
        [_plain(column.header) for column in table.columns],
        list(zip(*columns, strict=True)) if columns else [],
        sum(column.justify == "left" for column in table.columns),
        _plain(table.title or ""),
        _plain(table.caption or ""),
    )


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)


def label(text: str) -> str:
    """Text for a figure: plotly would read tags in it, of which names may have some."""
    return html.escape(text, quote=False)


def finite(value: Any) -> Any:
    """The same JSON-like value with None for every number that is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def embedded(value: Any) -> Markup:
    """JSON for a <script> of the page: nothing in it can end the element or open a comment."""
    text = json.dumps(finite(value), allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def rounded(value: float | None, digits: int = 5) -> float | None:
    """So many significant digits: what the page is made of is read, and every digit costs a byte."""
    return float(f"{value:.{digits}g}") if value is not None and math.isfinite(value) else None
