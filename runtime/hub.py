"""Bundles by name: shipped ones, folders, and repositories of the Hugging Face hub, both ways.

Only a repository's name makes this use the network, through huggingface_hub, which keeps what it
downloads in its own cache and finds tokens where `hf auth login` leaves them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any

from tfanet.errors import InputError, MissingDependencyError, plain, shown
from tfanet.runtime.bundle.read import MANIFEST, TIMING, Bundle, BundleError
from tfanet.runtime.bundle.write import check_folder
from tfanet.runtime.model_card import model_card
from tfanet.runtime.shipped import shipped_bundle, shipped_names

__all__ = ["check_repository", "find_bundle", "push", "write_repository"]

CARD = "README.md"
_UNREACHED = (
    "{} is not whole in the hub's cache, and the hub cannot be reached or may not be asked: "
    "connect to it and leave local_files_only and HF_HUB_OFFLINE out"
)
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def find_bundle(
    name: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
) -> Path:
    """The folder of a bundle; arguments are those of `Predictor.from_pretrained`.

    A repository's files are downloaded where they are not in the cache; they are not checked yet,
    which is for whoever opens the bundle.
    """
    text = str(name)
    if isinstance(name, str) and name in shipped_names():
        _refuse_revision(revision, f"{name!r} is shipped with tfanet")
        return shipped_bundle(name)
    if Path(name).is_dir():
        _refuse_revision(revision, f"{text} is a folder")
        return Path(name)
    if isinstance(name, Path) or not _REPOSITORY.fullmatch(name):
        near = get_close_matches(text.lower().replace("_", "-"), shipped_names(), 1)
        hint = f"did you mean {near[0]!r}? Else give" if near else "give"
        raise InputError(
            f"there is no bundle {shown(text)}: {hint} one that is shipped "
            f"({', '.join(shipped_names())}), a folder, or a repository as 'owner/name'"
        )
    where = {"cache_dir": cache_dir, "local_files_only": local_files_only, "token": token}
    return _downloaded(text, revision, where)


def push(
    bundle: str | Path,
    repository: str,
    *,
    licence: str | None = None,
    private: bool = False,
    revision: str | None = None,
    token: str | bool | None = None,
) -> dict[str, Any]:
    """Upload a bundle and its model card into a repository of the hub, in one commit.

    Args:
        bundle: the folder; all of it is checked before anything is sent. repository: as owner/name,
            made where it is not there. licence: of the weights, in the hub's spelling, such as
            "apache-2.0"; may be left out for a shipped model.
        private: make it so that only its owner sees it; one that is there stays as it is.
        revision: the branch, made where it is not there; None takes the main one.
        token: one that may write; None takes what `hf auth login` left.

    Returns:
        repository, url (of the commit), digest (of the bundle) and files.

    Raises:
        InputError: for what is no repository's name or no licence, or where the hub refuses.
        BundleError: where the bundle is not whole. MissingDependencyError: where the hub cannot be
        reached.
    """
    opened, card = _prepared(bundle, repository, licence)
    import huggingface_hub

    files = _names(opened)
    with _told(repository, revision):
        api = huggingface_hub.HfApi(token=token)
        api.create_repo(repository, private=private or None, exist_ok=True)
        if revision is not None:
            api.create_branch(repository, branch=revision, exist_ok=True)
        commit = api.create_commit(
            repository,
            [
                huggingface_hub.CommitOperationAdd(CARD, card.encode()),
                *(huggingface_hub.CommitOperationAdd(n, opened.path / n) for n in files),
            ],
            commit_message=f"tfanet bundle {opened.digest[:12]}",
            revision=revision,
        )
    return {
        "repository": repository,
        "url": str(commit.commit_url),
        "digest": opened.digest,
        "files": [CARD, *files],
    }


def write_repository(
    bundle: str | Path, repository: str, folder: str | Path, *, licence: str | None = None
) -> dict[str, Any]:
    """Write into an empty or new folder what `push` would upload; nothing is sent.

    Raises:
        InputError: where the folder holds something; else as `push`.
    """
    target = check_folder(folder)
    if target.is_dir() and any(target.iterdir()):
        raise InputError(f"{target} is not empty: name a new folder")
    opened, card = _prepared(bundle, repository, licence)
    files = _names(opened)
    target.mkdir(parents=True, exist_ok=True)
    for name in files:
        shutil.copyfile(opened.path / name, target / name)
    (target / CARD).write_text(card, encoding="utf-8")
    return {
        "repository": repository,
        "url": str(target),
        "digest": opened.digest,
        "files": [CARD, *files],
    }


def check_repository(name: str) -> str:
    """The name of a repository; raises InputError where it is none."""
    if not _REPOSITORY.fullmatch(name):
        raise InputError(
            f"the repository is {shown(name)}: give owner/name, such as ada/red-things"
        )
    return name


def _prepared(bundle: str | Path, repository: str, licence: str | None) -> tuple[Bundle, str]:
    check_repository(repository)
    opened = Bundle.open(bundle)
    if licence is None:
        model = opened.manifest.model
        if model.get("source") != "preset" or opened.manifest.preset not in shipped_names():
            raise InputError(
                "the licence of these weights is not known: give it (--licence apache-2.0, "
                "--licence other, ...)"
            )
        licence = "apache-2.0"
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise InputError(
            f"licence is {shown(licence)}: give it in the hub's spelling, such as apache-2.0 or "
            "other"
        )
    return opened, model_card(opened, repository, licence)


def _names(bundle: Bundle) -> list[str]:
    timing = [TIMING] if (bundle.path / TIMING).is_file() else []
    return [MANIFEST, *sorted(bundle.manifest.files), *timing]


def _refuse_revision(revision: str | None, why: str) -> None:
    if revision is not None:
        raise InputError(f"revision is {shown(revision)}, but {why}: only repositories have them")


def _downloaded(repository: str, revision: str | None, where: dict[str, Any]) -> Path:
    import huggingface_hub

    with _told(repository, revision):
        manifest = Path(
            huggingface_hub.hf_hub_download(repository, MANIFEST, revision=revision, **where)
        )
        # The other files of the same commit: the repository may change meanwhile.
        commit, folder = manifest.parent.name, manifest.parent
        for name in Bundle.listed(folder).manifest.files:
            if PurePosixPath(name).name != name:
                raise BundleError(f"{repository}: the file name {shown(name)} leaves the bundle")
            huggingface_hub.hf_hub_download(repository, name, revision=commit, **where)
    return folder


@contextmanager
def _told(repository: str, revision: str | None) -> Iterator[None]:
    """What the hub says, in one sentence with the next step."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(
            f"the repository {repository} is gated: ask for access on its page, then log in with "
            "`hf auth login`, or give a token"
        ) from error
    except errors.RepositoryNotFoundError as error:
        near = _near(repository)
        hint = f"did you mean {near!r}? If it is" if near else "check its name; if it is"
        raise InputError(
            f"the hub has no repository {repository}, or it is private: {hint} private, log in "
            "with `hf auth login`, or give a token"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"the repository {repository} has no revision {shown(revision)}: give a branch, a tag "
            "or a commit of it"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise MissingDependencyError(_UNREACHED.format(repository)) from error
    except errors.EntryNotFoundError as error:
        raise InputError(
            f"the repository {repository} holds no {MANIFEST}, or not all that it lists: it is no "
            "bundle of tfanet's; `tfanet push` makes one"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(
            f"{repository} is no name of a repository ({plain(str(error))})"
        ) from error
    except errors.HfHubHTTPError as error:
        told = plain(error.server_message or str(error))
        raise InputError(
            f"the hub refuses {repository} ({told:.200}): check the token's rights and try again"
        ) from error
    except Exception as error:
        # The library below the hub's, whichever it is (httpx, httpx2), has errors of its own.
        if "TransportError" not in [kind.__name__ for kind in type(error).__mro__]:
            raise
        raise MissingDependencyError(_UNREACHED.format(repository)) from error


def _near(repository: str) -> str | None:
    """A repository of the same owner with a name like this one, if the hub tells."""
    import huggingface_hub

    owner, _, name = repository.partition("/")
    try:
        found = [one.id for one in huggingface_hub.HfApi().list_models(author=owner, limit=100)]
    except Exception:  # only a hint: the error itself is told without it
        return None
    near = get_close_matches(name, [one.partition("/")[2] for one in found], 1)
    return f"{owner}/{near[0]}" if near else None
