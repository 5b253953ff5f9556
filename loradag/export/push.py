"""The export on a model hub: a private repository, and one commit a run of the stage."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from loradag.config.export import Export, listed
from loradag.config.problems import LoradagError
from loradag.runtime.report_keys import Pushed

TOKEN = "HF_TOKEN"
CHECKPOINT = "model*.safetensors*"  # weights, or the index of their shards


def check_push(export: Export) -> None:
    """Refuse a push that has no token or no network, before anything is computed for it.

    Raises:
        LoradagError: `HF_TOKEN` is not set, or `HF_HUB_OFFLINE` is.
    """
    from huggingface_hub import constants

    if export.push is None:
        return
    if not os.environ.get(TOKEN):
        raise _refused(export, f"{TOKEN} is not set. Set it to a token that may write there")
    if constants.is_offline_mode():
        raise _refused(export, "HF_HUB_OFFLINE is set. Unset it")


def create_repository(export: Export) -> None:
    """Create the repository `export.push`, private; one that exists stays as it is.

    Raises:
        LoradagError: the hub refuses the token or cannot be reached.
    """
    with _reasons(export, ""):
        _hub().create_repo(str(export.push), private=True, exist_ok=True)


def push(folder: Path, export: Export) -> Pushed:
    """Upload the exported `folder` in one commit; the repository, its visibility, the commit.

    One format goes to the repository's root, several to a folder each, and then the first one's
    card to the root, too. The same commit deletes the checkpoint of an earlier upload, as far as it
    is not overwritten.

    Raises:
        LoradagError: the hub refuses, or cannot be reached. `folder` is complete all the same.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    kinds = listed(export.formats)
    root = folder / kinds[0] if len(kinds) == 1 else folder
    files = {
        file.relative_to(root).as_posix(): file
        for file in sorted(root.rglob("*"))
        if file.is_file()
    }
    files.setdefault("README.md", folder / kinds[0] / "README.md")
    saved = (
        f" The export is complete in {folder}: run `hf upload {export.push} {root} .`, or this "
        "stage again."
    )
    with _reasons(export, saved):
        there = _hub().model_info(str(export.push))
        stale = _stale_weights((file.rfilename for file in there.siblings or []), files)
        commit = _hub().create_commit(
            str(export.push),
            [
                *(CommitOperationAdd(name, str(file)) for name, file in sorted(files.items())),
                *(CommitOperationDelete(name) for name in stale),
            ],
            commit_message="Upload the export",
        )
    return {
        "repository": str(export.push),
        "commit": str(commit.oid),
        "private": bool(there.private),
    }


def _stale_weights(there: Iterable[str], files: Iterable[str]) -> list[str]:
    """Weights of the repository that a loader could take instead of the uploaded ones.

    transformers takes model.safetensors where there is one, and shards only where there is none.
    """
    uploaded = set(files)
    if not any(fnmatch(PurePosixPath(name).name, CHECKPOINT) for name in uploaded):
        return []
    return sorted(
        name
        for name in there
        if fnmatch(PurePosixPath(name).name, CHECKPOINT) and name not in uploaded
    )


def _hub() -> Any:
    from huggingface_hub import HfApi

    return HfApi(token=os.environ[TOKEN])  # never one that was saved on this machine


@contextmanager
def _reasons(export: Export, saved: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    check_push(export)
    try:
        yield
    except HfHubHTTPError as error:
        status = error.response.status_code
        cause = {
            401: f"{TOKEN} is not accepted. Set it to a token of an account that may write there",
            403: f"{TOKEN} may not write there. Give it that right, or name another repository",
        }.get(status)
        if cause is None:
            said = (error.server_message or "").splitlines()[:1]
            cause = f"the hub answered {' '.join([str(status), *said])}. Try again later"
        raise _refused(export, cause, saved) from error
    except Exception as error:  # of the network: classes of the HTTP library, or of offline mode
        cause = f"the hub cannot be reached ({type(error).__name__}). Check the network"
        raise _refused(export, cause, saved) from error


def _refused(export: Export, cause: str, saved: str = "") -> LoradagError:
    return LoradagError(f"export.push = {export.push!r}: {cause}, or set export.push=null.{saved}")
