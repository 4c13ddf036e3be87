"""Records of runs that come from files: checks, and how two of them differ."""

from collections.abc import Collection, Iterator
from typing import Any

from ..checkpoints.tiny_vae import DIGEST
from ..errors import InvalidInputError
from ..pipeline.recording import Record
from .settings import check_recorded, comparable

_MODEL = {"name": str, "revision": str | None, "sha256": {...: str}}
_TYPES = {
    "model": {**_MODEL, "base": _MODEL},
    "settings": {
        "lora": [{"source": str, "scale": int | float, "sha256": str}],
        "image": str | None,
        "video": str | None,
    },
    "versions": {},
    "timings": {...: int | float},
    "peak_memory": {...: int | float},
    "cache": list,
    "resumed_at": list,
}
"""Types of what is read of a record: a dict's ``...`` is any key, a list's items have all keys."""


def check_record(record: Any) -> None:
    """Checks a record that comes from a file, which may have been changed or damaged.

    Raises:
        InvalidInputError: a part that is read is of another type, or a setting isn't known.
    """
    if not _is_of(record, _TYPES):
        raise InvalidInputError("its record is damaged")
    check_recorded(record.get("settings", {}))


def _is_of(value: Any, types: Any) -> bool:
    if isinstance(types, list):
        return isinstance(value, list) and all(
            _is_of(item, types[0]) and types[0].keys() <= item.keys() for item in value
        )
    if isinstance(types, dict):
        return isinstance(value, dict) and all(
            _is_of(part, types.get(name, types.get(..., object))) for name, part in value.items()
        )
    return isinstance(value, types)


def setting_differences(then: Record, now: Record, but: Collection[str] = ()) -> list[str]:
    """Settings that differ between two runs, a phrase each; `but` names those to pass over."""
    before, after = comparable(then.get("settings", {})), comparable(now["settings"])
    passed_over = {*but, *_same_sources(before, after)}
    return [
        f"{name} was {before.get(name)!r} and is now {after.get(name)!r}"
        for name in dict.fromkeys([*after, *before])
        if name not in passed_over and before.get(name) != after.get(name)
    ]


def _same_sources(before: dict[str, Any], after: dict[str, Any]) -> Iterator[str]:
    """Names of sources that are the same though their files may have moved, or be gone."""
    for name in ("image", "video"):
        digest = f"{name}_sha256"
        if digest in before and before[digest] == after.get(digest):
            yield name
        if before.get(name) == after.get(name) and digest not in after:
            yield digest


def source_differences(then: Record, now: Record) -> list[str]:
    """Files beside the model that have changed, a phrase each."""
    before, after = then.get("settings", {}), now["settings"]
    changed = [
        f"the {name} {after[name]} has changed"
        for name in ("image", "video")
        if name in before
        and before[name] == after.get(name)
        and before.get(f"{name}_sha256") != after.get(f"{name}_sha256")
    ]
    if None not in (was := before.get(DIGEST), after.get(DIGEST)) and was != after[DIGEST]:
        changed.append("the tiny decoder has other weights")
    return changed


def model_differences(then: Record, now: Record) -> list[str]:
    """Differences between the models of two runs, a phrase each; a folder may have moved."""
    before, after = then.get("model", {}), now["model"]
    if "sha256" in before and "sha256" in after:
        return [
            f"the model's {name} was {before['sha256'].get(name, '')[:12]} "
            f"and is now {digest[:12]} (sha256)"
            for name, digest in after["sha256"].items()
            if before["sha256"].get(name) != digest
        ]
    if (before.get("name"), before.get("revision")) == (after["name"], after.get("revision")):
        return []
    return [f"the model was {model_title(before)} and is now {model_title(after)}"]


def adapter_differences(then: Record, now: Record) -> list[str]:
    """Adapters whose files have changed, a phrase each."""
    before, after = (record.get("settings", {}).get("lora", []) for record in (then, now))
    known = {adapter["source"]: adapter["sha256"] for adapter in before}
    return [
        f"the adapter {adapter['source']} has changed"
        for adapter in after
        if known.get(adapter["source"], adapter["sha256"]) != adapter["sha256"]
    ]


def version_differences(then: Record, now: Record) -> list[str]:
    """Differences between the programs and devices of two runs, a phrase each."""
    before = {"mlx_cogvideo": then.get("mlx_cogvideo"), **then.get("versions", {})}
    after = {"mlx_cogvideo": now["mlx_cogvideo"], **now["versions"]}
    return [
        f"{name} was {before.get(name)} and is now {after[name]}"
        for name in ("mlx_cogvideo", "mlx", "device")
        if before.get(name) != after[name]
    ]


def model_title(model: dict[str, Any]) -> str:
    """Describes a ``checkpoints.model_identity`` in a few words."""
    revision = model.get("revision")
    name = str(model.get("name"))
    title = f"{name} at revision {revision[:12]}" if revision else name
    return f"{title} on {model_title(model['base'])}" if "base" in model else title
