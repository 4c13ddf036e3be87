"""Names the entry of the troubleshooting page that explains a message."""

import re

from ..errors import with_notes

PAGE = "https://mlx-cogvideo.github.io/mlx_cogvideo/troubleshooting/"

ENTRIES = {
    "out-of-memory": r"^memory ran out|needs about .+ and the limit is",
    "the-gpu-was-stopped": r"^macOS stopped the GPU|^the GPU takes no more work",
    "no-such-model": r"is neither a folder here nor|^no model '|can't be the name of a hub",
    "download-fails": r"isn't in the local cache|couldn't be fetched",
    "a-licence-to-accept": r"asks you to accept its licence",
    "the-disk-is-full": r"the disk of .+ free|is the disk full\?|No space left on device",
    "a-part-of-the-model-is-missing": r"is incomplete, it lacks|is no model folder",
    "another-kind-of-model": r" can be used, not CogVideoX-Fun|holds a \w+ \(.+: only .+ be used",
    "a-damaged-file": r"bytes are there|pointer of Git LFS|lacks shards of",
    "black-or-gray-videos": r"NaN or infinity in (b?float16|float32)|is one constant colour",
    "frames-and-size": r"must be 8N\+1|must be a multiple of|learned positions hold",
    "an-image-or-none": r"an image-to-video model(: give it| can't|, such as)",
    "resuming-is-refused": r"started with other settings|^nothing to resume|an unfinished run"
    r"|as a saved run|belongs to another training|no checkpoint to resume",
    "the-output-exists": r" exists(:| and) .+(--overwrite it|\(--overwrite\))",
    "another-process-is-writing": r"is being written by",
    "an-adapter-that-doesnt-fit": r"is for another model|aren't LoRA of a known kind"
    r"|only LoRA, DoRA and LoKr",
    "several-processes": r"give all processes the same|^another process is gone|hasn't connected to"
    r"|can't reach (each other|.+ over TCP)|no backend of MLX connects|can't share a run",
    "the-loss-is-nan": r"^the (validation )?loss (of|after) step|^the adapter is NaN",
    "no-clips": r"holds no clips|clips in .+ has a caption|^no clip can be used",
}
"""Anchors of the page and how the messages are recognized that they explain."""


def explained(error: BaseException) -> str:
    """A message and its notes in one line, with the address of its entry if it has one.

    The address stands before the notes, since these may end with a command that is copied.
    """
    message, whole = str(error), with_notes(error)
    for anchor, pattern in ENTRIES.items():
        if re.search(pattern, message):
            return f"{message} ({PAGE}#{anchor}){whole.removeprefix(message)}"
    return whole
