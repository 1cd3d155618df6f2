// Weights (K, taps, C), as channels-last memory has them, to points of the transform and back.
#pragma once
#include "products.h"
#include "toom_cook.h"

// G of the taps of L channels, into DEPTH_TAPS x POINTS vectors, point by point
template <class S, int L> INLINE void transform_taps(const Float<L>* taps, Float<L>* out) {
    Float<L> planes[S::TAPS * PLANE_POINTS];
    for (int d = 0; d < S::TAPS; d++) {
        Float<L> half[S::TAPS * TILE_INPUT];
        for (int i = 0; i < S::TAPS; i++)
            weight_transform<TILE_INPUT, S::TAPS>(taps + (d * S::TAPS + i) * S::TAPS, 1, half + i * TILE_INPUT, 1);
        for (int j = 0; j < TILE_INPUT; j++)
            weight_transform<TILE_INPUT, S::TAPS>(half + j, TILE_INPUT, planes + d * PLANE_POINTS + j, TILE_INPUT);
    }
    for (int p = 0; p < PLANE_POINTS; p++) {
        if constexpr (S::DEPTH > 1)
            weight_transform<S::DEPTH_POINTS, S::TAPS>(planes + p, PLANE_POINTS, out + p, PLANE_POINTS);
        else
            UNROLL for (int d = 0; d < S::TAPS; d++) out[p * S::TAPS + d] = planes[d * PLANE_POINTS + p];
    }
}

// The transformed weight of a convolution of C to K channels: points x panels of K x taps x C x the panel's channels.
// With `mirrored`, of the gradient of its input: from K to C channels, the taps in reverse order.
template <class S, int L>
static void transform_weight(const float* weight, float* out, int64_t c, int64_t k, bool mirrored, int64_t threads) {
    const int64_t inputs = mirrored ? k : c, outputs = mirrored ? c : k, width = vectors_of(outputs, L) * L;
    const int64_t panels = outputs / width, panel = S::DEPTH_TAPS * inputs * width, run = 8;
    const int64_t runs = (inputs + run - 1) / run;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < panels * runs * (width / L); item++) {
        int64_t output = item / runs * L;
        for (int64_t input = item % runs * run; input < std::min(inputs, (item % runs + 1) * run); input++) {
            Float<L> taps[S::CUBE], points[S::DEPTH_TAPS * S::POINTS];
            for (int tap = 0; tap < S::CUBE; tap++) {
                if (mirrored) {
                    taps[tap] = load<L>(weight + (input * S::CUBE + S::CUBE - 1 - tap) * c + output);
                } else {
                    for (int lane = 0; lane < L; lane++)
                        taps[tap][lane] = weight[((output + lane) * S::CUBE + tap) * c + input];
                }
            }
            transform_taps<S, L>(taps, points);
            float* to = out + output / width * panel + input * width + output % width;
            for (int p = 0; p < S::POINTS; p++)
                for (int tap = 0; tap < S::DEPTH_TAPS; tap++)
                    store<L>(to + p * panels * panel + tap * inputs * width, points[p * S::DEPTH_TAPS + tap]);
        }
    }
}

// The gradient of the weight, (K, taps, C), of that of the transformed one: points x taps x K x C.
template <class S, int L>
static void transform_weight_gradient(const float* grad, float* out, int64_t c, int64_t k, int64_t threads) {
    const int64_t size = k * c;
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t item = 0; item < size / L; item++) {
        int64_t output = item * L / c, channel = item * L % c;
        const float* from = grad + item * L;
        Float<L> planes[S::TAPS * PLANE_POINTS];
        for (int p = 0; p < PLANE_POINTS; p++) {
            if constexpr (S::DEPTH > 1) {
                Float<L> points[S::DEPTH_POINTS];
                for (int q = 0; q < S::DEPTH_POINTS; q++)
                    points[q] = load<L>(from + (q * PLANE_POINTS + p) * size);
                weight_transposed<S::DEPTH_POINTS, S::TAPS>(points, 1, planes + p, PLANE_POINTS);
            } else {
                for (int d = 0; d < S::TAPS; d++) planes[d * PLANE_POINTS + p] = load<L>(from + (p * S::TAPS + d) * size);
            }
        }
        for (int d = 0; d < S::TAPS; d++) {
            Float<L> half[TILE_INPUT * S::TAPS], taps[S::TAPS * S::TAPS];
            for (int i = 0; i < TILE_INPUT; i++)
                weight_transposed<TILE_INPUT, S::TAPS>(planes + d * PLANE_POINTS + i * TILE_INPUT, 1, half + i * S::TAPS, 1);
            for (int j = 0; j < S::TAPS; j++) weight_transposed<TILE_INPUT, S::TAPS>(half + j, S::TAPS, taps + j, S::TAPS);
            for (int tap = 0; tap < S::TAPS * S::TAPS; tap++)
                store<L>(out + (output * S::CUBE + d * S::TAPS * S::TAPS + tap) * c + channel, taps[tap]);
        }
    }
}
