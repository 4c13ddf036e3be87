"""Small helpers that several test files share."""

import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import which

import mlx.core as mx
import numpy as np
import pytest

from mlx_cogvideo.device import mac
from mlx_cogvideo.files import locked
from mlx_cogvideo.nn.autoencoder import AutoencoderKLCogVideoX
from mlx_cogvideo.nn.t5 import T5EncoderModel
from mlx_cogvideo.nn.transformer import CogVideoXTransformer3DModel

OFFICIAL_SCHEDULER_CONFIG = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "clip_sample_range": 1.0,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "sample_max_value": 1.0,
    "set_alpha_to_one": True,
    "snr_shift_scale": 1.0,
    "steps_offset": 0,
    "timestep_spacing": "trailing",
    "trained_betas": None,
}


# MLX brings its own compiler for GPUs; on the CPU it calls the system's.
needs_compiler = pytest.mark.skipif(which("g++") is None, reason="g++ is not installed")


def scheduler_config(**changes) -> dict:
    """Returns the official scheduler_config.json without its class name, with some entries
    replaced."""
    return {**OFFICIAL_SCHEDULER_CONFIG, **changes}


def relative_error(actual, expected) -> float:
    """Returns the largest difference, relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"{actual.shape} is not {expected.shape}"
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@contextmanager
def locked_elsewhere(path: Path) -> Iterator[None]:
    """Holds the lock of an output in another thread, which looks like another process to this
    one."""
    acquired, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(path, "wait"):
            acquired.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    assert acquired.wait(10)
    try:
        yield
    finally:
        release.set()
        thread.join()


def pretend_metal(monkeypatch, chip: str = "Apple M1", gigabytes: int = 16, **info) -> None:
    """Makes the package decide as it would on a Mac. It still computes on the CPU."""
    device_info = {
        "device_name": chip,
        "architecture": "applegpu_g13g",
        "max_recommended_working_set_size": mac(gigabytes).memory,
        **info,
    }
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx, "device_info", lambda: device_info)


def watch_networks(monkeypatch) -> Callable[[], set[type]]:
    """Returns a function that gives the classes of the networks in memory.

    It knows the text encoders, transformers and VAEs that were made after this call.
    """
    made: list[weakref.ref] = []

    def watch(network: type) -> None:
        make = network.__init__

        def noted(self, *arguments, **options) -> None:
            make(self, *arguments, **options)
            made.append(weakref.ref(self))

        monkeypatch.setattr(network, "__init__", noted)

    for network in (T5EncoderModel, CogVideoXTransformer3DModel, AutoencoderKLCogVideoX):
        watch(network)
    return lambda: {type(network) for ref in made if (network := ref()) is not None}


def environment() -> dict[str, str]:
    """Returns the environment in which a new process imports the package and the tests' helpers
    from this folder."""
    tests = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}


def killed(folder: Path, *lines: str) -> None:
    """Runs lines of Python in a new process, which kills itself after the last one."""
    code = "\n".join([*lines, "import os, signal", "os.kill(os.getpid(), signal.SIGKILL)"])
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, cwd=folder, env=environment(), capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


VOCABULARY = """
    a the red blue big small old tiny fluffy wooden circle square dog cat boat river mountain
    city street astronaut painter snow rain light camera moves jumps runs glides falls turns
    slowly fast right left up down over under through on at background white black sunset night
    4k 3d 1984 16:9 ½ 1/2 fine flow (soft) "quoted" it's well-lit café naïve über œuvre mañana
    Tiếng Việt ộ ế Ångström Ǻ κύμα φως море снег שלום ים بحر ثلج नमस्ते
    猫 山 海 東京 カタカナ ガギグ パピプ 가나다 강
"""
WORDS = VOCABULARY.split()


def write_spiece_model(folder, normalization: str = "nmt_nfkc") -> None:
    """Trains a small spiece.model with T5's conventions. It has the same bytes every time."""
    import sentencepiece

    rng = np.random.default_rng(0)
    sentences = [" ".join(rng.choice(WORDS, rng.integers(3, 12))) + "." for _ in range(600)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_prefix=str(folder / "spiece"),
        model_type="unigram",
        vocab_size=400,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name=normalization,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        num_threads=1,
        minloglevel=2,
    )
