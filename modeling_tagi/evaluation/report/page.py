"""Sections, tables and plots, and the two forms of a report: an HTML page that needs no other file, and Markdown."""

from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence, Union

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

_TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light; --ink: #1c2430; --soft: #5b6675; --line: #dfe4ea; --band: #f6f8fa; --accent: #1b5fc1; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .7rem; border-top: 1px solid var(--line); }
p, li { max-width: 46rem; overflow-wrap: anywhere; }
p.lead { font-size: 1.1rem; margin: .2rem 0 .8rem; }
nav { font-size: .9rem; display: flex; flex-wrap: wrap; gap: .15rem 1rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.scroll { overflow-x: auto; margin: .9rem 0 1.2rem; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .75rem .3rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
th.text, td.text { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
tr.strong td { font-weight: 650; background: var(--band); }
table.wrap td { white-space: normal; overflow-wrap: anywhere; text-align: left; vertical-align: top; }
table.wrap td:first-child { position: static; color: var(--soft); min-width: 8.5rem; }
.beside { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 420px), 1fr)); gap: 1.2rem 2rem;
  align-items: start; margin: 1rem 0 1.4rem; }
.beside > * { min-width: 0; }
.beside .scroll { margin: 0; }
figure { margin: 0; max-width: 560px; }
figure svg { display: block; width: 100%; height: auto; }
figcaption, .caption { font-size: .88rem; color: var(--soft); margin-bottom: .3rem; }
.caption { margin-top: .9rem; }
.caption + .scroll, .beside .caption { margin-top: 0; }
details { margin: .8rem 0; }
summary { cursor: pointer; color: var(--accent); }
@media (max-width: 600px) {
  table { font-size: .82rem; }
  th, td:first-child { white-space: normal; }
  th, td { padding-right: .5rem; }
  td:first-child { min-width: 5rem; }
}
</style>
</head>
<body>
<main>
<h1>{{ title }}</h1>
{% if lead %}<p class="lead">{{ lead }}</p>
{% endif -%}
<nav>{% for section in sections %}<a href="#s{{ loop.index }}">{{ section.title }}</a>{% endfor %}</nav>
{% macro show(table) -%}
<div>{% if table.caption %}<div class="caption">{{ table.caption }}</div>
{% endif -%}
<div class="scroll"><table{% if table.wrap %} class="wrap"{% endif %} aria-label="{{ table.caption or table.folded }}">
{% if table.head %}<thead><tr>
{%- for cell in table.head %}<th{% if loop.index <= table.text %} class="text"{% endif %}>{{ cell }}</th>{% endfor -%}
</tr></thead>
{% endif -%}
<tbody>
{% for row in table.rows %}<tr{% if loop.index0 in table.strong %} class="strong"{% endif %}>
{%- for cell in row %}<td{% if loop.index <= table.text %} class="text"{% endif %}>{{ cell }}</td>{% endfor -%}
</tr>
{% endfor %}</tbody></table></div></div>
{%- endmacro %}
{% for section in sections %}
<section id="s{{ loop.index }}">
<h2>{{ section.title }}</h2>
{% for kind, part in section.grouped() -%}
{% if kind == "text" %}<p>{{ part }}</p>
{% elif kind == "beside" %}<div class="beside">
{% for one in part %}{% if one.svg is defined -%}
<figure><figcaption>{{ one.caption }}</figcaption>{{ one.markup() }}</figure>
{% else %}{{ show(one) }}
{% endif %}{% endfor %}</div>
{% elif part.folded %}<details><summary>{{ part.folded }}</summary>{{ show(part) }}</details>
{% else %}{{ show(part) }}
{% endif -%}
{% endfor -%}
</section>
{% endfor -%}
</main>
</body>
</html>
"""


@dataclass
class Table:
    """Holds a table of a report.

    Args:
        head: Names of the columns; empty for facts by name.
        rows: Texts.
        text: How many columns, from the left, are not numbers.
        caption: What it shows.
        strong: Rows that stand out, by number.
        wrap: Whether cells may take several lines, for long texts.
        folded: If not empty, the table is shut in the page until this line is clicked.
        beside: Whether it is narrow enough to stand beside a plot.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    text: int = 1
    caption: str = ""
    strong: Sequence[int] = ()
    wrap: bool = False
    folded: str = ""
    beside: bool = False

    def markdown(self) -> list[str]:
        """Returns its lines in Markdown."""
        head = self.head or [""] * len(self.rows[0])
        marks = ["---"] * self.text + ["---:"] * (len(head) - self.text)
        lines = [" | ".join(map(_cell, row)) for row in (head, *self.rows)]
        title = _plain(self.folded or self.caption)
        return [*([title, ""] if title else []), *(f"| {x} |" for x in (lines[0], " | ".join(marks), *lines[1:]))]


@dataclass
class Plot:
    """Holds a plot of a report.

    Args:
        name: The name of its file, unique in the report.
        svg: A whole SVG document.
        caption: What it shows.
        png: Makes the same as a PNG, where pages take no SVG.
    """

    name: str
    svg: str
    caption: str
    png: Optional[Callable[[], bytes]] = None

    def markup(self) -> Markup:
        """Returns the SVG as a part of a page, read out as its caption."""
        drawing = self.svg[self.svg.index("<svg"):]
        beginning = Markup('<svg role="img" aria-label="{}"').format(self.caption)  # which escapes the caption
        return Markup(drawing.replace("<svg", beginning, 1))  # nosec B704 # matplotlib escapes the texts that it draws


@dataclass
class Section:
    """Holds a section of a report.

    Args:
        title: Its heading.
        parts: Paragraphs, tables and plots, in order.
    """

    title: str
    parts: list[Union[str, Table, Plot]] = field(default_factory=list)

    def grouped(self) -> list[tuple[str, object]]:
        """Returns the parts with their kinds; plots, and tables beside them, that follow each other are one."""
        found: list[tuple[str, object]] = []
        for part in self.parts:
            if isinstance(part, str):
                found.append(("text", part))
            elif isinstance(part, Table) and not part.beside:
                found.append(("table", part))
            elif found and found[-1][0] == "beside":
                found[-1][1].append(part)
            else:
                found.append(("beside", [part]))
        return found


def html_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns the page; every text in it is escaped."""
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(_TEMPLATE).render(title=title, lead=lead, sections=sections)


def markdown_page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """Returns the same in Markdown; plots are the files `<name>.svg` beside it."""
    blocks = [f"# {_plain(title)}", *([_plain(lead)] if lead else [])]
    for section in sections:
        blocks.append(f"## {_plain(section.title)}")
        for part in section.parts:
            if isinstance(part, Plot):
                blocks += [_plain(part.caption), f"![{_plain(part.caption)}]({part.name}.svg)"]
            else:
                blocks.append("\n".join(part.markdown()) if isinstance(part, Table) else _plain(part))
    return "\n\n".join(blocks) + "\n"


def _cell(text: str) -> str:
    return _plain(text).replace("|", "\\|")


def _plain(text: str) -> str:
    """Returns one line of Markdown that shows `text`, in which nothing is taken for HTML."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
