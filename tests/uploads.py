"""A hub that keeps what is uploaded to it, in place of the real one."""

from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.utils import filter_repo_objects

WRITER = {"name": "me", "orgs": [{"name": "us"}], "auth": {"accessToken": {"role": "write"}}}


class FakeHub:
    """Takes the place of the hub's client.

    Attributes:
        login: what the hub says of the one who is logged in, or the error that it answers with.
        files: the files of each repository, by their paths.
        error: what every upload fails with, or None.
    """

    def __init__(self, monkeypatch):
        self.login: Any = WRITER
        self.files: dict[str, dict[str, bytes]] = {}
        self.error: Exception | None = None
        client = huggingface_hub.HfApi
        monkeypatch.setattr(client, "whoami", lambda _: self._whoami())
        monkeypatch.setattr(client, "create_repo", lambda _, repo, exist_ok: self._create(repo))
        for name in ("upload_folder", "upload_large_folder"):
            upload = lambda _, **options: self._upload(**options)  # noqa: E731
            monkeypatch.setattr(client, name, upload, raising=name == "upload_folder")

    def _whoami(self) -> dict[str, Any]:
        if isinstance(self.login, Exception):
            raise self.login
        return self.login

    def _create(self, repo: str) -> None:
        self.files.setdefault(repo, {})

    def _upload(self, *, repo_id, folder_path, repo_type, allow_patterns=None) -> None:
        assert repo_type == "model"
        if self.error is not None:
            raise self.error
        folder = Path(folder_path)
        found = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        paths = filter_repo_objects(map(Path.as_posix, found), allow_patterns=allow_patterns)
        self.files[repo_id] |= {path: (folder / path).read_bytes() for path in paths}
