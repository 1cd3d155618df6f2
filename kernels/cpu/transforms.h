// The tiles of a block: from the volume to points of the transform, and back with the epilogue.
#pragma once
#include "blocks.h"
#include "toom_cook.h"

// The largest absolute value and the sum of the absolute values of what is seen, for each lane.
template <int L> struct Extent {
    Float<L> largest{}, sum{};

    inline __attribute__((always_inline)) void see(Float<L> value) {
        Float<L> size = value < 0.f ? -value : value;
        // NaN is not larger
        largest = size > largest ? size : largest;
        sum += size;
    }

    void add_to(Worker& worker) const {
        for (int i = 0; i < L; i++) {
            worker.largest = std::max<double>(worker.largest, largest[i]);
            worker.sum += sum[i];
        }
    }
};

// B^T of the 8x8 inputs of a tile of one slice, into 64 points, `step` floats apart; (h, w) of its first input may be
// outside. The inputs in its middle, which no other tile has there, are seen by `extent`, if there is one.
template <class S, int L, class T>
INLINE void plane_transform(const T* slice, const Layer& layer, int64_t h, int64_t w, int64_t channel, float* out,
                            int64_t step, Extent<L>* extent) {
    Float<L> half[PLANE_POINTS];
    bool inside = w >= 0 && w + TILE_INPUT <= layer.w;
    for (int i = 0; i < TILE_INPUT; i++) {
        if (h + i < 0 || h + i >= layer.h) {
            UNROLL for (int j = 0; j < TILE_INPUT; j++) half[i * TILE_INPUT + j] = Float<L>{};
            continue;
        }
        const T* row = slice + (h + i) * layer.w * layer.c + channel;
        Float<L> values[TILE_INPUT];
        if (inside) {
            UNROLL for (int j = 0; j < TILE_INPUT; j++) values[j] = load<L>(row + (w + j) * layer.c);
        } else {
            for (int j = 0; j < TILE_INPUT; j++)
                values[j] = w + j >= 0 && w + j < layer.w ? load<L>(row + (w + j) * layer.c) : Float<L>{};
        }
        if (extent && i >= S::PADDING && i < S::PADDING + S::TILE)
            UNROLL for (int j = S::PADDING; j < S::PADDING + S::TILE; j++) extent->see(values[j]);
        input_transform<TILE_INPUT>(values, 1, half + i * TILE_INPUT, 1);
    }
    UNROLL for (int j = 0; j < TILE_INPUT; j++) {
        Float<L> points[TILE_INPUT];
        input_transform<TILE_INPUT>(half + j, TILE_INPUT, points, 1);
        UNROLL for (int i = 0; i < TILE_INPUT; i++) store<L>(out + (i * TILE_INPUT + j) * step, points[i]);
    }
}

// The planes of a block's inputs, transformed along H and W: points x rows (slice, tile) x C.
template <class S, int L, class T>
static void transform_input(const Blocks<S>& blocks, const Block& block, float* out, Worker& worker) {
    const Layer& layer = blocks.layer;
    Extent<L> seen;
    const int64_t tiles = block.tiles(), plane = layer.h * layer.w * layer.c;
    const T* x = (const T*)layer.x + block.n * layer.d * plane;
    for (int64_t item = worker.number; item < block.slices * tiles; item += worker.threads) {
        int64_t d = block.first_d - S::PADDING + item / tiles, tile = item % tiles;
        int64_t h = (block.first_h + tile / block.wide) * S::TILE - S::PADDING;
        int64_t w = (block.first_w + tile % block.wide) * S::TILE - S::PADDING;
        float* row = out + item * layer.c;
        if (d < 0 || d >= layer.d) {
            for (int p = 0; p < PLANE_POINTS; p++) memset(row + p * blocks.input_stride, 0, layer.c * 4);
            continue;
        }
        // slices beyond those of the block's outputs are seen by its neighbours
        Extent<L>* extent = d >= block.first_d && d < block.first_d + layer.block_d ? &seen : nullptr;
        for (int64_t channel = 0; channel < layer.c; channel += L)
            plane_transform<S, L>(x + d * plane, layer, h, w, channel, row + channel, blocks.input_stride, extent);
    }
    seen.add_to(worker);
}

// Adds bias and residual to an output, applies PReLU, and stores it, with the bits of values that are not positive.
template <int L, class T>
INLINE void finish(const Layer& layer, int64_t voxel, int64_t channel, Float<L> z, Float<L> bias, Float<L> slope) {
    int64_t offset = voxel * layer.k + channel;
    z += bias;
    if (layer.residual) {
        const T* residual = (const T*)layer.residual;
        z += layer.residual_channels == 1 ? broadcast<L>(widened(residual[voxel])) : load<L>(residual + offset);
    }
    if (layer.slope) {
        auto positive = z > 0.f;
        if (layer.negative) store_bits<L>(layer.negative + offset / 8, ~positive);
        z = positive ? z : z * slope;
    }
    store<L>((T*)layer.y + offset, z);
}

// A^T of 64 points, `step` floats apart, into the outputs of a tile
template <class S, int L> INLINE void plane_outputs(const float* from, int64_t step, Float<L>* out) {
    Float<L> half[TILE_INPUT * S::TILE];
    UNROLL for (int i = 0; i < TILE_INPUT; i++) {
        Float<L> points[TILE_INPUT];
        UNROLL for (int j = 0; j < TILE_INPUT; j++) points[j] = load<L>(from + (i * TILE_INPUT + j) * step);
        output_transform<S::TILE, TILE_INPUT>(points, 1, half + i * S::TILE, 1);
    }
    UNROLL for (int j = 0; j < S::TILE; j++) output_transform<S::TILE, TILE_INPUT>(half + j, S::TILE, out + j, S::TILE);
}

// The outputs of a block from the planes of its products: points x rows (slice, tile) x K.
template <class S, int L, class T>
static void transform_output(const Blocks<S>& blocks, const Block& block, const float* products,
                             const Worker& worker) {
    const Layer& layer = blocks.layer;
    const int64_t tiles = block.tiles(), deep = std::min(block.deep * S::DEPTH, layer.d - block.first_d);
    for (int64_t row = worker.number; row < deep * tiles; row += worker.threads) {
        int64_t d = block.first_d + row / tiles, tile = row % tiles;
        int64_t h = (block.first_h + tile / block.wide) * S::TILE, w = (block.first_w + tile % block.wide) * S::TILE;
        int64_t high = std::min<int64_t>(S::TILE, layer.h - h), wide = std::min<int64_t>(S::TILE, layer.w - w);
        for (int64_t channel = 0; channel < layer.k; channel += L) {
            const float* from = products + row * layer.k + channel;
            Float<L> bias = layer.bias ? load<L>(layer.bias + channel) : Float<L>{};
            Float<L> slope = layer.slope ? load<L>(layer.slope + channel) : Float<L>{};
            Float<L> out[S::TILE * S::TILE];
            plane_outputs<S, L>(from, blocks.product_stride, out);
            for (int64_t i = 0; i < high; i++) {
                int64_t voxel = ((block.n * layer.d + d) * layer.h + h + i) * layer.w + w;
                for (int64_t j = 0; j < wide; j++)
                    finish<L, T>(layer, voxel + j, channel, out[i * S::TILE + j], bias, slope);
            }
        }
    }
}

// The planes of the gradients of a block's outputs, transformed along H and W (A dy; `y` of the layer is dy): points x
// rows (slice, tile) x K.
template <class S, int L, class T>
static void transform_gradient(const Blocks<S>& blocks, const Block& block, float* out, const Worker& worker) {
    const Layer& layer = blocks.layer;
    const int64_t tiles = block.tiles();
    for (int64_t row = worker.number; row < block.deep * S::DEPTH * tiles; row += worker.threads) {
        int64_t d = block.first_d + row / tiles, tile = row % tiles;
        int64_t h = (block.first_h + tile / block.wide) * S::TILE, w = (block.first_w + tile % block.wide) * S::TILE;
        float* to = out + row * layer.k;
        if (d >= layer.d) {
            for (int p = 0; p < PLANE_POINTS; p++) memset(to + p * blocks.product_stride, 0, layer.k * 4);
            continue;
        }
        for (int64_t channel = 0; channel < layer.k; channel += L) {
            Float<L> half[S::TILE * TILE_INPUT];
            for (int i = 0; i < S::TILE; i++) {
                Float<L> values[S::TILE];
                int64_t voxel = ((block.n * layer.d + d) * layer.h + h + i) * layer.w + w;
                const T* from = (const T*)layer.y + voxel * layer.k + channel;
                for (int j = 0; j < S::TILE; j++)
                    values[j] = h + i < layer.h && w + j < layer.w ? load<L>(from + j * layer.k) : Float<L>{};
                output_transposed<S::TILE, TILE_INPUT>(values, 1, half + i * TILE_INPUT, 1);
            }
            UNROLL for (int j = 0; j < TILE_INPUT; j++) {
                Float<L> points[TILE_INPUT];
                output_transposed<S::TILE, TILE_INPUT>(half + j, TILE_INPUT, points, 1);
                UNROLL for (int i = 0; i < TILE_INPUT; i++)
                    store<L>(to + (i * TILE_INPUT + j) * blocks.product_stride + channel, points[i]);
            }
        }
    }
}
