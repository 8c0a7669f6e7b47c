"""Upload to Hugging Face Hub and download from it, with huggingface_hub.

Its own settings apply: `HF_TOKEN` or `hf auth login` for the account, `HF_ENDPOINT` for another server,
`HF_HUB_OFFLINE` to forbid connections.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ..core.errors import ConfigError, ResourceError, RunError, first_line
from ..runtime.log import logger

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo

SCHEME = "hf://"

CARD = "README.md"
"""Name of the model card; the hub shows this file."""

MESSAGE = "Upload a detector of D-FINE x DINOv3"
"""Message of the commit on the hub."""

_CONNECTORS = ("httpx", "httpcore", "requests", "urllib")
"""Packages that versions of huggingface_hub connect with, without version numbers in their names."""

_FOR_A_WHILE = (408, 429)
"""Status codes of requests that may succeed later: too slow, and too many."""

Result = TypeVar("Result")


def is_hub_address(place: str | Path) -> bool:
    """Return whether a place is on the hub: `hf://USER/NAME`.

    >>> is_hub_address("hf://me/cells"), is_hub_address("runs/train")
    (True, False)
    """
    return str(place).startswith(SCHEME)


def repository_of(address: str) -> str:
    """Return `USER/NAME` of an address.

    >>> repository_of("hf://me/cells")
    'me/cells'

    Raises:
        ConfigError: if the address has another form.
    """
    repository = address.removeprefix(SCHEME).rstrip("/")
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", repository, re.ASCII):
        raise ConfigError(
            f"{address} is not an address on the hub, expected {SCHEME}USER/NAME"
        )
    return repository


def upload(folder: Path, address: str, *, public: bool = False) -> str:
    """Upload all files of a folder as one commit, and return the address of the commit.

    A new repository is private unless `public` is set. Files of the same names in an existing repository are
    replaced; its history keeps them.

    Raises:
        ConfigError: if the hub refuses, or the repository exists and is public although `public` is not set.
        ResourceError: if the hub cannot be reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    repository = repository_of(address)
    api = HfApi(endpoint=_endpoint())

    def send() -> str:
        try:
            found = api.model_info(repository)
        except RepositoryNotFoundError:
            api.create_repo(repository, private=not public, exist_ok=True)
        else:
            if not found.private and not public:
                raise ConfigError(
                    f"{address} is public, so everybody could download these weights; say --public if that "
                    "is intended, or choose another name"
                )
            _report_replaced_card(address, found)
        commit = api.upload_folder(
            repo_id=repository,
            folder_path=str(folder),
            commit_message=MESSAGE,
        )
        return str(commit.commit_url)

    return _asked(address, send)


def download(
    address: str, folder: Path, names: Sequence[str], revision: str | None
) -> None:
    """Download some files of a repository into a new folder.

    Args:
        address: `hf://USER/NAME`.
        folder: new folder.
        names: names of the files; those that do not exist are left out.
        revision: branch, tag or commit; None takes the main branch.

    Raises:
        ConfigError: if the hub refuses, or there is no such repository or revision.
        ResourceError: if the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    repository = repository_of(address)
    api = HfApi(endpoint=_endpoint())

    def fetch() -> None:
        found = api.model_info(repository, revision=revision)
        available = {file.rfilename for file in found.siblings or []}
        for name in names:
            if name in available:
                # the commit, so that all files are of one version
                api.hf_hub_download(
                    repository, name, revision=found.sha, local_dir=folder
                )

    folder.mkdir()
    _asked(address, fetch)
    shutil.rmtree(folder / ".cache", ignore_errors=True)


def _report_replaced_card(address: str, found: ModelInfo) -> None:
    """Log that an upload replaces a model card, which its author may have edited on the hub."""
    if any(file.rfilename == CARD for file in found.siblings or []):
        logger.info(
            "the %s of %s is replaced; the earlier text stays in the history of the repository",
            CARD,
            address,
        )


def _endpoint() -> str | None:
    """Return the address of the server; None takes that of Hugging Face."""
    return os.environ.get("HF_ENDPOINT")


def _asked(address: str, request: Callable[[], Result]) -> Result:
    """Return the result of a request to the hub; its errors become errors of this project.

    Raises:
        ConfigError: if the hub refuses.
        ResourceError: if it cannot be reached.
    """
    from huggingface_hub.errors import (
        BadRequestError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        return request()
    except RunError:
        raise
    except HFValidationError as error:
        raise ConfigError(
            f"{address} is not an address on the hub: {first_line(error)}"
        ) from None
    except LocalTokenNotFoundError:
        raise ConfigError(f"{address} needs an account: {login}") from None
    except RevisionNotFoundError:
        raise ConfigError(
            f"{address} exists, but not the revision that was requested; give a branch, a tag or a commit"
        ) from None
    except RepositoryNotFoundError:
        raise ConfigError(
            f"{address} does not exist, or this account may not see it; check the name, or {login}"
        ) from None
    except OfflineModeIsEnabled:
        raise ConfigError(
            f"{address} was not asked for, because HF_HUB_OFFLINE forbids connections; unset it"
        ) from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise ConfigError(
                f"{address}: the hub refuses this account ({status}); {login} with a token that may do this"
            ) from None
        if 400 <= status < 500 and status not in _FOR_A_WHILE:
            raise ConfigError(
                f"{address}: the hub refuses this ({status}): {_in_one_line(error)}"
            ) from None
        raise ResourceError(
            f"{address}: the hub answers {status}: {first_line(error)}; try again later"
        ) from None
    except Exception as error:
        if isinstance(error.__cause__, BadRequestError):  # about the metadata
            raise ConfigError(
                f"{address}: the hub refuses the model card: {_in_one_line(error)}; check --licence"
            ) from None
        # huggingface_hub looks for a local copy if a download fails, and reports that there is none
        if isinstance(error, LocalEntryNotFoundError) or _is_connection_error(
            error
        ):
            raise ResourceError(
                f"{address} cannot be reached: {first_line(error)}; check the network, or HF_ENDPOINT"
            ) from None
        raise


def _in_one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _is_connection_error(error: BaseException) -> bool:
    """Return whether an error is about the network, whichever library huggingface_hub connects with."""
    seen: BaseException | None = error
    while seen is not None:
        module = type(seen).__module__.partition(".")[0]
        if isinstance(seen, (ConnectionError, TimeoutError, socket.gaierror)):
            return True
        # a number at the end is a version: httpx2, httpcore2, urllib3
        if module.rstrip("0123456789") in _CONNECTORS:
            return True
        seen = seen.__cause__ or seen.__context__
    return False
