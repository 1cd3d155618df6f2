// Weights (K, 125, C), as channels-last memory has them, to points of the transform and back.
#pragma once
#include "products.h"
#include "toom_cook.h"

// G of the 125 taps of L channels, into DEPTH_TAPS x POINTS vectors, point by point
template <int DEPTH, int L> INLINE void transform_taps(const Float<L>* taps, Float<L>* out) {
    Float<L> planes[TAPS * PLANE_POINTS];
    for (int d = 0; d < TAPS; d++) {
        Float<L> half[TAPS * TILE_INPUT];
        for (int i = 0; i < TAPS; i++)
            weight_transform<TILE>(taps + (d * TAPS + i) * TAPS, 1, half + i * TILE_INPUT, 1);
        for (int j = 0; j < TILE_INPUT; j++)
            weight_transform<TILE>(half + j, TILE_INPUT, planes + d * PLANE_POINTS + j, TILE_INPUT);
    }
    for (int p = 0; p < PLANE_POINTS; p++) {
        if constexpr (DEPTH > 1)
            weight_transform<DEPTH>(planes + p, PLANE_POINTS, out + p, PLANE_POINTS);
        else
            UNROLL for (int d = 0; d < TAPS; d++) out[p * TAPS + d] = planes[d * PLANE_POINTS + p];
    }
}

// The transformed weight of a convolution of C to K channels: points x panels of K x taps x C x the panel's channels.
// With `mirrored`, of the gradient of its input: from K to C channels, the taps in reverse order.
template <int DEPTH, int L>
static void transform_weight(const float* weight, float* out, int64_t c, int64_t k, bool mirrored, int64_t threads) {
    const int64_t inputs = mirrored ? k : c, outputs = mirrored ? c : k, width = vectors_of(outputs, L) * L;
    const int64_t panels = outputs / width, panel = DEPTH_TAPS<DEPTH> * inputs * width, run = 8;
    const int64_t runs = (inputs + run - 1) / run;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < panels * runs * (width / L); item++) {
        int64_t output = item / runs * L;
        for (int64_t input = item % runs * run; input < std::min(inputs, (item % runs + 1) * run); input++) {
            Float<L> taps[TAPS * TAPS * TAPS], points[DEPTH_TAPS<DEPTH> * POINTS<DEPTH>];
            for (int tap = 0; tap < TAPS * TAPS * TAPS; tap++) {
                if (mirrored) {
                    taps[tap] = load<L>(weight + (input * 125 + 124 - tap) * c + output);
                } else {
                    for (int lane = 0; lane < L; lane++)
                        taps[tap][lane] = weight[((output + lane) * 125 + tap) * c + input];
                }
            }
            transform_taps<DEPTH, L>(taps, points);
            float* to = out + output / width * panel + input * width + output % width;
            for (int p = 0; p < POINTS<DEPTH>; p++)
                for (int tap = 0; tap < DEPTH_TAPS<DEPTH>; tap++)
                    store<L>(to + p * panels * panel + tap * inputs * width, points[p * DEPTH_TAPS<DEPTH> + tap]);
        }
    }
}

// The gradient of the weight, (K, 125, C), of that of the transformed one: points x taps x K x C.
template <int DEPTH, int L>
static void transform_weight_gradient(const float* grad, float* out, int64_t c, int64_t k, int64_t threads) {
    const int64_t size = k * c;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < size / L; item++) {
        int64_t output = item * L / c, channel = item * L % c;
        const float* from = grad + item * L;
        Float<L> planes[TAPS * PLANE_POINTS];
        for (int p = 0; p < PLANE_POINTS; p++) {
            if constexpr (DEPTH > 1) {
                Float<L> points[DEPTH_POINTS<DEPTH>];
                for (int q = 0; q < DEPTH_POINTS<DEPTH>; q++)
                    points[q] = load<L>(from + (q * PLANE_POINTS + p) * size);
                weight_transposed<DEPTH>(points, 1, planes + p, PLANE_POINTS);
            } else {
                for (int d = 0; d < TAPS; d++) planes[d * PLANE_POINTS + p] = load<L>(from + (p * TAPS + d) * size);
            }
        }
        for (int d = 0; d < TAPS; d++) {
            Float<L> half[TILE_INPUT * TAPS], taps[TAPS * TAPS];
            for (int i = 0; i < TILE_INPUT; i++)
                weight_transposed<TILE>(planes + d * PLANE_POINTS + i * TILE_INPUT, 1, half + i * TAPS, 1);
            for (int j = 0; j < TAPS; j++) weight_transposed<TILE>(half + j, TAPS, taps + j, TAPS);
            for (int tap = 0; tap < TAPS * TAPS; tap++)
                store<L>(out + (output * 125 + d * 25 + tap) * c + channel, taps[tap]);
        }
    }
}
