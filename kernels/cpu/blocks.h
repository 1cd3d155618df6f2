// How a volume is cut into blocks of tiles, and the memory that a block needs.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#include "vectors.h"

// points of the transform along H and W, and in a plane: as many inputs as a tile has
constexpr int TILE_INPUT = 8, PLANE_POINTS = TILE_INPUT * TILE_INPUT;

// The tiles of a filter of TAPS taps along each axis: TILE x TILE outputs along H and W, and DEPTH output slices. Along
// the depth there are the points of F(DEPTH, TAPS); with one slice the depth is direct: taps, which the product sums.
template <int TAPS_, int DEPTH_> struct Tiles {
    static constexpr int TAPS = TAPS_, DEPTH = DEPTH_, PADDING = TAPS / 2, CUBE = TAPS * TAPS * TAPS;
    static constexpr int TILE = TILE_INPUT - TAPS + 1;
    static constexpr int DEPTH_POINTS = DEPTH > 1 ? DEPTH + TAPS - 1 : 1, POINTS = DEPTH_POINTS * PLANE_POINTS;
    static constexpr int DEPTH_TAPS = DEPTH > 1 ? 1 : TAPS;
};

// A convolution of (N, C, D, H, W) to (N, K, D, H, W), all channels-last. See cpu_convolution.py.
struct Layer {
    const void* x;
    const float* weight;  // transformed
    const float* bias;
    const void* residual;
    const float* slope;
    void* y;
    uint8_t* negative;
    double* extent;  // two numbers of x for each thread: the largest absolute value and their sum
    int64_t n, d, h, w, c, k;
    int64_t residual_channels;  // 1, for every channel, or K
    // of a block: output slices, a multiple of DEPTH, and tiles along H and W
    int64_t block_d, block_h, block_w;
    // whether all threads work on one block at a time, or each on its own
    int64_t shared, threads;
};

// A block: where it begins, in slices and tiles, and how much of it is inside the volume.
struct Block {
    int64_t n, first_d, first_h, first_w, slices, high, wide, deep;
    int64_t tiles() const { return high * wide; }
};

template <class S> struct Blocks {
    const Layer& layer;
    int64_t along_d, along_h, along_w, tiles_h, tiles_w, input_rows, product_rows, input_stride, product_stride;

    explicit Blocks(const Layer& layer) : layer(layer) {
        tiles_h = (layer.h + S::TILE - 1) / S::TILE;
        tiles_w = (layer.w + S::TILE - 1) / S::TILE;
        along_d = (layer.d + layer.block_d - 1) / layer.block_d;
        along_h = (tiles_h + layer.block_h - 1) / layer.block_h;
        along_w = (tiles_w + layer.block_w - 1) / layer.block_w;
        int64_t tiles = layer.block_h * layer.block_w;
        product_rows = layer.block_d * tiles;
        input_rows = (layer.block_d + 2 * S::PADDING) * tiles;
        // points that lie a power of two apart would share the few places of one set of the cache
        input_stride = input_rows * layer.c + 16;
        product_stride = product_rows * layer.k + 16;
    }

    int64_t count() const { return layer.n * along_d * along_h * along_w; }

    Block operator[](int64_t index) const {
        Block block;
        block.first_w = index % along_w * layer.block_w;
        index /= along_w;
        block.first_h = index % along_h * layer.block_h;
        index /= along_h;
        block.first_d = index % along_d * layer.block_d;
        block.n = index / along_d;
        block.wide = std::min(layer.block_w, tiles_w - block.first_w);
        block.high = std::min(layer.block_h, tiles_h - block.first_h);
        int64_t there = std::min(layer.block_d, layer.d - block.first_d);
        block.deep = (there + S::DEPTH - 1) / S::DEPTH;
        block.slices = block.deep * S::DEPTH + 2 * S::PADDING;
        return block;
    }

    // floats: the planes of transformed inputs, and those of products
    int64_t input_size() const { return PLANE_POINTS * input_stride; }
    int64_t product_size() const { return PLANE_POINTS * product_stride; }

    // between the points along the depth of one point of a plane, with so many columns
    int64_t depth_stride(int64_t columns) const { return product_rows / S::DEPTH * columns + 16; }
    // floats of all of these, in whole lines of the cache
    int64_t depth_size(int64_t columns) const {
        return S::DEPTH > 1 ? (S::DEPTH_POINTS * depth_stride(columns) + 15) / 16 * 16 : 0;
    }
};

// A thread of those that share the work on a block: its number, how many they are, and its own memory for the points
// along the depth. It keeps the largest absolute input that it has seen and the sum of the absolute ones.
struct Worker {
    int64_t number, threads;
    float* memory;
    double largest = 0, sum = 0;

    // this worker's share of a number of items
    int64_t first(int64_t items) const { return items * number / threads; }
    int64_t last(int64_t items) const { return items * (number + 1) / threads; }
};

constexpr int64_t HUGE_PAGE = 2 << 20;

// Asks for huge pages where whole ones fit: the first writes to 100 MB of small pages take longer than a convolution.
static inline void advise_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    uintptr_t first = ((uintptr_t)memory + HUGE_PAGE - 1) & ~(uintptr_t)(HUGE_PAGE - 1);
    uintptr_t last = ((uintptr_t)memory + bytes) & ~(uintptr_t)(HUGE_PAGE - 1);
    if (first < last) madvise((void*)first, last - first, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

// Memory that a thread which calls keeps between calls, at least `bytes`.
// Throws std::bad_alloc.
static inline float* scratch(int64_t bytes) {
    struct Kept {
        void* memory = nullptr;
        int64_t size = 0;
        ~Kept() { free(memory); }
    };
    static thread_local Kept kept;
    if (kept.size < bytes) {
        free(kept.memory);
        kept.size = 0;
        int64_t size = (bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
        kept.memory = aligned_alloc(HUGE_PAGE, size);
        if (!kept.memory) throw std::bad_alloc();
        advise_huge_pages(kept.memory, size);
        kept.size = size;
    }
    return (float*)kept.memory;
}
