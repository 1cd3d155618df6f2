// Convolutions 2x2x2 of stride 2 and their transposes, as matrix products of chunks of coarse voxels.
//
// A coarse voxel v with K channels belongs to eight fine ones with C. The weight is K x 8 x C for both directions.
//
//     gather:     coarse[v, k] = sum over t, c of fine[2 v + t, c] * weight[k, t, c]
//     scatter:    fine[2 v + t, c] = sum over k of coarse[v, k] * weight[k, t, c]
//
// Each is the gradient of the other's input, and the gradient of the weight is the sum of their outer products.
#pragma once
#include "lanes.h"
#include "products.h"
#include "transforms.h"

constexpr int64_t CORNERS = 8, VOXELS = 48;

// The coarse volume of a layer, N x D x H x W, between fine volumes with C channels and coarse ones with K.
struct Coarse {
    const Layer& layer;

    explicit Coarse(const Layer& layer) : layer(layer) {}
    int64_t voxels() const { return layer.n * layer.d * layer.h * layer.w; }
    int64_t chunks() const { return (voxels() + VOXELS - 1) / VOXELS; }
    int64_t count(int64_t chunk) const { return std::min(VOXELS, voxels() - chunk * VOXELS); }

    // calls function(i, count, corner) for each run of voxels of a chunk in one row: the number of the first, how many
    // there are, and the fine voxel of the first corner; those of the others follow in steps of 2
    template <class F> inline __attribute__((always_inline)) void for_each_run(int64_t chunk, F function) const {
        const int64_t wide = layer.w, high = layer.h, voxels = count(chunk), first = chunk * VOXELS;
        for (int64_t i = 0, run; i < voxels; i += run) {
            int64_t w = (first + i) % wide, line = (first + i) / wide, h = line % high, slice = line / high;
            run = std::min(voxels - i, wide - w);
            function(i, run, (slice * 2 * high * 2 + h * 2) * wide * 2 + w * 2);
        }
    }
    // from the first corner to the first of each pair along W
    int64_t pair(int i) const { return (i / 2 * layer.h * 2 + i % 2) * layer.w * 2; }
};

template <int L, class T> INLINE void widen(const T* from, int64_t size, float* to) {
    for (int64_t i = 0; i < size; i += L) store<L>(to + i, load<L>(from + i));
}

// the eight fine voxels of each voxel of a chunk: voxels x 8 x C
template <class T> static void load_fine(const Coarse& coarse, const T* fine, int64_t chunk, float* out) {
    const int64_t c = coarse.layer.c, pairs[] = {0, coarse.pair(1) * c, coarse.pair(2) * c, coarse.pair(3) * c};
    coarse.for_each_run(chunk, [&](int64_t first, int64_t count, int64_t corner) {
        float* to = out + first * CORNERS * c;
        for (int64_t i = 0; i < count; i++)
            for (int pair = 0; pair < 4; pair++, to += 2 * c)
                widen<8>(fine + (corner + 2 * i) * c + pairs[pair], 2 * c, to);
    });
}

template <class T> static void load_coarse(const Coarse& coarse, const T* volume, int64_t chunk, float* out) {
    const int64_t k = coarse.layer.k;
    widen<8>(volume + chunk * VOXELS * k, coarse.count(chunk) * k, out);
}

// A matrix of `rows` rows, `columns` columns, as panels of columns; element (row, column) is given by `at`.
template <class F>
static void pack_panels(int64_t rows, int64_t columns, int64_t width, int64_t threads, float* out, F at) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t panel = 0; panel < columns; panel += width)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < width; i++) out[panel * rows + row * width + i] = at(row, panel + i);
}

// out (count x columns) = in (count x rows) times a matrix in the panels of `part` columns
static void multiply_panels(const float* in, int64_t count, int64_t rows, const float* panels, int64_t columns,
                            int64_t part, float* out) {
    with_panel(part, [&](auto vectors, auto lanes) {
        constexpr int N = vectors.value, L = lanes.value;
        for (int64_t column = 0; column < columns; column += N * L)
            for_each_piece<MAX_ROWS<N>>(count, [&](int64_t first, auto size) {
                multiply_rows<decltype(size)::value, N, L>(in + first * rows, rows, 0, 1, panels + column * rows,
                                                           out + first * columns + column, columns);
            });
    });
}

// out (R x N L) = start + sum over pieces of in, `length` each and at an offset, times a panel
template <int R, int N, int L>
static __attribute__((noinline)) void multiply_pieces(const float* in, int64_t row, const int64_t* offsets,
                                                      int64_t pieces, int64_t length, const float* panel,
                                                      const float* start, float* out, int64_t out_row) {
    Float<L> sum[R][N] = {};
    if (start)
        UNROLL for (int r = 0; r < R; r++)
            UNROLL for (int n = 0; n < N; n++) sum[r][n] = load<L>(start + n * L);
    for (int64_t piece = 0; piece < pieces; piece++) {
        const float* from = in + offsets[piece];
        for (int64_t i = 0; i < length; i++, panel += N * L) {
            Float<L> columns[N];
            UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(panel + n * L);
            UNROLL for (int r = 0; r < R; r++) {
                Float<L> value = broadcast<L>(from[r * row + i]);
                UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
            }
        }
    }
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int n = 0; n < N; n++) store<L>(out + r * out_row + n * L, sum[r][n]);
}

// The coarse voxels of a chunk from fine float32 ones where they lie, into `out`.
static void gather_chunk(const Coarse& coarse, const float* fine, int64_t chunk, const float* panels, float* out) {
    const int64_t c = coarse.layer.c, k = coarse.layer.k, rows = CORNERS * c;
    const int64_t pairs[] = {0, coarse.pair(1) * c, coarse.pair(2) * c, coarse.pair(3) * c};
    with_panel(k, [&](auto vectors, auto lanes) {
        constexpr int N = vectors.value, L = lanes.value;
        coarse.for_each_run(chunk, [&](int64_t voxel, int64_t count, int64_t corner) {
            for_each_piece<MAX_ROWS<N>>(count, [&](int64_t first, auto size) {
                const float* from = fine + (corner + 2 * first) * c;
                for (int64_t column = 0; column < k; column += N * L)
                    multiply_pieces<decltype(size)::value, N, L>(from, 2 * c, pairs, 4, 2 * c, panels + column * rows,
                                                                 nullptr, out + (voxel + first) * k + column, k);
            });
        });
    });
}

// The fine float32 voxels of a chunk of coarse ones, where they belong. `bias`: null, or twice the channels' biases.
static void scatter_chunk(const Coarse& coarse, const float* in, int64_t chunk, const float* panels, const float* bias,
                          float* fine) {
    const int64_t c = coarse.layer.c, k = coarse.layer.k, pair = 2 * c, here = 0;
    with_panel(pair, [&](auto vectors, auto lanes) {
        constexpr int N = vectors.value, L = lanes.value;
        coarse.for_each_run(chunk, [&](int64_t voxel, int64_t count, int64_t corner) {
            for (int64_t column = 0; column < CORNERS * c; column += N * L) {
                float* to = fine + (corner + coarse.pair(column / pair)) * c + column % pair;
                const float *panel = panels + column * k, *start = bias ? bias + column % pair : bias;
                for_each_piece<MAX_ROWS<N>>(count, [&](int64_t first, auto size) {
                    multiply_pieces<decltype(size)::value, N, L>(in + (voxel + first) * k, k, &here, 1, k, panel, start,
                                                                 to + first * pair, pair);
                });
            }
        });
    });
}

static int64_t panel_width(int64_t columns) {
    int64_t width = 0;
    with_panel(columns, [&](auto vectors, auto lanes) { width = vectors.value * lanes.value; });
    return width;
}

// Adds the bias to the channels of `count` voxels one after the other, applies PReLU and stores them.
template <class T> static void finish_voxels(const Layer& layer, int64_t voxel, int64_t count, const float* values) {
    const int64_t k = layer.k;
    if (!layer.bias && !layer.slope) {
        T* to = (T*)layer.y + voxel * k;
        for (int64_t i = 0; i < count * k; i += 8) store<8>(to + i, load<8>(values + i));
        return;
    }
    with_lanes(k, [&](auto lanes) {
        constexpr int L = lanes.value;
        for (int64_t channel = 0; channel < k; channel += L) {
            Float<L> bias = layer.bias ? load<L>(layer.bias + channel) : Float<L>{};
            Float<L> slope = layer.slope ? load<L>(layer.slope + channel) : Float<L>{};
            for (int64_t i = 0; i < count; i++)
                finish<L, T>(layer, voxel + i, channel, load<L>(values + i * k + channel), bias, slope);
        }
    });
}

// x: fine, y: coarse
template <class T> static void gather(const Layer& layer) {
    const Coarse coarse(layer);
    const int64_t rows = CORNERS * layer.c, columns = layer.k, place = VOXELS * (rows + columns);
    float *panels = scratch((rows * columns + layer.threads * place) * 4), *places = panels + rows * columns;
    pack_panels(rows, columns, panel_width(columns), layer.threads, panels,
                [&](int64_t row, int64_t column) { return layer.weight[column * rows + row]; });
#pragma omp parallel for schedule(static) num_threads(layer.threads)
    for (int64_t chunk = 0; chunk < coarse.chunks(); chunk++) {
        float *in = places + omp_get_thread_num() * place, *out = in + VOXELS * rows;
        if constexpr (sizeof(T) == 4) {
            gather_chunk(coarse, (const T*)layer.x, chunk, panels, out);
        } else {
            load_fine(coarse, (const T*)layer.x, chunk, in);
            multiply_panels(in, coarse.count(chunk), rows, panels, columns, columns, out);
        }
        finish_voxels<T>(layer, chunk * VOXELS, coarse.count(chunk), out);
    }
}

// x: coarse, y: fine
template <class T> static void scatter(const Layer& layer) {
    const Coarse coarse(layer);
    Layer fine = layer;
    fine.k = layer.c;
    // a panel belongs to one pair of fine voxels
    const int64_t rows = layer.k, part = 2 * layer.c, columns = CORNERS * layer.c, place = VOXELS * (rows + columns);
    float* panels = scratch((rows * columns + part + layer.threads * place) * 4);
    float *biases = panels + rows * columns, *places = biases + part;
    pack_panels(rows, columns, panel_width(part), layer.threads, panels,
                [&](int64_t row, int64_t column) { return layer.weight[row * columns + column]; });
    for (int64_t i = 0; layer.bias && i < part; i++) biases[i] = layer.bias[i % layer.c];
#pragma omp parallel for schedule(static) num_threads(layer.threads)
    for (int64_t chunk = 0; chunk < coarse.chunks(); chunk++) {
        float *in = places + omp_get_thread_num() * place, *out = in + VOXELS * rows;
        if constexpr (sizeof(T) == 4) {
            if (!layer.slope) {
                scatter_chunk(coarse, (const T*)layer.x + chunk * VOXELS * rows, chunk, panels,
                              layer.bias ? biases : nullptr, (T*)layer.y);
                continue;
            }
        }
        load_coarse(coarse, (const T*)layer.x, chunk, in);
        multiply_panels(in, coarse.count(chunk), rows, panels, columns, part, out);
        coarse.for_each_run(chunk, [&](int64_t first, int64_t count, int64_t corner) {
            for (int64_t i = 0; i < count; i++)
                for (int pair = 0; pair < 4; pair++)
                    finish_voxels<T>(fine, corner + 2 * i + coarse.pair(pair), 2,
                                     out + ((first + i) * CORNERS + pair * 2) * fine.k);
        });
    }
}

// x: fine, y: coarse; one of them is a gradient. The sum of the outer products, K x 8 x C.
template <class T> static void strided_weight_gradient(const Layer& layer, float* grad) {
    const Coarse coarse(layer);
    const int64_t columns = CORNERS * layer.c, size = layer.k * columns, place = VOXELS * (layer.k + columns);
    // each place has the sums of its own chunks
    const int64_t places = std::min(layer.threads, coarse.chunks());
    float *sums = scratch(places * (size + place) * 4), *chunks = sums + places * size;
    with_panel(columns, [&](auto vectors, auto lanes) {
        constexpr int N = vectors.value, L = lanes.value;
#pragma omp parallel for schedule(static) num_threads(layer.threads)
        for (int64_t i = 0; i < places; i++) {
            float *fine = chunks + i * place, *values = fine + VOXELS * columns, *sum = sums + i * size;
            int64_t first = coarse.chunks() * i / places, last = coarse.chunks() * (i + 1) / places;
            for (int64_t chunk = first; chunk < last; chunk++) {
                load_fine(coarse, (const T*)layer.x, chunk, fine);
                load_coarse(coarse, (const T*)layer.y, chunk, values);
                for (int64_t column = 0; column < columns; column += N * L)
                    for_each_piece<MAX_ROWS<N>>(layer.k, [&](int64_t k, auto rows) {
                        multiply_outer<decltype(rows)::value, N, L>(values + k, layer.k, fine + column, columns,
                                                                    coarse.count(chunk), sum + k * columns + column,
                                                                    chunk == first);
                    });
            }
        }
    });
    sum_parts(sums, places, size, size, layer.threads);
    memcpy(grad, sums, size * 4);
}
