"""Send a run's student, or a teacher cache, to a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from crossdistill.distillation.cache_folders import open_caches
from crossdistill.distillation.student import CLASSIFIER_NAME, FACTS_NAME, WEIGHTS_NAME, find_student, load_student
from crossdistill.distillation.teacher_cache import DESCRIPTION_NAME
from crossdistill.encoders import Encoder
from crossdistill.encoders.timm import is_timm_model
from crossdistill.errors import UserError
from crossdistill.export import hf
from crossdistill.export.export import export_file
from crossdistill.export.metadata import ExportMetadata
from crossdistill.publish.card import CardOptions, cache_card, student_card
from crossdistill.publish.plain_paths import require_no_folder, without_folders
from crossdistill.report.record import read_run
from crossdistill.training.run_folder import RunFolder
from crossdistill.utils.hub import Kind, Repository, send

CARD_NAME = "README.md"
SENT_SUFFIXES = (".safetensors", ".json", ".md")


@dataclass(frozen=True)
class PushRequest:
    """What is sent, and where."""

    folder: Path
    """A run's folder, a student's folder, or a teacher cache."""
    repository: Repository
    private: bool = False
    license: str | None = None
    card: Path | None = None
    """A Markdown file to send as README.md instead of the written card."""
    transformers: bool = False
    """Whether the files for transformers or timm are sent too."""
    allow_code: bool = False


@dataclass(frozen=True)
class Contents:
    """The files of a repository."""

    kind: Kind
    files: Mapping[str, bytes | Path]
    """Name to the content, or to the file that holds it."""

    @property
    def card(self) -> str:
        """The text of README.md."""
        content = self.files[CARD_NAME]
        assert isinstance(content, bytes)
        return content.decode("utf-8")

    def sizes(self) -> dict[str, int]:
        """Name to size in bytes."""
        return {
            name: len(content) if isinstance(content, bytes) else content.stat().st_size
            for name, content in sorted(self.files.items())
        }


def push(request: PushRequest) -> str:
    """Send a student or a cache; return the address of the commit. See ``collect`` and ``utils.hub.send``."""
    with tempfile.TemporaryDirectory() as scratch:
        contents = collect(request, Path(scratch))
        kind = "student" if contents.kind == "model" else "teacher cache"
        return send(
            request.repository,
            contents.files,
            kind=contents.kind,
            private=request.private,
            message=f"Upload {kind} with crossdistill",
        )


def collect(request: PushRequest, scratch: Path) -> Contents:
    """Collect what is sent, without asking the hub.

    Args:
        request: What is sent.
        scratch: An empty folder for files that are made for this purpose. It must exist until they are sent.

    Raises:
        UserError: The folder holds neither a finished run nor a complete cache, or a file would name a folder of this
            machine.
    """
    folder = request.folder
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give a run's folder, or that of a teacher cache")
    given = None if request.card is None else _read_card(request.card)
    if (folder / DESCRIPTION_NAME).is_file():
        contents = _collect_cache(request, given)
    else:
        contents = _collect_student(request, given, scratch)
    strange = [name for name in contents.files if not name.endswith(SENT_SUFFIXES) and name != hf.CODE_NAME]
    assert not strange, strange
    require_no_folder(contents.files, [Path.home(), Path.cwd(), folder.resolve(), folder.absolute()])
    return contents


def _read_card(path: Path) -> bytes:
    if not path.is_file():
        raise UserError(f"there is no file {path}: give a Markdown file as --card, or leave the option out")
    return path.read_bytes()


def _collect_student(request: PushRequest, card: bytes | None, scratch: Path) -> Contents:
    folder = find_student(request.folder)
    if folder is None:
        is_run = RunFolder(request.folder).config.is_file()
        raise UserError(
            f"the run {request.folder} has not finished, so it has no student: continue it with --resume"
            if is_run
            else f"{request.folder} holds neither a student ({FACTS_NAME}) nor a teacher cache ({DESCRIPTION_NAME}): "
            "give a run's folder, or that of a teacher cache"
        )
    encoder = load_student(folder, allow_code=request.allow_code)
    facts = without_folders(json.loads((folder / FACTS_NAME).read_text(encoding="utf-8")))
    files: dict[str, bytes | Path] = {
        FACTS_NAME: (json.dumps(facts, indent=2) + "\n").encode(),
        WEIGHTS_NAME: folder / WEIGHTS_NAME,
    }
    if (folder / CLASSIFIER_NAME).is_file():
        files[CLASSIFIER_NAME] = folder / CLASSIFIER_NAME
    options = CardOptions(request.repository.name, license=request.license)
    if request.transformers:
        exported = _export(folder, scratch / "hf", allow_code=request.allow_code)
        files |= exported
        options = _with_other_libraries(options, encoder, facts.get("classes") or ())
    record = read_run(RunFolder.of_student(request.folder).path)
    files[CARD_NAME] = card or student_card(record, encoder, options).encode()
    return Contents("model", files)


def _export(student: Path, folder: Path, *, allow_code: bool) -> dict[str, bytes | Path]:
    """Write the student for transformers, and return the files but the folder's own card."""
    export_file(student, folder, to="hf", allow_code=allow_code)
    config = folder / "config.json"
    plain = without_folders(json.loads(config.read_text(encoding="utf-8")))
    config.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return {path.name: path for path in folder.iterdir() if path.name != CARD_NAME}


def _with_other_libraries(options: CardOptions, encoder: Encoder, classes: tuple[str, ...]) -> CardOptions:
    metadata = ExportMetadata.from_encoder(encoder, classes)
    library = "timm" if is_timm_model(encoder) else "transformers"
    how = hf.how_to_load(encoder, metadata, place=options.place)
    return replace(options, library=library, how_to_load=f"With {library}:\n\n{how}")


def _collect_cache(request: PushRequest, card: bytes | None) -> Contents:
    if request.transformers:
        raise UserError(f"--transformers is for students, and {request.folder} is a teacher cache: remove it")
    caches = open_caches(request.folder)
    # Of several teachers, the description of the whole comes before those of each.
    files: dict[str, bytes | Path] = {DESCRIPTION_NAME: request.folder / DESCRIPTION_NAME}
    for cache in caches:
        cache.require_complete()
        description = json.loads((cache.folder / DESCRIPTION_NAME).read_text(encoding="utf-8"))
        key = description["key"]
        if without_folders(key) != key:
            raise UserError(
                f"the cache {cache.folder} is of the teacher {key['teacher']}, whose name is a path on this machine: "
                "make the cache with a relative path, from the folder that holds the file"
            )
        own: dict[Path, bytes | Path] = {cache.path(shard): cache.path(shard) for shard in cache.shards()}
        own[cache.folder / DESCRIPTION_NAME] = (json.dumps(without_folders(description), indent=2) + "\n").encode()
        if (cache.folder / CLASSIFIER_NAME).is_file():
            own[cache.folder / CLASSIFIER_NAME] = cache.folder / CLASSIFIER_NAME
        files |= {str(path.relative_to(request.folder)): content for path, content in own.items()}
    options = CardOptions(request.repository.name, license=request.license)
    files[CARD_NAME] = card or cache_card(caches, options).encode()
    return Contents("dataset", files)
