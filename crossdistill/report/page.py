"""Sections to one HTML file. The template escapes; what is ``Markup`` was escaped where it was made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crossdistill.report.record import AbsentError
from crossdistill.report.svg import percent, short_number
from crossdistill.utils.console import progress_bar


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page."""

    value: str
    title: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the page, or the sentence in its place."""

    name: str
    """In addresses within the page."""
    title: str
    lead: str
    body: Markup = field(default_factory=Markup)
    absent: str = ""


@dataclass(frozen=True)
class Page:
    """Everything that the page holds."""

    title: str
    headline: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Draft:
    """A section that is not yet made."""

    name: str
    title: str
    lead: str
    make: Callable[[], Markup]
    """Gives the body, or raises an ``AbsentError`` with the sentence in its place."""

    def finished(self) -> Section:
        """The section; some take seconds."""
        try:
            return Section(self.name, self.title, self.lead, body=self.make())
        except AbsentError as error:
            return Section(self.name, self.title, self.lead, absent=f"Not here: {error}")


def make_sections(drafts: Sequence[Draft]) -> list[Section]:
    """Make one section after the other, with a progress bar."""
    with progress_bar(unit="sections") as bar:
        return [draft.finished() for draft in bar.track(drafts, description="page")]


@cache
def _environment() -> Environment:
    # Everything is escaped, whatever a template's name ends with.
    environment = Environment(
        loader=PackageLoader("crossdistill.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short_number}
    return environment


def render(template: str, **values: Any) -> Markup:
    """One of ``templates/``, filled."""
    return Markup(_environment().get_template(template).render(**values))


def render_page(page: Page) -> str:
    """The whole file."""
    source, _, _ = PackageLoader("crossdistill.report").get_source(_environment(), "style.css")
    return str(render("page.html", page=page, style=Markup(source)))
