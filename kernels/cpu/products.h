// The matrix products of each point of the transform, in registers: R rows times N vectors of columns.
#pragma once
#include "blocks.h"

// rows of a product of N vectors of columns that the registers hold, beside the columns and a broadcast
template <int N> constexpr int MAX_ROWS = std::min(12, (REGISTERS - 2 * N) / N);

// vectors of columns in a panel of the transformed weight
static inline int vectors_of(int64_t channels, int lanes) { return channels % (2 * lanes) == 0 ? 2 : 1; }

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

// The products of a block, this worker's share of points and panels: points x rows x K.
template <class S, int N, int L>
static void multiply(const Blocks<S>& blocks, const Block& block, const float* in, float* out, int64_t worker,
                     int64_t workers) {
    const Layer& layer = blocks.layer;
    const int64_t taps = S::DEPTH_TAPS, panels = layer.k / (N * L), panel = taps * layer.c * N * L;
    const int64_t items = S::POINTS * panels, rows = block.deep * block.tiles(), tap = block.tiles() * layer.c;
    for (int64_t item = items * worker / workers; item < items * (worker + 1) / workers; item++) {
        const float* point = in + item / panels * blocks.input_stride;
        float* to = out + item / panels * blocks.product_stride + item % panels * (N * L);
        for_each_piece<MAX_ROWS<N>>(rows, [&](int64_t first, auto count) {
            multiply_rows<decltype(count)::value, N, L>(point + first * layer.c, layer.c, tap, taps,
                                                        layer.weight + item * panel, to + first * layer.k, layer.k);
        });
    }
}

// Adds a block's part to the gradient of the transformed weight, this worker's share: points x taps x K x C.
template <class S, int N, int L>
static void accumulate(const Blocks<S>& blocks, const Block& block, const float* x, const float* dy, float* grad,
                       bool first, int64_t worker, int64_t workers) {
    const Layer& layer = blocks.layer;
    const int64_t taps = S::DEPTH_TAPS, rows = block.deep * block.tiles(), panels = layer.c / (N * L);
    const int64_t items = S::POINTS * taps * panels;
    for (int64_t item = items * worker / workers; item < items * (worker + 1) / workers; item++) {
        int64_t point = item / (taps * panels), tap = item / panels % taps, channel = item % panels * (N * L);
        const float* from = x + point * blocks.input_stride + tap * block.tiles() * layer.c + channel;
        const float* values = dy + point * blocks.product_stride;
        float* to = grad + (point * taps + tap) * layer.k * layer.c + channel;
        for_each_piece<MAX_ROWS<N>>(layer.k, [&](int64_t k, auto count) {
            multiply_outer<decltype(count)::value, N, L>(values + k, layer.k, from, layer.c, rows,
                                                         to + k * layer.c, first);
        });
    }
}
