"""``crossdistill push``: send a student or a teacher cache to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from crossdistill.utils.command_line import parse_options
from crossdistill.utils.console import console


@dataclass(frozen=True)
class Options:
    """Send a student or a teacher cache to a repository of the Hugging Face hub, with a card that is written from the
    run. Only safetensors, JSON and Markdown are sent, and no path of this machine. HF_TOKEN names the account.
    """

    folder: tyro.conf.Positional[Path]
    """A run's folder, the folder with student.safetensors, or a teacher cache."""
    repository: tyro.conf.Positional[str]
    """The repository, organisation/name. It is created if it does not exist; a teacher cache becomes a dataset."""
    private: bool = False
    """Create the repository as a private one. An existing repository keeps its state."""
    revision: str | None = None
    """Branch to write to; the main branch by default. It is created if it does not exist."""
    license: str | None = None
    """Licence of the weights as the hub spells it, for example apache-2.0; by default the card asks for it."""
    card: Path | None = None
    """Markdown file to send as README.md instead of the written card, for example the edited output of --dry-run."""
    transformers: bool = False
    """Also send the student as export --to hf writes it: transformers, or timm for its networks, then loads it from the
    repository."""
    dry_run: bool = False
    """Print the card and the files with their sizes, and send nothing."""
    allow_code: bool = False
    """Run the Python file that a student of a custom network (path/to/file.py:function) names. It is not sent."""


def main(arguments: Sequence[str], *, prog: str) -> None:
    """Run the command."""
    options = parse_options(Options, arguments, prog=prog)
    from crossdistill.errors import UserError
    from crossdistill.publish.push import PushRequest, collect, push
    from crossdistill.utils.hub import Repository

    repository = Repository.parse(options.repository)
    if repository.revision is not None:
        raise UserError(f"{options.repository} has a revision: give it as --revision {repository.revision}")
    request = PushRequest(
        folder=options.folder,
        repository=Repository(repository.name, options.revision),
        private=options.private,
        license=options.license,
        card=options.card,
        transformers=options.transformers,
        allow_code=options.allow_code,
    )
    if not options.dry_run:
        console.print(push(request), highlight=False, soft_wrap=True)
        return
    with tempfile.TemporaryDirectory() as scratch:
        contents = collect(request, Path(scratch))
        print(contents.card)
        for name, num_bytes in contents.sizes().items():
            print(f"{num_bytes:>12,} bytes  {name}")
