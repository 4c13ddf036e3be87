"""Kernels for CUDA: the transformer's norms, each in one pass over memory.

MLX gives each row of a norm a block of threads. For heads of 64 features that takes seven times as
long as a copy, and the operations on the result take another pass. On a Mac, matrix products take
most of the time. `modulation` chooses between these kernels and MLX's own functions, whose numbers
are the same except for rounding.
"""

from collections.abc import Callable
from functools import cache

import mlx.core as mx

from .backend import on_gpu

HEAD_DIM = 64
"""Number of features in a head for `norm_heads`."""

FEATURES = 8
"""Number of a token's features that a thread of `modulated_norm` takes at once."""

THREADS = 256
"""Threads in a block. They are independent, except within a warp."""

HEADER = """
// Features that a thread reads and writes at once.
template <typename T, int N>
struct alignas(N * sizeof(T) < 16 ? N * sizeof(T) : 16) Features {
    T at[N];
};

// The sum over neighbouring threads, for each of them.
template <int COUNT>
__device__ float sum_over(float value) {
    for (int k = COUNT / 2; k > 0; k /= 2) {
        value += __shfl_xor_sync(0xffffffff, value, k);
    }
    return value;
}
"""

NORM_HEADS = """
    // Eight threads take a head of a token. Each takes four features and the four that are rotated
    // with them, 32 features later. The last threads may repeat the last head.
    using Four = Features<T, 4>;
    size_t thread = size_t(blockIdx.x) * blockDim.x + threadIdx.x;
    size_t row = min(thread / 8, size_t(ROWS - 1));
    int i = thread % 8, j = i + 8;
    const Four* head = reinterpret_cast<const Four*>(x) + 16 * row;
    const Four* weights = reinterpret_cast<const Four*>(weight);
    const Four* biases = reinterpret_cast<const Four*>(bias);
    Four *to = reinterpret_cast<Four*>(out) + 16 * row, first = head[i], second = head[j];
    float a[4], b[4], mean = 0, squares = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        a[k] = float(first.at[k]);
        b[k] = float(second.at[k]);
        mean += a[k] + b[k];
    }
    mean = sum_over<8>(mean) / 64;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        a[k] -= mean;
        b[k] -= mean;
        squares += a[k] * a[k] + b[k] * b[k];
    }
    float scale = rsqrtf(sum_over<8>(squares) / 64 + *eps);
    size_t token = row / HEADS % TOKENS;
#pragma unroll
    for (int k = 0; k < 4; k++) {
        a[k] = a[k] * scale * float(weights[i].at[k]) + float(biases[i].at[k]);
        b[k] = b[k] * scale * float(weights[j].at[k]) + float(biases[j].at[k]);
        if (ROTATED) {
            float cosine = cosines[32 * token + 4 * i + k], sine = sines[64 * token + 4 * j + k];
            float rotated = a[k] * cosine - b[k] * sine;
            b[k] = b[k] * cosine + a[k] * sine;
            a[k] = rotated;
        }
        first.at[k] = T(a[k]);
        second.at[k] = T(b[k]);
    }
    to[i] = first;
    to[j] = second;
"""

MODULATED_NORM = """
    // A warp takes a token. Each thread takes eight features, and eight more every 256 features.
    using Eight = Features<T, 8>;
    constexpr int PARTS = DIM / 8, EACH = (PARTS + 31) / 32;
    size_t row = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) / 32;
    int lane = threadIdx.x % 32;
    if (row >= ROWS) {
        return;
    }
    const Eight* parts = reinterpret_cast<const Eight*>(x) + row * PARTS;
    Eight part[EACH];
    float mean = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (lane + 32 * i < PARTS) {
            part[i] = parts[lane + 32 * i];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                mean += float(part[i].at[k]);
            }
        }
    }
    mean = sum_over<32>(mean) / DIM;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (lane + 32 * i < PARTS) {
#pragma unroll
            for (int k = 0; k < 8; k++) {
                float from_mean = float(part[i].at[k]) - mean;
                squares += from_mean * from_mean;
            }
        }
    }
    float scale = rsqrtf(sum_over<32>(squares) / DIM + *eps);
    // A clip's vectors are shift, scale and gate of the video rows, then those of the text rows.
    const T* of_row = vectors + row / TOKENS * 6 * DIM + (is_text[row % TOKENS] ? 3 * DIM : 0);
    const Eight* weights = reinterpret_cast<const Eight*>(weight);
    const Eight* biases = reinterpret_cast<const Eight*>(bias);
    const Eight* shifts = reinterpret_cast<const Eight*>(of_row);
    const Eight* scales = reinterpret_cast<const Eight*>(of_row + DIM);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = lane + 32 * i;
        if (at < PARTS) {
            Eight by = weights[at], plus = biases[at], more = scales[at], shift = shifts[at];
#pragma unroll
            for (int k = 0; k < 8; k++) {
                float normed = (float(part[i].at[k]) - mean) * scale;
                normed = normed * float(by.at[k]) + float(plus.at[k]);
                part[i].at[k] = T(normed * (1 + float(more.at[k])) + float(shift.at[k]));
            }
            reinterpret_cast<Eight*>(out)[row * PARTS + at] = part[i];
        }
    }
"""


def available() -> bool:
    """Whether arrays are computed on a GPU by CUDA."""
    return mx.cuda.is_available() and on_gpu()


def norm_heads(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    rotation: tuple[mx.array, mx.array] | None,
) -> mx.array:
    """`modulation.norm_heads` of ``[batch, tokens, heads, 64]``."""
    _, tokens, heads, _ = x.shape
    rows = x.size // HEAD_DIM
    tables = (mx.zeros(1), mx.zeros(1)) if rotation is None else rotation
    constants = {"ROWS": rows, "TOKENS": tokens, "HEADS": heads, "ROTATED": rotation is not None}
    weight, bias = (a.astype(x.dtype) for a in (weight, bias))
    inputs = [x, weight, bias, mx.array([eps]), *tables]
    kernel = _kernel("norm_heads", "x weight bias eps cosines sines", NORM_HEADS)
    return _run(kernel, inputs, constants, 8 * rows)


def modulated_norm(
    x: mx.array, weight: mx.array, bias: mx.array, eps: float, is_text: mx.array, vectors: mx.array
) -> mx.array:
    """The modulated norm of `CogVideoXLayerNormZero`.

    Args:
        x: ``[batch, tokens, dim]``; dim divisible by `FEATURES`.
        is_text: ``[tokens, 1]``.
        vectors: ``[batch, 1, 6 · dim]``, the vectors of `Modulation`.
    """
    _, tokens, dim = x.shape
    rows = x.size // dim
    constants = {"ROWS": rows, "TOKENS": tokens, "DIM": dim}
    weight, bias, vectors = (a.astype(x.dtype) for a in (weight, bias, vectors))
    inputs = [x, weight, bias, mx.array([eps]), is_text, vectors]
    kernel = _kernel("modulated_norm", "x weight bias eps is_text vectors", MODULATED_NORM)
    return _run(kernel, inputs, constants, 32 * rows)


def _run(
    kernel: Callable[..., list[mx.array]],
    inputs: list[mx.array],
    constants: dict[str, int],
    threads: int,
) -> mx.array:
    """Runs `kernel`; its result has the shape and dtype of the first input."""
    x = inputs[0]
    (out,) = kernel(
        inputs=inputs,
        template=[("T", x.dtype), *constants.items()],
        grid=(-(-threads // THREADS) * THREADS, 1, 1),
        threadgroup=(THREADS, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


@cache
def _kernel(name: str, inputs: str, source: str) -> Callable[..., list[mx.array]]:
    return mx.fast.cuda_kernel(name, inputs.split(), ["out"], source, HEADER)
