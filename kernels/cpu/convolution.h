// Convolutions 3x3x3 and 5x5x5 by nested minimal filtering, and of few channels directly. cpu_convolution.py says what
// they do.
#pragma once
#include "first_layer.h"
#include "lanes.h"
#include "weights.h"

// calls function with the Tiles of a filter and of a number of output slices
template <int TAPS, class F> static void with_depth(int64_t depth, F function) {
    if (depth == 1)
        function(Tiles<TAPS, 1>{});
    else if (depth == 2)
        function(Tiles<TAPS, 2>{});
    else
        function(Tiles<TAPS, 4>{});
}
template <class F> static void with_tiles(int64_t taps, int64_t depth, F function) {
    taps == 3 ? with_depth<3>(depth, function) : with_depth<5>(depth, function);
}

template <class S, class T> static void convolve(const Layer& layer) {
    const Blocks<S> blocks(layer);
    const int64_t size = blocks.input_size() + blocks.product_size();
    const int64_t own = blocks.depth_size(layer.c) + blocks.depth_size(2 * LANES);
    const int64_t threads = layer.threads, places = layer.shared ? 1 : threads;
    // whole lines of the cache for each thread
    const int64_t place = (size + 15) / 16 * 16;
    float* memory = scratch((places * place + threads * own) * 4);
    auto run = [&](int64_t index, float* in, Worker& worker) {
        float* out = in + blocks.input_size();
        Block block = blocks[index];
        with_lanes(layer.c, [&](auto lanes) { transform_input<S, lanes.value, T>(blocks, block, in, worker); });
        if (worker.threads > 1) {
#pragma omp barrier
        }
        with_panel(layer.k, [&](auto vectors, auto lanes) {
            multiply<S, vectors.value, lanes.value>(blocks, block, in, out, worker);
        });
        if (worker.threads > 1) {
#pragma omp barrier
        }
        with_lanes(layer.k, [&](auto lanes) { transform_output<S, lanes.value, T>(blocks, block, out, worker); });
        // the next block's inputs are not read by the outputs of this one
    };
#pragma omp parallel num_threads(threads)
    {
        int64_t number = omp_get_thread_num(), team = omp_get_num_threads();
        Worker worker{layer.shared ? number : 0, layer.shared ? team : 1, memory + places * place + number * own};
        if (layer.shared) {
            for (int64_t i = 0; i < blocks.count(); i++) run(i, memory, worker);
        } else {
#pragma omp for schedule(dynamic, 1)
            for (int64_t i = 0; i < blocks.count(); i++) run(i, memory + number * place, worker);
        }
        layer.extent[2 * number] = worker.largest;
        layer.extent[2 * number + 1] = worker.sum;
    }
}

template <class S, class T> static void weight_gradient(const Layer& layer, float* grad_weight) {
    const Blocks<S> blocks(layer);
    const int64_t grad_size = S::POINTS * S::DEPTH_TAPS * layer.c * layer.k;
    const int64_t own = blocks.depth_size(layer.c) + blocks.depth_size(layer.k);
    const int64_t size = (grad_size + blocks.input_size() + blocks.product_size() + 15) / 16 * 16;
    // each place has the sums of its own blocks
    const int64_t threads = layer.threads, places = layer.shared ? 1 : std::min(threads, blocks.count());
    float* memory = scratch((places * size + threads * own) * 4);
    auto run = [&](int64_t index, bool first, float* grad, Worker& worker) {
        Block block = blocks[index];
        float *in = grad + grad_size, *dy = in + blocks.input_size();
        with_lanes(layer.c, [&](auto lanes) { transform_input<S, lanes.value, T>(blocks, block, in, worker); });
        with_lanes(layer.k, [&](auto lanes) { transform_gradient<S, lanes.value, T>(blocks, block, dy, worker); });
        if (worker.threads > 1) {
#pragma omp barrier
        }
        with_panel(layer.c, [&](auto vectors, auto lanes) {
            accumulate<S, vectors.value, lanes.value>(blocks, block, in, dy, grad, first, worker);
        });
        if (worker.threads > 1) {
#pragma omp barrier
        }
    };
#pragma omp parallel num_threads(threads)
    {
        int64_t number = omp_get_thread_num(), team = omp_get_num_threads();
        Worker worker{layer.shared ? number : 0, layer.shared ? team : 1, memory + places * size + number * own};
        if (layer.shared) {
            for (int64_t i = 0; i < blocks.count(); i++) run(i, i == 0, memory, worker);
        } else {
            for (int64_t place = number; place < places; place += team) {
                int64_t first = blocks.count() * place / places, last = blocks.count() * (place + 1) / places;
                for (int64_t i = first; i < last; i++) run(i, i == first, memory + place * size, worker);
            }
        }
    }
    sum_parts(memory, places, size, grad_size, threads);
    with_lanes(layer.c, [&](auto lanes) {
        transform_weight_gradient<S, lanes.value>(memory, grad_weight, layer.c, layer.k, threads);
    });
}

template <int TAPS, class T> static void first_layer(const Layer& layer) {
    constexpr int CUBE = TAPS * TAPS * TAPS;
    const Padded<TAPS> padded(layer);
    float* weight = scratch((layer.c * CUBE * layer.k + padded.size()) * 4);
    float* in = weight + layer.c * CUBE * layer.k;
    for (int64_t i = 0; i < layer.c * CUBE * layer.k; i++) {
        int64_t k = i % layer.k, tap = i / layer.k % CUBE, channel = i / layer.k / CUBE;
        weight[i] = layer.weight[(k * CUBE + tap) * layer.c + channel];
    }
    const int64_t voxels = layer.d * layer.h * layer.w;
#pragma omp parallel num_threads(layer.threads)
    for (int64_t n = 0; n < layer.n; n++) {
        padded.fill((const T*)layer.x + n * voxels * layer.c, in);
        with_panel(layer.k, [&](auto vectors, auto lanes) {
#pragma omp for schedule(static)
            for (int64_t line = 0; line < layer.d * layer.h; line++)
                first_layer_row<TAPS, vectors.value, lanes.value, T>(padded, in, weight, n, line / layer.h,
                                                                     line % layer.h);
        });
    }
}

template <int TAPS, class T> static void first_layer_gradient(const Layer& layer, float* grad_weight) {
    constexpr int CUBE = TAPS * TAPS * TAPS;
    const Padded<TAPS> padded(layer);
    // for each thread, in whole lines of the cache
    const int64_t size = layer.c * CUBE * layer.k, part = (size + 15) / 16 * 16, lines = layer.d * layer.h;
    float* parts = scratch((layer.threads * part + padded.size()) * 4);
    float* in = parts + layer.threads * part;
    memset(parts, 0, layer.threads * part * 4);
#pragma omp parallel num_threads(layer.threads)
    for (int64_t n = 0; n < layer.n; n++) {
        padded.fill((const T*)layer.x + n * lines * layer.w * layer.c, in);
        with_panel(layer.k, [&](auto vectors, auto lanes) {
#pragma omp for schedule(static)
            for (int64_t place = 0; place < layer.threads; place++)
                for (int64_t line = lines * place / layer.threads; line < lines * (place + 1) / layer.threads; line++)
                    first_layer_gradient_row<TAPS, vectors.value, lanes.value, T>(
                        padded, in, parts + place * part, n, line / layer.h, line % layer.h);
        });
    }
    sum_parts(parts, layer.threads, part, part, layer.threads);
    for (int64_t i = 0; i < size; i++) {
        int64_t k = i % layer.k, tap = i / layer.k % CUBE, channel = i / layer.k / CUBE;
        grad_weight[(k * CUBE + tap) * layer.c + channel] = parts[i];
    }
}
