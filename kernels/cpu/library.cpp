// The functions of the library, which C can call.
//
// No function throws: each returns 0, or 1 if there is no memory.
#include "activation.h"
#include "convolution.h"
#include "direct.h"
#include "fingerprint.h"
#include "patches.h"
#include "strided.h"

#ifndef SOURCE_DIGEST
#define SOURCE_DIGEST ""
#endif

template <class F> static int guarded(F function) {
    try {
        function();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

// calls function with the lanes of an activation's channels, as a constant, and a value of the type of its volumes
template <class F> static int with_types(const Activation& layer, int half, F function) {
    return guarded([&] {
        with_lanes(layer.c, [&](auto lanes) { half ? function(lanes, bfloat16()) : function(lanes, float()); });
    });
}

extern "C" {
const char* vnet_fast_digest() { return SOURCE_DIGEST; }

// floats of a transformed weight
int64_t vnet_fast_weight_size(int64_t c, int64_t k, int64_t taps, int64_t depth) {
    return PLANE_POINTS * (depth > 1 ? depth + taps - 1 : taps) * c * k;
}

int vnet_fast_transform_weight(const float* weight, float* out, int64_t c, int64_t k, int64_t taps, int64_t depth,
                               int mirrored, int64_t threads) {
    return guarded([&] {
        advise_huge_pages(out, vnet_fast_weight_size(c, k, taps, depth) * 4);
        with_tiles(taps, depth, [&](auto tiles) {
            using S = decltype(tiles);
            with_lanes(mirrored ? c : k, [&](auto lanes) {
                transform_weight<S, lanes.value>(weight, out, c, k, mirrored, threads);
            });
        });
    });
}

int vnet_fast_fingerprint(const float* values, int64_t size, int64_t threads, uint64_t* out) {
    return guarded([&] { *out = fingerprint(values, size, threads); });
}

int vnet_fast_convolve(const Layer* layer, int64_t taps, int64_t depth, int half) {
    return guarded([&] {
        advise_huge_pages(layer->y, layer->n * layer->d * layer->h * layer->w * layer->k * (half ? 2 : 4));
        with_tiles(taps, depth, [&](auto tiles) {
            using S = decltype(tiles);
            half ? convolve<S, bfloat16>(*layer) : convolve<S, float>(*layer);
        });
    });
}

int vnet_fast_weight_gradient(const Layer* layer, float* grad_weight, int64_t taps, int64_t depth, int half) {
    return guarded([&] {
        with_tiles(taps, depth, [&](auto tiles) {
            using S = decltype(tiles);
            half ? weight_gradient<S, bfloat16>(*layer, grad_weight) : weight_gradient<S, float>(*layer, grad_weight);
        });
    });
}

int vnet_fast_first_layer(const Layer* layer, int64_t taps, int half) {
    return guarded([&] {
        advise_huge_pages(layer->y, layer->n * layer->d * layer->h * layer->w * layer->k * (half ? 2 : 4));
        with_tiles(taps, 1, [&](auto tiles) {
            constexpr int TAPS = decltype(tiles)::TAPS;
            half ? first_layer<TAPS, bfloat16>(*layer) : first_layer<TAPS, float>(*layer);
        });
    });
}

int vnet_fast_first_layer_gradient(const Layer* layer, float* grad_weight, int64_t taps, int half) {
    return guarded([&] {
        with_tiles(taps, 1, [&](auto tiles) {
            constexpr int TAPS = decltype(tiles)::TAPS;
            half ? first_layer_gradient<TAPS, bfloat16>(*layer, grad_weight)
                 : first_layer_gradient<TAPS, float>(*layer, grad_weight);
        });
    });
}

int vnet_fast_direct(const Layer* layer, int64_t taps, int mirrored, int half) {
    return guarded([&] { half ? direct<bfloat16>(*layer, taps, mirrored) : direct<float>(*layer, taps, mirrored); });
}

int vnet_fast_direct_weight_gradient(const Layer* layer, float* grad, int64_t taps, int half) {
    return guarded([&] {
        half ? direct_weight_gradient<bfloat16>(*layer, taps, grad) : direct_weight_gradient<float>(*layer, taps, grad);
    });
}

int vnet_fast_gather(const Layer* layer, int half) {
    return guarded([&] { half ? gather<bfloat16>(*layer) : gather<float>(*layer); });
}

int vnet_fast_scatter(const Layer* layer, int half) {
    advise_huge_pages(layer->y, layer->n * layer->d * layer->h * layer->w * CORNERS * layer->c * (half ? 2 : 4));
    return guarded([&] { half ? scatter<bfloat16>(*layer) : scatter<float>(*layer); });
}

int vnet_fast_strided_weight_gradient(const Layer* layer, float* grad, int half) {
    return guarded([&] {
        half ? strided_weight_gradient<bfloat16>(*layer, grad) : strided_weight_gradient<float>(*layer, grad);
    });
}

int vnet_fast_activate(const Activation* layer, int half) {
    return with_types(*layer, half, [&](auto lanes, auto type) { activate<lanes.value, decltype(type)>(*layer); });
}

int vnet_fast_activate_backward(const Activation* layer, int half) {
    advise_huge_pages(layer->grad_z, layer->n * layer->voxels * layer->c * (half ? 2 : 4));
    return with_types(*layer, half,
                      [&](auto lanes, auto type) { activate_backward<lanes.value, decltype(type)>(*layer); });
}

int vnet_fast_statistics(const Activation* layer, int half) {
    return with_types(*layer, half, [&](auto lanes, auto type) { statistics<lanes.value, decltype(type)>(*layer); });
}

int vnet_fast_combine(const Activation* layer, int half) {
    advise_huge_pages(layer->y, layer->n * layer->voxels * layer->c * (half ? 2 : 4));
    return with_types(*layer, half, [&](auto lanes, auto type) { combine<lanes.value, decltype(type)>(*layer); });
}

int vnet_fast_patches(const Patches* batch) {
    advise_huge_pages(batch->image, batch->n * batch->channels * batch->voxels() * 4);
    return guarded([&] { read_patches(*batch); });
}
}
