"""Repositories of the Hugging Face hub: files that are read from one through huggingface_hub's cache, or sent to one.

A repository is named ``organisation/name``, with ``@revision`` for a branch, tag or commit other than the newest. What
can be a path on this machine is never looked up on the hub. huggingface_hub decides where files are kept (HF_HOME),
whether the hub is asked (HF_HUB_OFFLINE) and as whom (HF_TOKEN, or ``hf auth login``). Only JSON, safetensors and
Markdown are read: nothing that could be run.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossdistill.errors import UserError, require_package

Kind = Literal["model", "dataset"]
READ_PATTERNS = ["*.json", "*.safetensors", "*.md"]
_NAME = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[\w./-]+))?")
# Ends of names of files: a file that is missing must not be looked up as a repository.
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".pyth", ".ckpt", ".bin", ".pkl", ".tar", ".npz", ".onnx", ".json")
_SNAPSHOT = re.compile(r"(?:models|datasets)--(?P<name>.+)")


@dataclass(frozen=True)
class Repository:
    """A repository of the hub.

    Example:
        >>> Repository.parse("lab/flow-r3d18@v1")
        Repository(name='lab/flow-r3d18', revision='v1')
    """

    name: str
    revision: str | None = None
    """Branch, tag or commit; None for the newest state."""

    @staticmethod
    def parse(text: str) -> Repository:
        """Parse ``organisation/name`` or ``organisation/name@revision``; raise a ``UserError`` for anything else."""
        match = _NAME.fullmatch(text)
        if match is None:
            raise UserError(
                f"{text!r} does not name a repository: give organisation/name (letters, digits, - _ and .), for "
                "example lab/flow-r3d18"
            )
        return Repository(match["name"], match["revision"])

    def __str__(self) -> str:
        return self.name if self.revision is None else f"{self.name}@{self.revision}"


def names_repository(text: str | Path) -> bool:
    """Whether a text names a repository and cannot be meant as a path: no folder here has the organisation's name.

    So a misspelt ``runs/flow`` is not looked up on the hub where there is a folder ``runs``.

    Example:
        >>> names_repository("lab/flow-r3d18"), names_repository("lab/flow.pth"), names_repository("a/b/c")
        (True, False, False)
    """
    text = str(text)
    is_name = _NAME.fullmatch(text) is not None and not text.endswith(_FILE_SUFFIXES)
    return is_name and not Path(text.partition("/")[0]).exists()


@functools.cache
def fetch(text: str, *, kind: Kind = "model") -> Path:
    """Return the folder of huggingface_hub's cache with a repository's files; download what it lacks.

    In one process a repository is looked up once, so that all parts of a run read the same commit.

    Args:
        text: ``organisation/name`` or ``organisation/name@revision``.
        kind: ``model``, or ``dataset`` for teacher caches.

    Raises:
        UserError: The hub cannot be reached, or has no such repository or revision, or this account may not read it.
    """
    repository, hub = Repository.parse(text), _library(f"{text} is no file or folder here, and reading it from the hub")
    with _told_as_user_errors(repository):
        folder = hub.HfApi().snapshot_download(
            repository.name, revision=repository.revision, repo_type=kind, allow_patterns=READ_PATTERNS
        )
    return Path(folder)


def cached_repository(folder: Path) -> str | None:
    """Return the name of the repository whose cached files a folder holds, with ``--`` for ``/``; None for another.

    Example:
        >>> cached_repository(Path("/cache/models--lab--flow/snapshots/0f3a"))
        'lab--flow'
    """
    match = _SNAPSHOT.fullmatch(folder.parent.parent.name)
    return match["name"] if match and folder.parent.name == "snapshots" else None


def send(repository: Repository, files: Mapping[str, bytes | Path], *, kind: Kind, private: bool, message: str) -> str:
    """Write files into a repository in one commit; create the repository and the branch if they are absent.

    Args:
        repository: Its revision is the branch; None for the main one.
        files: Path in the repository to the content, or to the local file that holds it.
        kind: ``model``, or ``dataset`` for teacher caches.
        private: Whether a new repository is private. An existing one keeps its state.
        message: First line of the commit.

    Returns:
        The address of the commit.

    Raises:
        UserError: The hub cannot be reached, or this account may not write there.
    """
    hub = _library("writing to the hub")
    if hub.is_offline_mode():
        raise UserError(f"HF_HUB_OFFLINE is set, so nothing can be sent to {repository.name}: unset it")
    if not hub.get_token():
        raise UserError(f"writing to {repository.name} needs an account: set HF_TOKEN, or type hf auth login")
    api = hub.HfApi()
    operations = [
        hub.CommitOperationAdd(path, str(content) if isinstance(content, Path) else content)
        for path, content in sorted(files.items())
    ]
    with _told_as_user_errors(repository, task="written"):
        api.create_repo(repository.name, repo_type=kind, private=private, exist_ok=True)
        if repository.revision is not None:
            api.create_branch(repository.name, branch=repository.revision, repo_type=kind, exist_ok=True)
        commit = api.create_commit(
            repository.name, operations, commit_message=message, revision=repository.revision, repo_type=kind
        )
    return str(commit.commit_url)


def _library(target: str) -> Any:
    return require_package("huggingface_hub", target=target, extra="hf")


@contextlib.contextmanager
def _told_as_user_errors(repository: Repository, *, task: Literal["read", "written"] = "read") -> Iterator[None]:
    """Turn every error of huggingface_hub into one sentence."""
    hub, errors = _library("the hub"), importlib.import_module("huggingface_hub.errors")
    name, has_token = repository.name, bool(hub.get_token())
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise UserError(
            f"{name} has no revision {repository.revision!r} on the hub: give one of its branches, tags or commits"
        ) from error
    except errors.GatedRepoError as error:
        raise UserError(f"{name} asks its readers to accept terms: accept them on its page on the hub") from error
    except errors.RepositoryNotFoundError as error:
        remedy = "the account of HF_TOKEN may see it" if has_token else "HF_TOKEN is set, if it is private"
        unseen = f"the hub shows no such repository{'' if has_token else ' without a token'}"
        raise UserError(f"{name} cannot be {task}, because {unseen}: check the name, and that {remedy}") from error
    except errors.HfHubHTTPError as error:
        raise UserError(
            f"{name} cannot be {task}, because the hub answers {error.response.status_code} "
            f"({error.server_message or 'no reason given'}): check the name, and the rights of HF_TOKEN"
        ) from error
    except (OSError, *errors.HfHubHTTPError.__bases__) as error:  # the bases are those of the HTTP library
        if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError) and hub.is_offline_mode():
            raise UserError(
                f"{name} is neither a folder here nor in the hub's cache ({hub.constants.HF_HUB_CACHE}), and "
                "HF_HUB_OFFLINE is set: unset it, or give a folder"
            ) from error
        if getattr(error, "errno", None) is not None and not isinstance(error, ConnectionError):
            raise  # of the disk: the sentence of ``friendly_errors`` fits
        raise UserError(
            f"{name} is no folder here, and the hub ({hub.constants.ENDPOINT}) cannot be reached: check the name and "
            "the network, or give a folder"
        ) from error
