// The transforms along the depth, of one point of the transform along H and W at a time: its planes are rows (slice,
// tile) of channels, and a tile's column of them becomes DEPTH_POINTS points, or DEPTH slices again.
//
// The values of one point stay in the cache between the transform and the products.
#pragma once
#include "blocks.h"
#include "lanes.h"
#include "toom_cook.h"

// B^T: slices of inputs to points x rows (depth, tile) x C, whose points are `step` apart
template <class S>
static void depth_of_inputs(const float* planes, const Block& block, int64_t c, float* out, int64_t step) {
    const int64_t slice = block.tiles() * c;
    with_lanes(c, [&](auto lanes) {
        constexpr int L = lanes.value;
        for (int64_t z = 0; z < block.deep; z++)
            for (int64_t i = 0; i < slice; i += L) {
                Float<L> values[S::DEPTH_POINTS], points[S::DEPTH_POINTS];
                UNROLL for (int q = 0; q < S::DEPTH_POINTS; q++)
                    values[q] = load<L>(planes + (z * S::DEPTH + q) * slice + i);
                input_transform<S::DEPTH_POINTS>(values, 1, points, 1);
                UNROLL for (int q = 0; q < S::DEPTH_POINTS; q++) store<L>(out + q * step + z * slice + i, points[q]);
            }
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

// A: slices of the outputs' gradients to points x rows (depth, tile) x K
template <class S>
static void depth_of_gradients(const float* planes, const Block& block, int64_t k, float* out, int64_t step) {
    const int64_t slice = block.tiles() * k;
    with_lanes(k, [&](auto lanes) {
        constexpr int L = lanes.value;
        for (int64_t z = 0; z < block.deep; z++)
            for (int64_t i = 0; i < slice; i += L) {
                Float<L> values[S::DEPTH], points[S::DEPTH_POINTS];
                UNROLL for (int s = 0; s < S::DEPTH; s++)
                    values[s] = load<L>(planes + (z * S::DEPTH + s) * slice + i);
                output_transposed<S::DEPTH, S::DEPTH_POINTS>(values, 1, points, 1);
                UNROLL for (int q = 0; q < S::DEPTH_POINTS; q++) store<L>(out + q * step + z * slice + i, points[q]);
            }
    });
}
