"""What ``lora.py --report-to`` sends to Weights & Biases and TensorBoard."""

import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import errors, warnings
from trainings import lora, read_log

SPLIT = ["--val-split", 0.001, "--val-every", 2, "--save-every", 2]
NAMES = {
    "loss": "train/loss",
    "gradient": "train/gradient_norm",
    "learning_rate": "train/learning_rate",
    "seconds": "train/seconds",
    "peak_memory": "train/peak_memory",
    "validation": "validation/loss",
    "training_validation": "validation/training_loss",
}


class Run:
    """A run of a pretended wandb."""

    def __init__(self, **options):
        self.options, self.logged, self.exit_code = options, [], None

    def define_metric(self, name, step_metric=None):
        pass

    def log(self, values):
        self.logged.append(values)

    def finish(self, exit_code):
        self.exit_code = exit_code


class FailingRun(Run):
    def log(self, values):
        super().log(values)
        raise ConnectionError("no network\nat all")


@pytest.fixture
def wandb_runs(monkeypatch):
    """Installs a pretended wandb, and lists its runs."""

    def install(kind: type = Run) -> list[Run]:
        runs = []

        def init(**options):
            runs.append(kind(**options))
            return runs[-1]

        package = SimpleNamespace(
            init=init,
            Settings=lambda **options: options,
            Video=lambda file, caption, format: (file, caption, format),
        )
        monkeypatch.setitem(sys.modules, "wandb", package)
        return runs

    return install


def expected(adapter: Path) -> list[dict]:
    """What is reported of the steps in a log."""
    return [{NAMES[name]: row[name] for name in NAMES if name in row} for row in read_log(adapter)]


def test_wandb_gets_each_step_and_sample_and_a_resumed_run_goes_on(
    clips, adapter, wandb_runs, capsys
):
    runs = wandb_runs()
    samples = ["--sample-every", 2, "--sample-prompt", "a kite", "--sample-steps", 1]
    options = [*SPLIT, *samples, "--report-to", "wandb"]
    assert lora(clips, adapter, *options, "--iters", 2, "--project-name", "kites") == 0
    assert lora(clips, adapter, *options, "--iters", 3, "--resume") == 0
    assert not warnings(capsys.readouterr().err)
    first, second = runs
    assert first.options["id"] == second.options["id"]
    assert (first.options["project"], second.options["project"]) == ("kites", "mlx_cogvideo")
    config = first.options["config"]
    assert first.options["dir"] == str(adapter) and (config["model"], config["rank"]) == ("demo", 4)
    assert first.options["settings"]["console"] == "off"  # stdout may be for a program
    assert first.exit_code == second.exit_code == 0
    logged = [*first.logged, *second.logged]
    rows = [values for values in logged if "train/loss" in values]
    assert rows == [{**row, "step": n} for n, row in enumerate(expected(adapter), start=1)]
    (video,) = (values for values in logged if "samples/0" in values)
    file = str(adapter / "samples/0000002-0.mp4")
    assert video == {"samples/0": (file, "a kite", "mp4"), "step": 2}


def test_a_report_that_fails_is_a_warning_and_the_training_goes_on(
    clips, adapter, wandb_runs, capsys
):
    (runs, options) = wandb_runs(FailingRun), ["--iters", 3, "--report-to", "wandb"]
    assert lora(clips, adapter, *options) == 0
    message = "--report-to wandb has ended: no network; the training goes on"
    assert warnings(capsys.readouterr().err) == [f"warning: {message}"]
    assert [len(run.logged) for run in runs] == [1] and len(read_log(adapter)) == 3


def test_a_report_that_can_not_begin_is_a_warning(clips, adapter, wandb_runs, monkeypatch, capsys):
    def refuse(**options):
        raise RuntimeError("not logged in")

    wandb_runs()
    monkeypatch.setattr(sys.modules["wandb"], "init", refuse)
    assert lora(clips, adapter, "--iters", 1, "--report-to", "wandb") == 0
    assert "--report-to wandb has ended: not logged in" in warnings(capsys.readouterr().err)[0]


@pytest.mark.parametrize(
    ("service", "package"), [("wandb", "wandb"), ("tensorboard", "tensorboardX")]
)
def test_a_missing_package_is_one_line_before_any_work(
    clips, adapter, monkeypatch, capsys, service, package
):
    monkeypatch.setitem(sys.modules, package, None)
    assert lora(clips, adapter, "--iters", 1, "--report-to", service) == 2
    (error,) = errors(capsys.readouterr().err)
    assert error.endswith(f"pip install {package}") and not adapter.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--report-to", "swanlab"], "must be wandb or tensorboard, or both"),
        (["--project-name", "kites"], "--project-name needs --report-to wandb"),
    ],
)
def test_what_can_not_be_reported_is_one_line(clips, adapter, capsys, options, message):
    assert lora(clips, adapter, *options) == 2
    assert message in errors(capsys.readouterr().err)[0]


def test_tensorboard_gets_each_step_once_also_after_a_kill(clips, adapter, monkeypatch):
    writers = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
            writers.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((step, name, value))

        def close(self):
            self.closed = True

    package = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "tensorboardX", package)
    options = [*SPLIT, "--report-to", "tensorboard"]
    assert lora(clips, adapter, *options, "--iters", 2) == 0
    assert lora(clips, adapter, *options, "--iters", 3, "--resume") == 0
    assert [writer.purge_step for writer in writers] == [1, 3]
    assert all(writer.closed for writer in writers)
    assert {writer.folder for writer in writers} == {str(adapter / "tensorboard")}
    assert [each for writer in writers for each in writer.scalars] == [
        (step, name, value)
        for step, row in enumerate(expected(adapter), start=1)
        for name, value in row.items()
    ]


def test_tensorboard_can_read_its_files(clips, adapter):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    assert lora(clips, adapter, *SPLIT, "--iters", 2, "--report-to", "tensorboard") == 0
    (file,) = (adapter / "tensorboard").iterdir()
    found, data = {}, file.read_bytes()
    while data:  # length, its checksum, the event, its checksum
        (length,) = struct.unpack("<Q", data[:8])
        event = events.Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        found |= {(event.step, each.tag): each.simple_value for each in event.summary.value}
    assert found == {
        (step, name): pytest.approx(value, rel=1e-6)
        for step, row in enumerate(expected(adapter), start=1)
        for name, value in row.items()
    }
