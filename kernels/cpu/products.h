// The matrix products of each point of the transform, in registers: R rows times N vectors of columns.
#pragma once
#include "depth.h"
#include "lanes.h"

// rows of a product of N vectors of columns that the registers hold, beside the columns and a broadcast
template <int N> constexpr int MAX_ROWS = std::min(12, (REGISTERS - 2 * N) / N);

// out (R x N L) = sum over taps and C of in (R x C) times weight (taps C x N L)
template <int R, int N, int L>
static __attribute__((noinline)) void multiply_rows(const float* in, int64_t row, int64_t tap, int64_t taps,
                                                    const float* weight, float* out, int64_t out_row) {
    Float<L> sum[R][N] = {};
    for (int64_t t = 0; t < taps; t++, in += tap)
        for (int64_t c = 0; c < row; c++, weight += N * L) {
            Float<L> columns[N];
            UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(weight + n * L);
            UNROLL for (int r = 0; r < R; r++) {
                Float<L> value = broadcast<L>(in[r * row + c]);
                UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
            }
        }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store<L>(out + r * out_row + n * L, sum[r][n]);
}

// grad (R x N L) += sum over rows of dy (rows x R)^T times x (rows x N L)
template <int R, int N, int L>
static __attribute__((noinline)) void multiply_outer(const float* dy, int64_t k, const float* x, int64_t c,
                                                     int64_t rows, float* grad, bool first) {
    Float<L> sum[R][N] = {};
    if (!first)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int n = 0; n < N; n++) sum[r][n] = load<L>(grad + r * c + n * L);
    for (int64_t row = 0; row < rows; row++, dy += k, x += c) {
        Float<L> columns[N];
        UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(x + n * L);
        UNROLL for (int r = 0; r < R; r++) {
            Float<L> value = broadcast<L>(dy[r]);
            UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store<L>(grad + r * c + n * L, sum[r][n]);
}

// calls function with the number of rows, 1 to MAX, as a constant
template <int MAX, class F> INLINE void with_rows(int64_t rows, F function) {
    if constexpr (MAX > 1) {
        if (rows < MAX) return with_rows<MAX - 1>(rows, function);
    }
    function(std::integral_constant<int, MAX>{});
}

// cuts `total` rows into pieces of about the same size, at most MAX, and calls function(first, rows)
template <int MAX, class F> INLINE void for_each_piece(int64_t total, F function) {
    int64_t pieces = (total + MAX - 1) / MAX;
    for (int64_t i = 0, first = 0; i < pieces; i++) {
        int64_t rows = (total - first + (pieces - i) - 1) / (pieces - i);
        with_rows<MAX>(rows, [&](auto constant) { function(first, constant); });
        first += rows;
    }
}

// parts into which the panels of a point are cut, so that many workers have about as much to do
static inline int64_t parts_of(int64_t panels, const Worker& worker) {
    return std::min(panels, (worker.threads + 7) / 8);
}

// The products of a block, this worker's share of points and panels: points of a plane x rows (slice, tile) x K.
template <class S, int N, int L>
static void multiply(const Blocks<S>& blocks, const Block& block, const float* in, float* out, const Worker& worker) {
    const Layer& layer = blocks.layer;
    const int64_t panels = layer.k / (N * L), parts = parts_of(panels, worker), items = PLANE_POINTS * parts;
    const int64_t panel_size = S::DEPTH_TAPS * layer.c * N * L, rows = block.deep * block.tiles();
    const int64_t step = blocks.depth_stride(layer.c), product_step = blocks.depth_stride(N * L);
    float* products = worker.memory + blocks.depth_size(layer.c);
    [[maybe_unused]] int64_t transformed = -1;  // the point whose inputs are
    for (int64_t item = worker.first(items); item < worker.last(items); item++) {
        int64_t point = item / parts, part = item % parts;
        const float* planes = in + point * blocks.input_stride;
        float* to = out + point * blocks.product_stride;
        if constexpr (S::DEPTH > 1) {
            if (point != transformed) depth_of_inputs<S>(planes, block, layer.c, worker.memory, step);
            transformed = point;
        }
        for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; panel++) {
            if constexpr (S::DEPTH > 1) {
                for (int64_t q = 0; q < S::DEPTH_POINTS; q++) {
                    const float* weight = layer.weight + ((q * PLANE_POINTS + point) * panels + panel) * panel_size;
                    for_each_piece<MAX_ROWS<N>>(rows, [&](int64_t first, auto count) {
                        multiply_rows<decltype(count)::value, N, L>(worker.memory + q * step + first * layer.c, layer.c,
                                                                    0, 1, weight,
                                                                    products + q * product_step + first * (N * L),
                                                                    N * L);
                    });
                }
                depth_of_outputs<S, L>(products, product_step, block, N * L, to + panel * (N * L), layer.k);
            } else {
                const float* weight = layer.weight + (point * panels + panel) * panel_size;
                for_each_piece<MAX_ROWS<N>>(rows, [&](int64_t first, auto count) {
                    multiply_rows<decltype(count)::value, N, L>(planes + first * layer.c, layer.c,
                                                                block.tiles() * layer.c, S::DEPTH_TAPS, weight,
                                                                to + first * layer.k + panel * (N * L), layer.k);
                });
            }
        }
    }
}

// Adds a block's part to the gradient of the transformed weight, this worker's share: points x taps x K x C.
template <class S, int N, int L>
static void accumulate(const Blocks<S>& blocks, const Block& block, const float* x, const float* dy, float* grad,
                       bool first, const Worker& worker) {
    const Layer& layer = blocks.layer;
    const int64_t panels = layer.c / (N * L), parts = parts_of(panels, worker), items = PLANE_POINTS * parts;
    const int64_t rows = block.deep * block.tiles(), size = layer.k * layer.c;
    const int64_t step = blocks.depth_stride(layer.c), grad_step = blocks.depth_stride(layer.k);
    float* grads = worker.memory + blocks.depth_size(layer.c);
    [[maybe_unused]] int64_t transformed = -1;  // the point whose values are
    for (int64_t item = worker.first(items); item < worker.last(items); item++) {
        int64_t point = item / parts, part = item % parts;
        const float *inputs = x + point * blocks.input_stride, *values = dy + point * blocks.product_stride;
        if constexpr (S::DEPTH > 1) {
            if (point != transformed) {
                depth_of_inputs<S>(inputs, block, layer.c, worker.memory, step);
                depth_of_gradients<S>(values, block, layer.k, grads, grad_step);
            }
            transformed = point;
        }
        // along the depth: points, or taps
        for (int64_t q = 0; q < S::DEPTH_POINTS * S::DEPTH_TAPS; q++) {
            const float* from = S::DEPTH > 1 ? worker.memory + q * step : inputs + q * block.tiles() * layer.c;
            const float* with = S::DEPTH > 1 ? grads + q * grad_step : values;
            float* to = grad + (S::DEPTH > 1 ? q * PLANE_POINTS + point : point * S::DEPTH_TAPS + q) * size;
            for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; panel++)
                for_each_piece<MAX_ROWS<N>>(layer.k, [&](int64_t k, auto count) {
                    multiply_outer<decltype(count)::value, N, L>(with + k, layer.k, from + panel * (N * L), layer.c,
                                                                 rows, to + k * layer.c + panel * (N * L), first);
                });
        }
    }
}
