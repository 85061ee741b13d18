"""Make the sections of a page and render the HTML file. Templates escape everything but ``Markup``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from crossdistill.report.record import UnavailableError
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
    """A part of the page, or the sentence that replaces it."""

    name: str
    """Anchor of the section."""
    title: str
    lead: str
    """Introductory sentence."""
    body: Markup = field(default_factory=Markup)
    unavailable: str = ""
    """Sentence in place of the body; empty if there is a body."""


@dataclass(frozen=True)
class Page:
    """Content of a page."""

    title: str
    headline: str
    tiles: Sequence[Tile]
    sections: Sequence[Section]
    notes: Sequence[str] = ()
    """Sentences at the end of the page."""


@dataclass(frozen=True)
class SectionPlan:
    """A section and the function that makes its body."""

    name: str
    title: str
    lead: str
    make: Callable[[], Markup]
    """Returns the body, or raises an ``UnavailableError``."""

    def run(self) -> Section:
        """Make the section, which can take seconds."""
        try:
            return Section(self.name, self.title, self.lead, body=self.make())
        except UnavailableError as error:
            return Section(self.name, self.title, self.lead, unavailable=f"Not available: {error}")


def make_sections(plans: Sequence[SectionPlan]) -> list[Section]:
    """Make the sections one after the other, with a progress bar."""
    with progress_bar(unit="sections") as bar:
        return [plan.run() for plan in bar.track(plans, description="page")]


@cache
def _environment() -> Environment:
    # Escape in all templates; by default jinja2 decides by the file extension.
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
    """Render one of the files in ``templates/``."""
    return Markup(_environment().get_template(template).render(**values))


def render_page(page: Page) -> str:
    """Render the HTML file of a page."""
    source, _, _ = PackageLoader("crossdistill.report").get_source(_environment(), "style.css")
    return str(render("page.html", page=page, style=Markup(source)))
