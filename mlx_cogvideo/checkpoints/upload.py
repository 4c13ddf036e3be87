"""Uploads a model folder to the hub."""

from pathlib import Path

import huggingface_hub
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from ..errors import InvalidInputError, OutputError, first_line
from .resolve import network_errors


def check_repo_name(repo: str) -> None:
    """Raises InvalidInputError unless it can be the name of a repository."""
    try:
        validate_repo_id(repo)
    except hub_errors.HFValidationError as error:
        raise InvalidInputError(f"{repo!r} is no name for a repository: {error}") from None


def upload_folder(folder: Path, repo: str) -> None:
    """Uploads a folder to a repository of the hub, which is created if it is missing.

    Raises:
        OutputError: the hub refuses it, or the connection fails.
    """
    api = huggingface_hub.HfApi()
    # Until version 2 of the client, large folders had a method of their own.
    send = getattr(api, "upload_large_folder", api.upload_folder)
    try:
        api.create_repo(repo, exist_ok=True)
        send(repo_id=repo, folder_path=folder, repo_type="model")
    except (hub_errors.HfHubHTTPError, *network_errors()) as error:
        reason = first_line(error)
        raise OutputError(
            f"{folder} is complete, but can't be uploaded to {repo}: {reason}"
        ) from None
