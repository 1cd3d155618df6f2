// The transforms along the depth, of one point of the transform along H and W at a time: its planes are rows (slice,
// tile) of channels, and a tile's column of them becomes DEPTH_POINTS points, or DEPTH slices again.
//
// The values of one point stay in the cache between the transform and the products.
#pragma once
#include "blocks.h"
#include "lanes.h"
#include "toom_cook.h"

// SLICES slices of planes to points x rows (depth, tile) x `channels`, whose points are `step` apart, by a transform
template <class S, int SLICES, class F>
INLINE void depth_of_planes(const float* planes, const Block& block, int64_t channels, float* out, int64_t step,
                            F transform) {
    const int64_t slice = block.tiles() * channels;
    with_lanes(channels, [&](auto lanes) {
        constexpr int L = lanes.value;
        for (int64_t z = 0; z < block.deep; z++)
            for (int64_t i = 0; i < slice; i += L) {
                Float<L> values[SLICES], points[S::DEPTH_POINTS];
                UNROLL for (int s = 0; s < SLICES; s++) values[s] = load<L>(planes + (z * S::DEPTH + s) * slice + i);
                transform(values, points);
                UNROLL for (int q = 0; q < S::DEPTH_POINTS; q++) store<L>(out + q * step + z * slice + i, points[q]);
            }
    });
}

// B^T: slices of inputs
template <class S>
static void depth_of_inputs(const float* planes, const Block& block, int64_t c, float* out, int64_t step) {
    depth_of_planes<S, S::DEPTH_POINTS>(planes, block, c, out, step, [](const auto* values, auto* points) {
        input_transform<S::DEPTH_POINTS>(values, 1, points, 1);
    });
}

// A: slices of the outputs' gradients
template <class S>
static void depth_of_gradients(const float* planes, const Block& block, int64_t k, float* out, int64_t step) {
    depth_of_planes<S, S::DEPTH>(planes, block, k, out, step, [](const auto* values, auto* points) {
        output_transposed<S::DEPTH, S::DEPTH_POINTS>(values, 1, points, 1);
    });
}

// A^T: points x rows (depth, tile) x `columns`, to slices of the outputs, whose rows are K floats apart
template <class S, int L>
static void depth_of_outputs(const float* products, int64_t step, const Block& block, int64_t columns, float* out,
                             int64_t k) {
    const int64_t tiles = block.tiles();
    for (int64_t z = 0; z < block.deep; z++)
        for (int64_t tile = 0; tile < tiles; tile++, products += columns, out += k)
            for (int64_t column = 0; column < columns; column += L) {
                Float<L> points[S::DEPTH_POINTS], values[S::DEPTH];
                UNROLL for (int q = 0; q < S::DEPTH_POINTS; q++) points[q] = load<L>(products + q * step + column);
                output_transform<S::DEPTH, S::DEPTH_POINTS>(points, 1, values, 1);
                UNROLL for (int s = 0; s < S::DEPTH; s++)
                    store<L>(out + (z * (S::DEPTH - 1) + s) * tiles * k + column, values[s]);
            }
}
