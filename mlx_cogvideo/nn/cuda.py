"""The transformer's norms on CUDA, each in one pass over memory.

MLX gives each row of a norm a block of threads, which for heads of 64 features takes seven times as
long as a copy, and what is done to the result takes another pass. A Mac wouldn't gain anything
here: its products take hundreds of times as long as its norms. Elsewhere than on CUDA, and where
gradients are taken, the layers use MLX's own functions, to the same numbers.
"""

from functools import cache

import mlx.core as mx

HEAD_DIM = 64
"""Features of a head, of which each thread of a warp takes two."""

NORM_HEADS = """
    // A warp takes a head of a token: a lane the feature of its number, and the one 32 after, with
    // which that is turned.
    size_t row = size_t(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32;
    int lane = threadIdx.x % 32;
    if (row >= ROWS) {
        return;
    }
    const T* head = x + row * 64;
    float a = float(head[lane]), b = float(head[lane + 32]);
    float mean = a + b;
    for (int k = 16; k > 0; k /= 2) {
        mean += __shfl_xor_sync(0xffffffff, mean, k);
    }
    mean /= 64;
    a -= mean;
    b -= mean;
    float squares = a * a + b * b;
    for (int k = 16; k > 0; k /= 2) {
        squares += __shfl_xor_sync(0xffffffff, squares, k);
    }
    float scale = rsqrtf(squares / 64 + *eps);
    a = a * scale * float(weight[lane]) + float(bias[lane]);
    b = b * scale * float(weight[lane + 32]) + float(bias[lane + 32]);
    if (TURNED) {
        size_t token = row / HEADS % TOKENS;
        float cosine = cosines[token * 32 + lane];
        float first = a * cosine + b * sines[token * 64 + lane];
        b = b * cosine + a * sines[token * 64 + 32 + lane];
        a = first;
    }
    out[row * 64 + lane] = T(a);
    out[row * 64 + lane + 32] = T(b);
"""

MODULATED_NORM = """
    // A block takes a token, and a thread of it every so many pairs of features.
    constexpr int PAIRS = DIM / 2, EACH = (PAIRS + THREADS - 1) / THREADS;
    struct alignas(2 * sizeof(T)) Pair {
        T first, second;
    };
    __shared__ float sums[2][THREADS / 32];
    size_t row = blockIdx.x;
    const Pair* pairs = reinterpret_cast<const Pair*>(x) + row * PAIRS;
    float2 values[EACH];
    float mean = 0, squares = 0;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = threadIdx.x + i * THREADS;
        if (at < PAIRS) {
            Pair pair = pairs[at];
            values[i] = {float(pair.first), float(pair.second)};
            mean += values[i].x + values[i].y;
        }
    }
    for (int k = 16; k > 0; k /= 2) {
        mean += __shfl_xor_sync(0xffffffff, mean, k);
    }
    if (threadIdx.x % 32 == 0) {
        sums[0][threadIdx.x / 32] = mean;
    }
    __syncthreads();
    mean = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        mean += sums[0][i];
    }
    mean /= DIM;
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        if (threadIdx.x + i * THREADS < PAIRS) {
            values[i].x -= mean;
            values[i].y -= mean;
            squares += values[i].x * values[i].x + values[i].y * values[i].y;
        }
    }
    for (int k = 16; k > 0; k /= 2) {
        squares += __shfl_xor_sync(0xffffffff, squares, k);
    }
    if (threadIdx.x % 32 == 0) {
        sums[1][threadIdx.x / 32] = squares;
    }
    __syncthreads();
    squares = 0;
    for (int i = 0; i < THREADS / 32; i++) {
        squares += sums[1][i];
    }
    float scale = rsqrtf(squares / DIM + *eps);
    // The vectors of a batch are shift, scale and gate of the video, and the same of the text.
    const T* of_row = vectors + row / TOKENS * 6 * DIM + (is_text[row % TOKENS] ? 3 * DIM : 0);
    const Pair* shifts = reinterpret_cast<const Pair*>(of_row);
    const Pair* scales = reinterpret_cast<const Pair*>(of_row + DIM);
    const Pair* weights = reinterpret_cast<const Pair*>(weight);
    const Pair* biases = reinterpret_cast<const Pair*>(bias);
#pragma unroll
    for (int i = 0; i < EACH; i++) {
        int at = threadIdx.x + i * THREADS;
        if (at < PAIRS) {
            Pair by = weights[at], plus = biases[at], more = scales[at], shift = shifts[at];
            float first = values[i].x * scale * float(by.first) + float(plus.first);
            float second = values[i].y * scale * float(by.second) + float(plus.second);
            first = first * (1 + float(more.first)) + float(shift.first);
            second = second * (1 + float(more.second)) + float(shift.second);
            reinterpret_cast<Pair*>(out)[row * PAIRS + at] = {T(first), T(second)};
        }
    }
"""


def available(head_dim: int = HEAD_DIM) -> bool:
    """Whether these can be used here, for heads of so many features."""
    on_gpu = mx.default_device().type == mx.DeviceType.gpu
    return mx.cuda.is_available() and on_gpu and head_dim == HEAD_DIM


def norm_heads(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    rotation: tuple[mx.array, mx.array] | None,
) -> mx.array:
    """``rotate(mx.fast.layer_norm(x, weight, bias, eps), *rotation)``.

    Args:
        x: ``[batch, tokens, heads, 64]``, in the order of `half_split` where it is turned.
        rotation: of `rope_tables`, or None.
    """
    _, tokens, heads, _ = x.shape
    rows, threads = x.size // HEAD_DIM, 256
    tables = (mx.zeros(1), mx.zeros(1)) if rotation is None else rotation
    constants = {"T": x.dtype, "ROWS": rows, "TOKENS": tokens, "HEADS": heads}
    (out,) = _kernel("norm_heads", NORM_HEADS, "x weight bias eps cosines sines")(
        inputs=[x, weight, bias, mx.array([eps]), *tables],
        template=[*constants.items(), ("TURNED", rotation is not None)],
        grid=(-(-rows * 32 // threads) * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


def modulated_norm(
    x: mx.array,
    weight: mx.array,
    bias: mx.array,
    eps: float,
    is_text: mx.array,
    vectors: mx.array,
) -> mx.array:
    """The norm of `CogVideoXLayerNormZero`, modulated.

    Args:
        x: ``[batch, tokens, dim]``.
        is_text: ``[tokens, 1]``.
        vectors: ``[batch, 1, 6 · dim]``, what the time embedding became.
    """
    _, tokens, dim = x.shape
    rows, threads = x.size // dim, 192
    constants = {"T": x.dtype, "DIM": dim, "TOKENS": tokens, "THREADS": threads}
    (out,) = _kernel("modulated_norm", MODULATED_NORM, "x weight bias eps is_text vectors")(
        inputs=[x, *(a.astype(x.dtype) for a in (weight, bias)), mx.array([eps]), is_text, vectors],
        template=list(constants.items()),
        grid=(rows * threads, 1, 1),
        threadgroup=(threads, 1, 1),
        output_shapes=[x.shape],
        output_dtypes=[x.dtype],
    )
    return out


@cache
def _kernel(name: str, source: str, inputs: str):
    return mx.fast.cuda_kernel(name, inputs.split(), ["out"], source)
