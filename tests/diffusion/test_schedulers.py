"""All schedulers equal the papers' formulas in float64, on the real list of timesteps."""

import warnings

import mlx.core as mx
import numpy as np
import pytest
from support import relative_error, scheduler_config

from mlx_cogvideo.diffusion.schedulers import (
    SCHEDULERS,
    CogVideoXDDIMScheduler,
    CogVideoXDPMPlusPlusScheduler,
    CogVideoXDPMScheduler,
    scheduler_name,
)
from mlx_cogvideo.errors import InvalidInputError

CLASSES = [*SCHEDULERS.values()]
SHAPE = (1, 2, 4, 4, 8)


def official(cls, steps: int | None = None, **changes):
    scheduler = cls.from_config(scheduler_config(**changes))
    if steps is not None:
        scheduler.set_timesteps(steps)
    return scheduler


def paper_alpha_bar(shift: float) -> np.ndarray:
    """Computes the table from the definitions: products of 1 - beta, SNR / shift, zero at the end.

    Shifting is written here by its definition, SNR / shift, not as the closed form of the code.
    """
    steps = np.arange(1000) / 999
    betas = (np.sqrt(0.00085) * (1 - steps) + np.sqrt(0.012) * steps) ** 2
    alpha_bar = np.exp(np.cumsum(np.log1p(-betas)))
    snr = alpha_bar / (1 - alpha_bar) / shift
    root = np.sqrt(snr / (1 + snr))
    return ((root - root[-1]) / (root[0] - root[-1]) * root[0]) ** 2


def paper_trajectory(cls, timesteps, shift, start, outputs, noises) -> list[tuple]:
    """Returns (x, x0) after every step in float64, with lambda, h and r as in the papers."""
    levels = [*paper_alpha_bar(shift)[timesteps], 1.0]
    alpha, sigma = np.sqrt(levels), np.sqrt(1 - np.array(levels))
    with np.errstate(divide="ignore"):
        lambdas = np.log(alpha) - np.log(sigma)
    x, previous, xs = start.astype(np.float64), None, []
    for i in range(len(timesteps)):
        x0 = alpha[i] * x - sigma[i] * outputs[i]
        if i + 1 == len(timesteps):
            x = x0
        elif cls is CogVideoXDDIMScheduler:
            eps = sigma[i] * x + alpha[i] * outputs[i]
            x = alpha[i + 1] * x0 + sigma[i + 1] * eps
        else:
            h = lambdas[i + 1] - lambdas[i]
            d = x0
            if previous is not None:
                r = (lambdas[i] - lambdas[i - 1]) / h
                d = (1 + 1 / (2 * r)) * x0 - 1 / (2 * r) * previous
            shrink = np.exp(-h)
            if cls is CogVideoXDPMPlusPlusScheduler:
                x = sigma[i + 1] / sigma[i] * x + alpha[i + 1] * (1 - shrink) * d
            else:
                x = (
                    sigma[i + 1] / sigma[i] * shrink * x
                    + alpha[i + 1] * (1 - shrink**2) * d
                    + sigma[i + 1] * np.sqrt(1 - shrink**2) * noises[i]
                )
        previous = x0
        xs.append((x, x0))
    return xs


def draw(steps: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(steps)
    start, outputs, noises = (rng.standard_normal((n, *SHAPE)) for n in (1, steps, steps))
    return tuple(a.astype(np.float32) for a in (start[0], outputs, noises))


def run(scheduler, start, outputs, noises=None, x0=None, first=0) -> list[tuple]:
    """Returns (x, x0) after every step from index `first` on."""
    x, results = mx.array(start), []
    for i in range(first, len(scheduler.timesteps)):
        noise = None if noises is None else mx.array(noises[i])
        t = scheduler.timesteps[i]
        x, x0 = scheduler.step(mx.array(outputs[i]), t, x, previous_x0=x0, noise=noise)
        results.append((x, x0))
    return results


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 30, 50, 61])
@pytest.mark.parametrize("cls", CLASSES)
def test_any_number_of_steps_follows_the_papers_on_the_real_timesteps(cls, steps, shift):
    scheduler = official(cls, steps, snr_shift_scale=shift)
    start, outputs, noises = draw(steps)
    timesteps = scheduler.timesteps
    expected = paper_trajectory(cls, timesteps, shift, start, outputs, noises)
    x, x0 = start, None
    for i, (expected_x, expected_x0) in enumerate(expected):
        next_x, next_x0 = scheduler.step(
            mx.array(outputs[i]),
            timesteps[i],
            mx.array(x),
            previous_x0=x0 if x0 is None else mx.array(x0),
            noise=mx.array(noises[i]),
        )
        assert relative_error(next_x, expected_x) < 1e-6
        assert relative_error(next_x0, expected_x0) < 1e-6
        # Each step starts from the exact state: rounding errors of whole runs add up to 1e-6.
        x, x0 = expected_x.astype(np.float32), expected_x0.astype(np.float32)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_whole_run_follows_the_papers(cls):
    scheduler = official(cls, 61)
    start, outputs, noises = draw(61)
    expected = paper_trajectory(cls, scheduler.timesteps, 1.0, start, outputs, noises)
    results = run(scheduler, start, outputs, noises)
    for (x, _), (expected_x, _) in zip(results, expected, strict=True):
        assert relative_error(x, expected_x) < 1e-5


@pytest.mark.parametrize("steps", [1, 7, 30, 61, 999, 1000])
@pytest.mark.parametrize("cls", CLASSES)
def test_timesteps_fall_from_999_and_have_the_given_number(cls, steps):
    timesteps = official(cls, steps).timesteps
    assert len(timesteps) == steps
    assert timesteps[0] == 999
    assert (np.diff(timesteps) < 0).all()
    assert timesteps[-1] >= 0


@pytest.mark.parametrize("steps", [1, 2, 7, 30, 50, 61, 1000])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_run_ends_at_zero_noise(cls, steps):
    scheduler = official(cls, steps)
    start, outputs, noises = draw(steps)
    t = scheduler.timesteps[-1]
    x, x0 = scheduler.step(
        mx.array(outputs[0]),
        t,
        mx.array(start),
        previous_x0=mx.array(outputs[-1]),
        noise=mx.array(noises[0]),
    )
    assert mx.array_equal(x, x0)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_perfect_model_returns_the_clean_sample(cls):
    scheduler = official(cls, 7)
    clean, outputs, noises = draw(7)
    x = mx.array(outputs[0])
    x0 = None
    for i, t in enumerate(scheduler.timesteps):
        alpha = np.sqrt(scheduler.alphas_cumprod[t])
        sigma = np.sqrt(1 - scheduler.alphas_cumprod[t])
        eps = (np.array(x) - alpha * clean) / sigma
        v = (alpha * eps - sigma * clean).astype(np.float32)
        x, x0 = scheduler.step(mx.array(v), t, x, previous_x0=x0, noise=mx.array(noises[i]))
    assert relative_error(x, clean) < 1e-5


@pytest.mark.parametrize("cls", CLASSES)
def test_zero_terminal_snr_and_zero_noise_give_finite_numbers_without_a_warning(cls):
    scheduler = official(cls, 1000)
    start, outputs, noises = draw(1)
    x, x0 = mx.array(start), mx.array(outputs[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in scheduler.timesteps:
            x, x0 = scheduler.step(
                mx.array(outputs[0]), t, x, previous_x0=x0, noise=mx.array(noises[0])
            )
            assert mx.isfinite(x).all() and mx.isfinite(x0).all(), t


def test_the_first_dpm_step_ignores_the_sample_and_the_second_is_first_order():
    scheduler = official(CogVideoXDPMScheduler, 50)
    start, outputs, noises = draw(50)
    (first, x0), *_ = run(scheduler, start, outputs, noises)
    (other, _), *_ = run(scheduler, start + 1, outputs, noises)
    alpha_bar = scheduler.alphas_cumprod[scheduler.timesteps[1]]
    expected = np.sqrt(alpha_bar) * -outputs[0] + np.sqrt(1 - alpha_bar) * noises[0]
    assert relative_error(first, expected) < 1e-6
    assert mx.array_equal(first, other)

    t = scheduler.timesteps[1]
    v, z = mx.array(outputs[1]), mx.array(noises[1])
    with_history, _ = scheduler.step(v, t, first, previous_x0=x0, noise=z)
    without, _ = scheduler.step(v, t, first, noise=z)
    assert mx.array_equal(with_history, without)


def test_a_later_dpm_step_without_history_is_first_order():
    scheduler = official(CogVideoXDPMScheduler, 50)
    start, outputs, noises = draw(50)
    t, z = scheduler.timesteps[10], mx.array(noises[0])
    v, x = mx.array(outputs[0]), mx.array(start)
    without, x0 = scheduler.step(v, t, x, noise=z)
    with_itself, _ = scheduler.step(v, t, x, previous_x0=x0, noise=z)
    with_another, _ = scheduler.step(v, t, x, previous_x0=x0 + 1, noise=z)
    assert relative_error(without, with_itself) < 1e-6
    assert relative_error(without, with_another) > 1e-3


@pytest.mark.parametrize("steps", [20, 40, 80])
def test_the_deterministic_solver_is_closer_to_the_exact_flow(steps):
    """Of Gaussian data with variance 4, of which the exact x0 and the exact end are known."""
    ends = []
    for cls in (CogVideoXDDIMScheduler, CogVideoXDPMPlusPlusScheduler):
        scheduler = official(cls, steps)
        x, x0 = mx.ones((1, 4)), None
        for t in scheduler.timesteps.tolist():
            angle = scheduler.angle(t)
            mean = 4 * np.cos(angle) / (4 * np.cos(angle) ** 2 + np.sin(angle) ** 2) * x
            x, x0 = scheduler.step(scheduler.answer_of(mean, t, x), t, x, previous_x0=x0)
        ends.append(x[0, 0].item())
    ddim, second_order = (abs(end - 2) for end in ends)
    assert second_order < ddim / 6


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample", "epsilon"])
def test_the_answer_of_a_prediction_implies_it(prediction_type):
    rescale = prediction_type != "epsilon"
    changes = {"prediction_type": prediction_type, "rescale_betas_zero_snr": rescale}
    scheduler = official(CogVideoXDDIMScheduler, 50, **changes)
    start, outputs, _ = draw(2)
    for t in scheduler.timesteps.tolist():
        x0 = scheduler.predict_x0(mx.array(outputs[0]), t, mx.array(start))
        again = scheduler.answer_of(x0, t, mx.array(start))
        assert relative_error(scheduler.predict_x0(again, t, mx.array(start)), np.array(x0)) < 1e-5


def test_a_seed_decides_the_noise():
    scheduler = official(CogVideoXDPMScheduler, 7)
    start, outputs, _ = draw(7)
    finals = []
    for seed in (1, 1, 2):
        scheduler.seed(seed)
        finals.append(run(scheduler, start, outputs)[-2][0])
    assert mx.array_equal(finals[0], finals[1])
    assert not mx.allclose(finals[0], finals[2], atol=0.01)


def test_a_resumed_run_draws_the_noise_of_an_uninterrupted_one():
    start, outputs, _ = draw(7)
    key = mx.random.key(3)
    whole_scheduler = CogVideoXDPMScheduler.from_config(scheduler_config(), key=key)
    whole_scheduler.set_timesteps(7)
    whole = run(whole_scheduler, start, outputs)

    resumed_scheduler = CogVideoXDPMScheduler.from_config(scheduler_config(), key=key)
    resumed_scheduler.set_timesteps(7)
    x, x0 = whole[2]
    resumed = run(resumed_scheduler, x, outputs, x0=x0, first=3)
    assert mx.array_equal(resumed[-1][0], whole[-1][0])
    assert mx.array_equal(resumed[0][0], whole[3][0])


def test_drawn_noise_is_standard_normal_and_differs_from_step_to_step():
    scheduler = official(CogVideoXDPMScheduler, 4)
    zero = mx.zeros((64, 64))
    noises = []
    for t in scheduler.timesteps[:2]:
        x, _ = scheduler.step(zero, t, zero)
        scale, _ = scheduler.step(zero, t, zero, noise=mx.ones_like(zero))
        noises.append(np.array(x / scale))
    assert abs(noises[0].mean()) < 0.05 and abs(noises[0].std() - 1) < 0.05
    assert abs(np.corrcoef(noises[0].ravel(), noises[1].ravel())[0, 1]) < 0.05


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16])
@pytest.mark.parametrize("cls", CLASSES)
def test_half_precision_inputs_are_stepped_in_float32(cls, dtype):
    scheduler = official(cls, 7)
    start, outputs, noises = (mx.array(a).astype(dtype) for a in draw(7))
    t = scheduler.timesteps[2]
    half = scheduler.step(outputs[0], t, start, previous_x0=outputs[1], noise=noises[0])
    full = scheduler.step(
        *(outputs[0].astype(mx.float32), t, start.astype(mx.float32)),
        previous_x0=outputs[1].astype(mx.float32),
        noise=noises[0].astype(mx.float32),
    )
    for a, b in zip(half, full, strict=True):
        assert a.dtype == mx.float32
        assert mx.array_equal(a, b)


def test_a_timestep_may_be_an_mlx_scalar():
    scheduler = official(CogVideoXDDIMScheduler, 7)
    start, outputs, _ = draw(7)
    v, x = mx.array(outputs[0]), mx.array(start)
    a, _ = scheduler.step(v, mx.array(999), x)
    b, _ = scheduler.step(v, 999, x)
    assert mx.array_equal(a, b)


@pytest.mark.parametrize("name", ["add_noise", "get_velocity"])
def test_one_timestep_for_all_equals_the_same_one_for_each(name):
    scheduler = official(CogVideoXDDIMScheduler)
    rng = np.random.default_rng(0)
    x0, noise = (mx.array(a) for a in rng.standard_normal((2, 3, 4, 5)).astype(np.float32))
    method = getattr(scheduler, name)
    assert mx.array_equal(method(x0, noise, 400), method(x0, noise, mx.array([400] * 3)))
    assert not mx.allclose(method(x0, noise, 400), method(x0, noise, mx.array([400, 400, 1])))


def test_noising_keeps_the_dtype_without_a_half_precision_table():
    scheduler = official(CogVideoXDDIMScheduler)
    x0, noise = mx.zeros((1, 1024), mx.bfloat16), mx.ones((1, 1024), mx.bfloat16)
    noisy = scheduler.add_noise(x0, noise, 0)
    assert noisy.dtype == mx.bfloat16
    sigma = np.sqrt(1 - scheduler.alphas_cumprod[0])
    assert abs(noisy[0, 0].item() - sigma) < 1e-4


def test_adding_noise_at_the_last_timestep_gives_pure_noise():
    scheduler = official(CogVideoXDDIMScheduler)
    x0, noise = mx.full((2, 8), 5.0), mx.random.normal((2, 8), key=mx.random.key(0))
    assert mx.array_equal(scheduler.add_noise(x0, noise, 999), noise)
    assert mx.array_equal(scheduler.get_velocity(x0, noise, 999), -x0)


def test_the_final_level_is_the_first_of_the_table_unless_alpha_is_set_to_one():
    scheduler = official(CogVideoXDDIMScheduler, 7, set_alpha_to_one=False)
    start, outputs, _ = draw(7)
    t = scheduler.timesteps[-1]
    x, x0 = scheduler.step(mx.array(outputs[0]), t, mx.array(start))
    alpha_s, alpha_t = np.sqrt(scheduler.alphas_cumprod[[t, 0]])
    sigma_s, sigma_t = np.sqrt(1 - scheduler.alphas_cumprod[[t, 0]])
    eps = (start - alpha_s * np.array(x0)) / sigma_s
    assert relative_error(x, alpha_t * np.array(x0) + sigma_t * eps) < 1e-5


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("steps", [0, -1, 1001, 7.5, "50", None])
def test_a_wrong_number_of_steps_is_refused(cls, steps):
    with pytest.raises(InvalidInputError, match="from 1 to 1000"):
        official(cls).set_timesteps(steps)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_outside_the_schedule_is_refused(cls):
    x = mx.zeros((1, 2))
    with pytest.raises(InvalidInputError, match="set_timesteps"):
        official(cls).step(x, 999, x)
    with pytest.raises(InvalidInputError, match="timestep 998 is not among the 7"):
        official(cls, 7).step(x, 998, x)


def test_a_timestep_outside_the_table_is_refused():
    scheduler = official(CogVideoXDDIMScheduler)
    x = mx.zeros((2, 4))
    with pytest.raises(InvalidInputError, match="from 0 to 999; got 1000"):
        scheduler.add_noise(x, x, 1000)
    with pytest.raises(InvalidInputError, match="each of 2 samples; got 3"):
        scheduler.add_noise(x, x, mx.array([1, 2, 3]))


@pytest.mark.parametrize(
    "changes",
    [
        {"prediction_type": "flow"},
        {"timestep_spacing": "karras"},
        {"beta_schedule": "linear"},
        {"trained_betas": [0.1, 0.2]},
        {"prediction_type": "epsilon"},
    ],
)
def test_an_unsupported_config_is_refused(changes):
    with pytest.raises(InvalidInputError, match=next(iter(changes))):
        official(CogVideoXDDIMScheduler, **changes)


def test_an_offset_that_leaves_the_table_is_refused():
    scheduler = official(CogVideoXDDIMScheduler, timestep_spacing="leading", steps_offset=1)
    scheduler.set_timesteps(999)
    with pytest.raises(InvalidInputError, match="steps_offset"):
        scheduler.set_timesteps(1000)


def test_a_config_round_trip_changes_nothing():
    scheduler = official(CogVideoXDPMScheduler, snr_shift_scale=3.0)
    again = CogVideoXDPMScheduler.from_config(scheduler.to_config())
    assert again.config == scheduler.config
    assert scheduler.to_config()["_class_name"] == "CogVideoXDPMScheduler"
    assert CogVideoXDDIMScheduler.from_config(scheduler.config).config == scheduler.config


@pytest.mark.parametrize("name", ["euler", {"ddim": 1}, ["dpm"]])
def test_another_scheduler_is_refused_by_name(name):
    with pytest.raises(InvalidInputError, match=r"no scheduler .*: use ddim, dpm, dpm\+\+"):
        scheduler_name(name, {})
