// Convolutions 3x3x3 and 5x5x5 of small volumes by direct sums, and their gradients. See cpu_direct.py.
//
// Most taps of a small volume's voxels lie beyond it. Each tap is a matrix product of the voxels that have it, so that
// no zeros are multiplied, and reads its part of the weight once, however few voxels there are.
#pragma once
#include <vector>

#include "lanes.h"
#include "products.h"
#include "strided.h"

// voxels that a batch is cut into for more threads than panels
constexpr int64_t FEWEST_VOXELS = 32;

// A tap of a filter: where it is from its centre, and its number in the weight.
struct Tap {
    int64_t d, h, w, number;

    Tap(int64_t taps, int64_t number)
        : d(number / taps / taps - taps / 2), h(number / taps % taps - taps / 2), w(number % taps - taps / 2),
          number(number) {}

    // whether any voxel of a volume has it
    bool reaches(const Layer& layer) const {
        return std::abs(d) < layer.d && std::abs(h) < layer.h && std::abs(w) < layer.w;
    }

    // calls function(voxel, count, other) for each run of voxels of one row that have it, among rows `first` to `last`:
    // the number of the first one, how many there are, and the number of the voxel that the tap takes for the first
    template <class F> inline __attribute__((always_inline)) void for_each_run(const Layer& layer, int64_t first, int64_t last, F function) const {
        const int64_t start = std::max<int64_t>(0, -w), count = layer.w - std::abs(w);
        for (int64_t row = first; row < last; row++) {
            int64_t y = row % layer.h + h, z = row / layer.h % layer.d + d;
            if (y < 0 || y >= layer.h || z < 0 || z >= layer.d) continue;
            int64_t voxel = row * layer.w + start;
            function(voxel, count, voxel + (d * layer.h + h) * layer.w + w);
        }
    }
};

// out (R rows of N L) += in (R rows of C) times weight (C x N L), of rows that lie anywhere
template <int R, int N, int L>
static __attribute__((noinline)) void add_products(const float* const* in, int64_t c, const float* weight,
                                                   float* const* out) {
    // sums of their own, because a single one of all taps would be less exact
    Float<L> sum[R][N] = {};
    for (int64_t i = 0; i < c; i++, weight += N * L) {
        Float<L> columns[N];
        UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(weight + n * L);
        UNROLL for (int r = 0; r < R; r++) {
            Float<L> value = broadcast<L>(in[r][i]);
            UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store<L>(out[r] + n * L, load<L>(out[r] + n * L) + sum[r][n]);
}

// grad (R x N L) = sum over rows of dy (R numbers) times x (N L numbers), of rows that lie anywhere
template <int R, int N, int L>
static __attribute__((noinline)) void multiply_outer_rows(const float* const* dy, const float* const* x, int64_t k,
                                                          int64_t channel, int64_t rows, float* grad, int64_t grad_row) {
    Float<L> sum[R][N] = {};
    for (int64_t row = 0; row < rows; row++) {
        Float<L> columns[N];
        UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(x[row] + channel + n * L);
        UNROLL for (int r = 0; r < R; r++) {
            Float<L> value = broadcast<L>(dy[row][k + r]);
            UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store<L>(grad + r * grad_row + n * L, sum[r][n]);
}

// The part of a weight for a tap and N L outputs, from `output` on: C x N L. The weight is K x taps x C; mirrored, its
// K are the inputs and its C the outputs.
static void pack_tap(const Layer& layer, const Tap& tap, int64_t cube, bool mirrored, int64_t output, int64_t width,
                     float* out) {
    if (mirrored) {
        const float* from = layer.weight + (cube - 1 - tap.number) * layer.k + output;
        for (int64_t c = 0; c < layer.c; c++, from += cube * layer.k, out += width)
            for (int64_t i = 0; i < width; i += 8) store<8>(out + i, load<8>(from + i));
        return;
    }
    const float* from = layer.weight + (output * cube + tap.number) * layer.c;
    for (int64_t i = 0; i < width; i++, from += cube * layer.c)
        for (int64_t c = 0; c < layer.c; c++) out[c * width + i] = from[c];
}

// A volume's values in float32: where they lie, or in `out`.
template <class T> static const float* widened_volume(const void* volume, int64_t size, int64_t threads, float* out) {
    if constexpr (sizeof(T) == 4) return (const float*)volume;
    const int64_t parts = size / 8;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < parts; i++) store<8>(out + i * 8, load<8>((const T*)volume + i * 8));
    return out;
}

// The outputs of some rows of voxels in N L channels, from `output` on, with the epilogue.
//
// tile: C x N L floats. sums: N L floats for each voxel of the rows.
template <int N, int L, class T>
static void sum_taps_of_rows(const Layer& layer, const float* x, int64_t taps, bool mirrored, int64_t output,
                             int64_t first, int64_t last, float* tile, float* sums) {
    constexpr int R = MAX_ROWS<N>;
    const int64_t cube = taps * taps * taps, start = first * layer.w, voxels = (last - first) * layer.w;
    memset(sums, 0, voxels * N * L * 4);
    for (int64_t number = 0; number < cube; number++) {
        const Tap tap(taps, number);
        if (!tap.reaches(layer)) continue;
        pack_tap(layer, tap, cube, mirrored, output, N * L, tile);
        const float* in[R];
        float* out[R];
        int64_t count = 0;
        tap.for_each_run(layer, first, last, [&](int64_t voxel, int64_t wide, int64_t other) {
            for (int64_t i = 0; i < wide; i++) {
                in[count] = x + (other + i) * layer.c;
                out[count] = sums + (voxel + i - start) * (N * L);
                if (++count < R) continue;
                add_products<R, N, L>(in, layer.c, tile, out);
                count = 0;
            }
        });
        if (count)
            with_rows<R>(count, [&](auto rows) { add_products<decltype(rows)::value, N, L>(in, layer.c, tile, out); });
    }
    for (int n = 0; n < N; n++) {
        const int64_t channel = output + n * L;
        Float<L> bias = layer.bias ? load<L>(layer.bias + channel) : Float<L>{};
        Float<L> slope = layer.slope ? load<L>(layer.slope + channel) : Float<L>{};
        for (int64_t i = 0; i < voxels; i++)
            finish<L, T>(layer, start + i, channel, load<L>(sums + i * (N * L) + n * L), bias, slope);
    }
}

// x: N x D x H x W x C, y: of K. Mirrored: the gradient of the input of a weight of C x taps x K.
template <class T> static void direct(const Layer& layer, int64_t taps, bool mirrored) {
    const int64_t rows = layer.n * layer.d * layer.h, width = panel_width(layer.k), panels = layer.k / width;
    // all threads have something to do, unless the volume is tiny
    const int64_t most = std::max<int64_t>(1, rows * layer.w / FEWEST_VOXELS);
    const int64_t parts = std::min({(layer.threads + panels - 1) / panels, most, rows});
    const int64_t place = layer.c * width + (rows / parts + 1) * layer.w * width;
    const int64_t size = rows * layer.w * layer.c;
    // float32 volumes stay where they are
    float* places = scratch((layer.threads * place + (sizeof(T) == 4 ? 0 : size)) * 4);
    const float* x = widened_volume<T>(layer.x, size, layer.threads, places + layer.threads * place);
    with_panel(layer.k, [&](auto vectors, auto lanes) {
#pragma omp parallel for schedule(dynamic) num_threads(layer.threads)
        for (int64_t i = 0; i < panels * parts; i++) {
            float* tile = places + omp_get_thread_num() * place;
            sum_taps_of_rows<vectors.value, lanes.value, T>(layer, x, taps, mirrored, i / parts * width,
                                                            rows * (i % parts) / parts, rows * (i % parts + 1) / parts,
                                                            tile, tile + layer.c * width);
        }
    });
}

// The gradient of one tap of the weight. x, dy: the volumes in float32. of_dy, of_x: a pointer for each voxel.
template <int N, int L>
static void gradient_of_tap(const Layer& layer, const float* x, const float* dy, int64_t taps, int64_t number,
                            const float** of_dy, const float** of_x, float* grad) {
    const Tap tap(taps, number);
    const int64_t cube = taps * taps * taps;
    int64_t count = 0;
    if (tap.reaches(layer))
        tap.for_each_run(layer, 0, layer.n * layer.d * layer.h, [&](int64_t voxel, int64_t wide, int64_t other) {
            for (int64_t i = 0; i < wide; i++, count++) {
                of_dy[count] = dy + (voxel + i) * layer.k;
                of_x[count] = x + (other + i) * layer.c;
            }
        });
    for (int64_t channel = 0; channel < layer.c; channel += N * L)
        for_each_piece<MAX_ROWS<N>>(layer.k, [&](int64_t k, auto size) {
            multiply_outer_rows<decltype(size)::value, N, L>(of_dy, of_x, k, channel, count,
                                                             grad + (k * cube + number) * layer.c + channel,
                                                             cube * layer.c);
        });
}

// x: N x D x H x W x C, y: the gradient of the output. grad: K x taps x C.
template <class T> static void direct_weight_gradient(const Layer& layer, int64_t taps, float* grad) {
    const int64_t voxels = layer.n * layer.d * layer.h * layer.w;
    // float32 volumes stay where they are
    const int64_t narrow = sizeof(T) == 4 ? 0 : voxels;
    float* memory = scratch(narrow * (layer.c + layer.k) * 4);
    const float* x = widened_volume<T>(layer.x, voxels * layer.c, layer.threads, memory);
    const float* dy = widened_volume<T>(layer.y, voxels * layer.k, layer.threads, memory + narrow * layer.c);
    std::vector<const float*> places(layer.threads * 2 * voxels);
    with_panel(layer.c, [&](auto vectors, auto lanes) {
#pragma omp parallel for schedule(dynamic) num_threads(layer.threads)
        for (int64_t number = 0; number < taps * taps * taps; number++) {
            const float** of_dy = places.data() + omp_get_thread_num() * 2 * voxels;
            gradient_of_tap<vectors.value, lanes.value>(layer, x, dy, taps, number, of_dy, of_dy + voxels, grad);
        }
    });
}
