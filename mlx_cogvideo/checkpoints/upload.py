"""Uploads a folder to the hub."""

from collections.abc import Sequence
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


def check_login(repo: str) -> str:
    """Asks the hub who is logged in, before hours of work whose result will be uploaded.

    Returns:
        The repository's name with its owner, who is the user by default.

    Raises:
        OutputError: nobody is logged in, the login can't write to the repository, or the hub can't
            be reached.
    """
    try:
        about = huggingface_hub.HfApi().whoami()
    except hub_errors.LocalTokenNotFoundError:
        raise OutputError(f"nobody is logged in to upload to {repo}: {_LOG_IN}") from None
    except (hub_errors.HfHubHTTPError, *network_errors()) as error:
        raise OutputError(
            f"the hub can't say who is logged in to upload to {repo} ({first_line(error)}): "
            f"{_LOG_IN}, or leave out --upload-repo"
        ) from None
    user, owners = about["name"], [each["name"] for each in about.get("orgs", [])]
    if about.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise OutputError(f"the login of {user} may only read, not upload to {repo}: {_LOG_IN}")
    owner, _, name = repo.rpartition("/")
    if owner not in ("", user, *owners):
        raise OutputError(
            f"{user} is logged in and can't upload to {repo}: give {user}/{name}, or log in as "
            f"another user ({_LOG_IN})"
        )
    return f"{owner or user}/{name}"


_LOG_IN = "run hf auth login with a token that can write"


def upload_folder(folder: Path, repo: str, files: Sequence[str] | None = None) -> None:
    """Uploads a folder to a repository of the hub, which is created if it is missing.

    Args:
        files: paths below the folder that are uploaded, and no others; None uploads all.

    Raises:
        OutputError: the hub refuses it, or the connection fails.
    """
    api = huggingface_hub.HfApi()
    send, options = api.upload_folder, {}
    if files is None:
        # Until version 2 of the client, large folders had a method of their own.
        send = getattr(api, "upload_large_folder", api.upload_folder)
    else:
        options["allow_patterns"] = [*files]
    try:
        api.create_repo(repo, exist_ok=True)
        send(repo_id=repo, folder_path=folder, repo_type="model", **options)
    except (hub_errors.HfHubHTTPError, *network_errors()) as error:
        reason = first_line(error)
        raise OutputError(
            f"{folder} is complete, but can't be uploaded to {repo}: {reason}"
        ) from None
