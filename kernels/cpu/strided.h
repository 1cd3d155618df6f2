// Convolutions 2x2x2 of stride 2 and their transposes, as matrix products of chunks of coarse voxels.
//
// A coarse voxel v with K channels belongs to eight fine ones with C. The weight is K x 8 x C for both directions.
//
//     gather:     coarse[v, k] = sum over t, c of fine[2 v + t, c] * weight[k, t, c]
//     scatter:    fine[2 v + t, c] = sum over k of coarse[v, k] * weight[k, t, c]
//
// Each is the gradient of the other's input, and the gradient of the weight is the sum of their outer products.
#pragma once
#include <omp.h>

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

    // the fine voxel of the first corner
    int64_t fine(int64_t voxel) const {
        int64_t w = voxel % layer.w, h = voxel / layer.w % layer.h, slice = voxel / layer.w / layer.h;
        return (slice * 2 * layer.h * 2 + h * 2) * layer.w * 2 + w * 2;
    }
    // from the first corner to the first of each pair along W
    int64_t pair(int i) const { return (i / 2 * layer.h * 2 + i % 2) * layer.w * 2; }
};

template <int L, class T> INLINE void widen(const T* from, int64_t size, float* to) {
    for (int64_t i = 0; i < size; i += L) store<L>(to + i, load<L>(from + i));
}

// the eight fine voxels of each voxel of a chunk: voxels x 8 x C
template <class T> static void load_fine(const Coarse& coarse, const T* fine, int64_t chunk, float* out) {
    const int64_t c = coarse.layer.c;
    for (int64_t i = 0; i < coarse.count(chunk); i++) {
        const T* corner = fine + coarse.fine(chunk * VOXELS + i) * c;
        for (int pair = 0; pair < 4; pair++)
            widen<8>(corner + coarse.pair(pair) * c, 2 * c, out + (i * CORNERS + pair * 2) * c);
    }
}

template <class T> static void load_coarse(const Coarse& coarse, const T* volume, int64_t chunk, float* out) {
    const int64_t k = coarse.layer.k;
    widen<8>(volume + chunk * VOXELS * k, coarse.count(chunk) * k, out);
}

// A matrix of `rows` rows, `columns` columns, as panels of columns; element (row, column) is given by `at`.
template <class F> static void pack_panels(int64_t rows, int64_t columns, int64_t width, float* out, F at) {
    for (int64_t panel = 0; panel < columns; panel += width)
        for (int64_t row = 0; row < rows; row++)
            for (int64_t i = 0; i < width; i++) *out++ = at(row, panel + i);
}

// out (count x columns) = in (count x rows) times a matrix in panels
static void multiply_panels(const float* in, int64_t count, int64_t rows, const float* panels, int64_t columns,
                            float* out) {
    with_panel(columns, [&](auto vectors, auto lanes) {
        constexpr int N = vectors.value, L = lanes.value;
        for (int64_t column = 0; column < columns; column += N * L)
            for_each_piece<MAX_ROWS<N>>(count, [&](int64_t first, auto size) {
                multiply_rows<decltype(size)::value, N, L>(in + first * rows, rows, 0, 1, panels + column * rows,
                                                           out + first * columns + column, columns);
            });
    });
}

static int64_t panel_width(int64_t columns) {
    int64_t width = 0;
    with_panel(columns, [&](auto vectors, auto lanes) { width = vectors.value * lanes.value; });
    return width;
}

// Adds the bias to the channels of a voxel, applies PReLU and stores it.
template <class T> static void finish_voxel(const Layer& layer, int64_t voxel, const float* values) {
    with_lanes(layer.k, [&](auto lanes) {
        constexpr int L = lanes.value;
        for (int64_t channel = 0; channel < layer.k; channel += L) {
            Float<L> bias = layer.bias ? load<L>(layer.bias + channel) : Float<L>{};
            Float<L> slope = layer.slope ? load<L>(layer.slope + channel) : Float<L>{};
            finish<L, T>(layer, voxel, channel, load<L>(values + channel), bias, slope);
        }
    });
}

// x: fine, y: coarse
template <class T> static void gather(const Layer& layer) {
    const Coarse coarse(layer);
    const int64_t rows = CORNERS * layer.c, columns = layer.k, place = VOXELS * (rows + columns);
    float *panels = scratch((rows * columns + layer.threads * place) * 4), *places = panels + rows * columns;
    pack_panels(rows, columns, panel_width(columns), panels,
                [&](int64_t row, int64_t column) { return layer.weight[column * rows + row]; });
#pragma omp parallel for schedule(static) num_threads(layer.threads)
    for (int64_t chunk = 0; chunk < coarse.chunks(); chunk++) {
        float *in = places + omp_get_thread_num() * place, *out = in + VOXELS * rows;
        load_fine(coarse, (const T*)layer.x, chunk, in);
        multiply_panels(in, coarse.count(chunk), rows, panels, columns, out);
        for (int64_t i = 0; i < coarse.count(chunk); i++)
            finish_voxel<T>(layer, chunk * VOXELS + i, out + i * columns);
    }
}

// x: coarse, y: fine
template <class T> static void scatter(const Layer& layer) {
    const Coarse coarse(layer);
    Layer fine = layer;
    fine.k = layer.c;
    const int64_t rows = layer.k, columns = CORNERS * layer.c, place = VOXELS * (rows + columns);
    float *panels = scratch((rows * columns + layer.threads * place) * 4), *places = panels + rows * columns;
    pack_panels(rows, columns, panel_width(columns), panels,
                [&](int64_t row, int64_t column) { return layer.weight[row * columns + column]; });
#pragma omp parallel for schedule(static) num_threads(layer.threads)
    for (int64_t chunk = 0; chunk < coarse.chunks(); chunk++) {
        float *in = places + omp_get_thread_num() * place, *out = in + VOXELS * rows;
        load_coarse(coarse, (const T*)layer.x, chunk, in);
        multiply_panels(in, coarse.count(chunk), rows, panels, columns, out);
        for (int64_t i = 0; i < coarse.count(chunk); i++)
            for (int corner = 0; corner < CORNERS; corner++) {
                int64_t voxel = coarse.fine(chunk * VOXELS + i) + coarse.pair(corner / 2) + corner % 2;
                finish_voxel<T>(fine, voxel, out + (i * CORNERS + corner) * layer.c);
            }
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
