"""The schedulers against diffusers, where its `t - 1000 // N` is the real next timestep."""

import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers import CogVideoXDDIMScheduler as ReferenceDDIM
from diffusers import CogVideoXDPMScheduler as ReferenceDPM
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers import scheduling_dpm_cogvideox
from support import relative_error, scheduler_config

from mlx_cogvideo.diffusion.schedulers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMPlusPlusScheduler,
    CogVideoXDPMScheduler,
)

SHAPE = (1, 3, 4, 6, 16)
CLASSES = [(CogVideoXDDIMScheduler, ReferenceDDIM), (CogVideoXDPMScheduler, ReferenceDPM)]
CLEAN_COUNTS = [50, 25, 20, 10, 2, 1]


def trajectory_inputs(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns a first sample, and a model output and noise for every step, all in float32."""
    rng = np.random.default_rng(steps)
    shapes = SHAPE, (steps, *SHAPE), (steps, *SHAPE)
    return tuple(rng.standard_normal(shape).astype(np.float32) for shape in shapes)


def run_ours(scheduler, steps: int) -> tuple[list, list]:
    start, outputs, noises = trajectory_inputs(steps)
    scheduler.set_timesteps(steps)
    sample, x0, samples, x0s = mx.array(start), None, [], []
    for t, output, noise in zip(scheduler.timesteps, outputs, noises, strict=True):
        sample, x0 = scheduler.step(
            mx.array(output), t, sample, previous_x0=x0, noise=mx.array(noise)
        )
        samples.append(np.array(sample))
        x0s.append(np.array(x0))
    return samples, x0s


def run_reference_ddim(scheduler, steps: int, monkeypatch) -> tuple[list, list]:
    start, outputs, _ = trajectory_inputs(steps)
    scheduler.set_timesteps(steps)
    sample, samples, x0s = torch.from_numpy(start), [], []
    for t, output in zip(scheduler.timesteps, outputs, strict=True):
        sample, x0 = scheduler.step(torch.from_numpy(output), t, sample, return_dict=False)
        samples.append(sample.numpy())
        x0s.append(x0.numpy())
    return samples, x0s


def run_reference_dpm(scheduler, steps: int, monkeypatch) -> tuple[list, list]:
    """Runs diffusers, which draws inside the step: twice in the middle ones, where the second draw
    counts."""
    start, outputs, noises = trajectory_inputs(steps)
    scheduler.set_timesteps(steps)
    sample, x0, before, samples, x0s = torch.from_numpy(start), None, None, [], []
    for i, (t, output) in enumerate(zip(scheduler.timesteps, outputs, strict=True)):
        noise = torch.from_numpy(noises[i])
        is_middle = 0 < i < steps - 1
        draws = [torch.full_like(noise, torch.nan), noise] if is_middle else [noise]
        draws = iter(draws)
        monkeypatch.setattr(
            scheduling_dpm_cogvideox, "randn_tensor", lambda *a, draws=draws, **k: next(draws)
        )
        sample, x0 = scheduler.step(torch.from_numpy(output), x0, t, before, sample)
        assert next(draws, None) is None
        before = t
        samples.append(sample.numpy())
        x0s.append(x0.numpy())
    return samples, x0s


RUN_REFERENCE = {ReferenceDDIM: run_reference_ddim, ReferenceDPM: run_reference_dpm}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", CLEAN_COUNTS)
@pytest.mark.parametrize("ours, reference", CLASSES)
def test_every_step_of_a_trajectory_equals_diffusers(ours, reference, steps, shift, monkeypatch):
    config = scheduler_config(snr_shift_scale=shift)
    run = RUN_REFERENCE[reference]
    expected_samples, expected_x0s = run(reference(**config), steps, monkeypatch)
    samples, x0s = run_ours(ours.from_config(config), steps)
    for i in range(steps):
        assert relative_error(samples[i], expected_samples[i]) < 1e-6
        assert relative_error(x0s[i], expected_x0s[i]) < 1e-6


@pytest.mark.parametrize("steps", [50, 17, 2])
@pytest.mark.parametrize("prediction_type", ["v_prediction", "epsilon"])
def test_the_deterministic_solver_equals_that_of_other_models(steps, prediction_type):
    """diffusers has it without a shift, and keeps away from zero SNR; its levels are float32."""
    config = scheduler_config(prediction_type=prediction_type, rescale_betas_zero_snr=False)
    mine = CogVideoXDPMPlusPlusScheduler.from_config(config)
    names = "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "timestep_spacing"
    theirs = DPMSolverMultistepScheduler(
        **{name: config[name] for name in names},
        prediction_type=prediction_type,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(steps)
    samples, _ = run_ours(mine, steps)
    np.testing.assert_array_equal(mine.timesteps, theirs.timesteps.numpy())
    start, outputs, _ = trajectory_inputs(steps)
    sample = torch.from_numpy(start)
    for t, output, ours in zip(theirs.timesteps, outputs, samples, strict=True):
        sample = theirs.step(torch.from_numpy(output), t, sample).prev_sample
        assert relative_error(ours, sample.numpy()) < 1e-5


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("ours, reference", CLASSES)
def test_one_step_with_other_predictions_and_spacings_equals_diffusers(
    ours, reference, spacing, prediction_type
):
    config = scheduler_config(
        prediction_type=prediction_type, timestep_spacing=spacing, rescale_betas_zero_snr=False
    )
    theirs, mine = reference(**config), ours.from_config(config)
    theirs.set_timesteps(10)
    mine.set_timesteps(10)
    np.testing.assert_array_equal(mine.timesteps, theirs.timesteps.numpy())

    sample, outputs, noises = trajectory_inputs(1)
    t, after = int(mine.timesteps[3]), int(mine.timesteps[4])
    x, x0 = mine.step(mx.array(outputs[0]), t, mx.array(sample), noise=mx.array(noises[0]))
    expected_x0 = theirs.step(
        *((torch.from_numpy(outputs[0]), t) if reference is ReferenceDDIM else ()),
        *((torch.from_numpy(outputs[0]), None, t, None) if reference is ReferenceDPM else ()),
        torch.from_numpy(sample),
        return_dict=False,
    )[1]
    assert relative_error(x0, expected_x0.numpy()) < 1e-6
    if reference is ReferenceDDIM and t - after == 100:
        expected = theirs.step(torch.from_numpy(outputs[0]), t, torch.from_numpy(sample))
        assert relative_error(x, expected.prev_sample.numpy()) < 1e-6


@pytest.mark.parametrize("ours, reference", CLASSES)
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("rescale", [True, False])
def test_the_noise_table_equals_diffusers_in_float64(ours, reference, shift, rescale):
    config = scheduler_config(snr_shift_scale=shift, rescale_betas_zero_snr=rescale)
    expected = reference(**config).alphas_cumprod.numpy()
    assert expected.dtype == np.float64
    np.testing.assert_allclose(
        ours.from_config(config).alphas_cumprod, expected, rtol=1e-11, atol=1e-16
    )


@pytest.mark.parametrize("ours, reference", CLASSES)
def test_an_empty_config_means_the_defaults_of_diffusers(ours, reference):
    mine, theirs = ours.from_config({}), reference()
    np.testing.assert_allclose(mine.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-11)
    expected = {name: theirs.config[name] for name in mine.to_config() if name != "_class_name"}
    assert mine.to_config() == {"_class_name": reference.__name__, **expected}


@pytest.mark.parametrize("ours, reference", CLASSES)
def test_diffusers_builds_the_same_scheduler_from_our_config(ours, reference):
    mine = ours.from_config(scheduler_config(snr_shift_scale=2.0))
    theirs = reference.from_config(mine.to_config())
    np.testing.assert_allclose(
        mine.alphas_cumprod, theirs.alphas_cumprod.numpy(), rtol=1e-11, atol=1e-16
    )
    assert theirs.config.prediction_type == "v_prediction"


def test_trailing_timesteps_equal_diffusers_without_its_extra_entry_at_minus_one():
    mine = CogVideoXDDIMScheduler.from_config(scheduler_config())
    theirs = ReferenceDDIM(**scheduler_config())
    overshooting = []
    for steps in range(1, 1001):
        mine.set_timesteps(steps)
        theirs.set_timesteps(steps)
        expected = theirs.timesteps.tolist()
        if len(expected) == steps + 1:
            overshooting.append(steps)
            assert expected.pop() == -1
        assert mine.timesteps.tolist() == expected
    assert 61 in overshooting


@pytest.mark.parametrize("name", ["add_noise", "get_velocity"])
@pytest.mark.parametrize("timesteps", [[0, 999], [1, 500], [37, 998]])
def test_the_forward_process_equals_diffusers_at_every_sample_of_a_batch(name, timesteps):
    rng = np.random.default_rng(0)
    x0, noise = rng.standard_normal((2, 2, *SHAPE[1:])).astype(np.float32)
    config = scheduler_config(snr_shift_scale=3.0)
    expected = getattr(ReferenceDDIM(**config), name)(
        torch.from_numpy(x0), torch.from_numpy(noise), torch.tensor(timesteps)
    )
    actual = getattr(CogVideoXDPMScheduler.from_config(config), name)(
        mx.array(x0), mx.array(noise), mx.array(timesteps)
    )
    assert relative_error(actual, expected.numpy()) < 1e-6
