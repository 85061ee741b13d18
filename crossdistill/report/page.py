"""Make the sections of a page and render the HTML file. Templates escape everything but ``Markup``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crossdistill.report.record import UnavailableError
from crossdistill.report.svg import percent
from crossdistill.utils.console import progress_bar


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page."""

    value: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, or the sentence that replaces it. The name is its anchor."""

    name: str
    title: str
    lead: str
    body: Markup = field(default_factory=Markup)
    unavailable: str = ""
    """Sentence in place of the body; empty if there is a body."""


@dataclass(frozen=True)
class Page:
    """Content of a page; the notes stand at its end."""

    title: str
    headline: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


def make_sections(makers: Sequence[tuple[str, str, Callable[[], Markup]]], leads: Mapping[str, str]) -> list[Section]:
    """Make sections one after the other, with a progress bar.

    ``makers`` are name and title of each section, and a function that returns its body or raises an
    ``UnavailableError``. ``leads`` are introductory sentences by name.
    """
    sections = []
    with progress_bar(unit="sections") as bar:
        for name, title, make in bar.track(makers, description="page"):
            try:
                sections.append(Section(name, title, leads[name], body=make()))
            except UnavailableError as error:
                sections.append(Section(name, title, leads[name], unavailable=f"Not available: {error}"))
    return sections


@cache
def _environment() -> Environment:
    # Escape in all templates; by default jinja2 decides by the file extension.
    loader = PackageLoader("crossdistill.report")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = percent
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render one of the files in ``templates/``."""
    return Markup(_environment().get_template(template).render(**values))


def render_page(page: Page) -> str:
    """Render the HTML file of a page."""
    source, _, _ = PackageLoader("crossdistill.report").get_source(_environment(), "style.css")
    return str(render("page.html", page=page, style=Markup(source)))
