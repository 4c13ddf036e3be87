"""What the API gives: jobs as videos, models and adapters."""

from typing import Any

from .adapters import TrainedAdapter
from .jobs import DONE, FAILED, QUEUED, RUNNING, STOPPED, Job
from .models import Model
from .refusals import without_paths
from .runner import Runner

STATUS = {
    QUEUED: "queued",
    RUNNING: "in_progress",
    DONE: "completed",
    FAILED: "failed",
    STOPPED: "failed",
}
"""What OpenAI's API calls the states. Its clients wait until a job is completed or failed."""
_GONE = {"code": "deleted", "message": "the video's file was moved or deleted"}


def video_object(runner: Runner, job: Job) -> dict[str, Any]:
    """A job as the API gives it: OpenAI's fields, then ours."""
    is_gone = job.state == DONE and not (runner.store.home.folder / job.output).exists()
    progress, estimate = runner.progress(job.id), job.about.get("estimate", {})
    memory = estimate.get("memory", {}).values()
    frames, fps = estimate.get("frames", 0), estimate.get("fps") or 1.0
    place = runner.place(job.id) if job.state == QUEUED else None
    percent = 100 if job.state == DONE else min(int(100 * progress.fraction), 99)
    warnings = dict.fromkeys([*estimate.get("warnings", ()), *progress.warnings])
    return {
        "id": job.id,
        "object": "video",
        "model": job.about.get("model", ""),
        "status": "failed" if is_gone else STATUS[job.state],
        "progress": percent,
        "created_at": int(job.created),
        "completed_at": int(job.ended) if job.state == DONE and job.ended else None,
        "expires_at": None,
        "error": _GONE if is_gone else _error(job),
        "prompt": job.about.get("settings", {}).get("prompt"),
        "seconds": f"{round(frames / fps, 3):g}",
        "size": f"{estimate.get('width', 0)}x{estimate.get('height', 0)}",
        "remixed_from_video_id": job.about.get("remixed_from"),
        "state": "stopping" if runner.is_stopping(job.id) else job.state,
        "queue_position": None if place is None else place + 1,
        "stage": progress.stage or None,
        "step": progress.step,
        "total": progress.total,
        "unit": progress.unit or None,
        "seconds_left": progress.seconds_left if job.state == RUNNING else None,
        "frames": frames,
        "fps": fps,
        "seed": estimate.get("seed"),
        "settings": job.about.get("settings", {}),
        "adapters": job.about.get("adapters", []),
        "sources": job.about.get("sources", []),
        "estimate": {
            "memory": max(memory, default=0),
            "largest_memory": estimate.get("largest", 0),
            "fits": max(memory, default=0) <= estimate.get("largest", 0),
            "seconds": estimate.get("seconds"),
        },
        "warnings": [without_paths(text) for text in warnings],
    }


def _error(job: Job) -> dict[str, str] | None:
    if job.state == STOPPED:
        words = f"the video was stopped: POST /v1/videos/{job.id}/resume continues it"
        return {"code": "stopped", "message": words}
    if job.state == FAILED:
        return {"code": "failed", "message": without_paths(job.error or "it failed")}
    return None


def model_object(model: Model) -> dict[str, Any]:
    """A model as the API gives it: OpenAI's fields, then ours."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "mlx_cogvideo",
        "title": model.title,
        "is_here": model.is_here,
        "download": model.download,
        "takes_image": model.takes_image,
        "width": model.width,
        "height": model.height,
        "frames": model.frames,
        "fps": model.fps,
    }


def adapter_object(adapter: TrainedAdapter) -> dict[str, Any]:
    """An adapter as the API gives it."""
    return {
        "id": adapter.id,
        "object": "adapter",
        "created_at": int(adapter.created),
        "title": adapter.title,
        "model": adapter.model,
        "steps": adapter.steps,
        "loss": adapter.loss,
    }
