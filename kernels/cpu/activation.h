// PReLU of scale * (x - mean) + shift + residual, its gradients, and the statistics that normalisation needs.
//
// Mean, scale and shift are numbers for each channel of each volume: of a normalisation, or 0, 1 and a bias. A volume is cut into
// chunks of voxels, each of which has sums of its own in float32. They are added in float64, in the order of the chunks,
// so that the sums are the same bits for any number of threads.
#pragma once
#include <memory>

#include "transforms.h"

// voxels of a chunk: with 256 channels they are in the cache, and a sum of so many numbers is accurate
constexpr int64_t CHUNK = 512;

// Volumes N x V x C, all dense but for y and grad_y, which may be channels of wider ones. See cpu_activation.py.
struct Activation {
    const void *x, *residual, *grad_y;
    const float *mean, *scale, *shift, *factor, *slope;  // N x C; slope: C
    void *y, *grad_z;
    double* sums;  // N x 3 x C of the gradients, N x 2 x C of the statistics
    int64_t n, voxels, c;
    int64_t residual_channels, y_stride, threads;

    int64_t chunks() const { return (voxels + CHUNK - 1) / CHUNK; }
};

// calls function(volume, first voxel, voxels, chunk) for every chunk, in threads
template <class F> static void for_each_chunk(const Activation& layer, F function) {
#pragma omp parallel for schedule(static) num_threads(layer.threads)
    for (int64_t i = 0; i < layer.n * layer.chunks(); i++) {
        int64_t n = i / layer.chunks(), first = i % layer.chunks() * CHUNK;
        function(n, n * layer.voxels + first, std::min(CHUNK, layer.voxels - first), i);
    }
}

template <int L> INLINE Float<L> load_or(const float* p, int64_t offset, float otherwise) {
    return p ? load<L>(p + offset) : broadcast<L>(otherwise);
}

// The numbers of L channels of a volume.
template <int L> struct Numbers {
    Float<L> mean, scale, shift, slope;

    Numbers(const Activation& layer, int64_t n, int64_t channel)
        : mean(load_or<L>(layer.mean, n * layer.c + channel, 0)),
          scale(load_or<L>(layer.scale, n * layer.c + channel, 1)),
          shift(load_or<L>(layer.shift, n * layer.c + channel, 0)),
          slope(load_or<L>(layer.slope, channel, 1)) {}
};

// scale * (x - mean) + shift + residual of L channels of a voxel
template <int L, class T>
INLINE Float<L> before_activation(const Activation& layer, int64_t voxel, int64_t channel, Float<L> x,
                                  const Numbers<L>& numbers) {
    Float<L> z = (x - numbers.mean) * numbers.scale + numbers.shift;
    if (layer.residual) {
        const T* residual = (const T*)layer.residual;
        z += layer.residual_channels == 1 ? broadcast<L>(widened(residual[voxel]))
                                          : load<L>(residual + voxel * layer.c + channel);
    }
    return z;
}

template <int L, class T> static void activate(const Activation& layer) {
    for_each_chunk(layer, [&](int64_t n, int64_t first, int64_t count, int64_t) {
        for (int64_t channel = 0; channel < layer.c; channel += L) {
            const Numbers<L> numbers(layer, n, channel);
            for (int64_t voxel = first; voxel < first + count; voxel++) {
                Float<L> x = load<L>((const T*)layer.x + voxel * layer.c + channel);
                Float<L> z = before_activation<L, T>(layer, voxel, channel, x, numbers);
                store<L>((T*)layer.y + voxel * layer.y_stride + channel, z > 0.f ? z : z * numbers.slope);
            }
        }
    });
}

// Adds the parts of the chunks, `rows` x C floats each, to the sums of their volume.
static void add_parts(const Activation& layer, const float* parts, int64_t rows) {
    const int64_t size = rows * layer.c;
    memset(layer.sums, 0, layer.n * size * sizeof(double));
    for (int64_t i = 0; i < layer.n * layer.chunks(); i++)
        for (int64_t j = 0; j < size; j++) layer.sums[i / layer.chunks() * size + j] += parts[i * size + j];
}

// grad_z, and for each volume and channel the sums of grad_z, of grad_z * (x - mean) and of grad_y * z over z <= 0.
template <int L, class T> static void activate_backward(const Activation& layer) {
    std::unique_ptr<float[]> parts(new float[layer.n * layer.chunks() * 3 * layer.c]);
    for_each_chunk(layer, [&](int64_t n, int64_t first, int64_t count, int64_t chunk) {
        float* part = parts.get() + chunk * 3 * layer.c;
        for (int64_t channel = 0; channel < layer.c; channel += L) {
            const Numbers<L> numbers(layer, n, channel);
            Float<L> sum{}, moment{}, of_slope{};
            for (int64_t voxel = first; voxel < first + count; voxel++) {
                Float<L> x = load<L>((const T*)layer.x + voxel * layer.c + channel);
                Float<L> grad = load<L>((const T*)layer.grad_y + voxel * layer.y_stride + channel);
                Float<L> z = before_activation<L, T>(layer, voxel, channel, x, numbers);
                Float<L> grad_z = z > 0.f ? grad : grad * numbers.slope;
                of_slope += z > 0.f ? Float<L>{} : grad * z;
                sum += grad_z;
                moment += grad_z * (x - numbers.mean);
                store<L>((T*)layer.grad_z + voxel * layer.c + channel, grad_z);
            }
            store<L>(part + channel, sum);
            store<L>(part + layer.c + channel, moment);
            store<L>(part + 2 * layer.c + channel, of_slope);
        }
    });
    add_parts(layer, parts.get(), 3);
}

// The mean of each volume and channel, and the sum of the squares of the differences from it.
template <int L, class T> static void statistics(const Activation& layer) {
    // of each chunk and channel: its first value, the sum of differences from that, and the squares
    std::unique_ptr<float[]> parts(new float[layer.n * layer.chunks() * 3 * layer.c]);
    for_each_chunk(layer, [&](int64_t, int64_t first, int64_t count, int64_t chunk) {
        const T* x = (const T*)layer.x + first * layer.c;
        float* part = parts.get() + chunk * 3 * layer.c;
        for (int64_t channel = 0; channel < layer.c; channel += L) {
            Float<L> shift = load<L>(x + channel), sum{}, squares{};
            for (int64_t i = 0; i < count; i++) sum += load<L>(x + i * layer.c + channel) - shift;
            Float<L> mean = sum / (float)count;
            for (int64_t i = 0; i < count; i++) {
                Float<L> difference = load<L>(x + i * layer.c + channel) - shift - mean;
                squares += difference * difference;
            }
            store<L>(part + channel, shift);
            store<L>(part + layer.c + channel, sum);
            store<L>(part + 2 * layer.c + channel, squares);
        }
    });
    // the formula of Chan et al.
    for (int64_t n = 0; n < layer.n; n++)
        for (int64_t channel = 0; channel < layer.c; channel++) {
            double mean = 0, squares = 0, seen = 0;
            for (int64_t chunk = 0; chunk < layer.chunks(); chunk++) {
                const float* part = parts.get() + (n * layer.chunks() + chunk) * 3 * layer.c + channel;
                double count = std::min(CHUNK, layer.voxels - chunk * CHUNK);
                double difference = part[0] + part[layer.c] / count - mean;
                mean += difference * count / (seen + count);
                squares += part[2 * layer.c] + difference * difference * seen * count / (seen + count);
                seen += count;
            }
            layer.sums[n * 2 * layer.c + channel] = mean;
            layer.sums[(n * 2 + 1) * layer.c + channel] = squares;
        }
}

// y = scale * grad_z + factor * (x - mean) + shift: the gradient of normalisation, whose numbers the caller computes.
template <int L, class T> static void combine(const Activation& layer) {
    for_each_chunk(layer, [&](int64_t n, int64_t first, int64_t count, int64_t) {
        for (int64_t channel = 0; channel < layer.c; channel += L) {
            const Numbers<L> numbers(layer, n, channel);
            Float<L> factor = load<L>(layer.factor + n * layer.c + channel);
            for (int64_t i = first * layer.c + channel; i < (first + count) * layer.c; i += layer.c) {
                Float<L> grad = load<L>((const T*)layer.grad_z + i), x = load<L>((const T*)layer.x + i) - numbers.mean;
                store<L>((T*)layer.y + i, grad * numbers.scale + (x * factor + numbers.shift));
            }
        }
    });
}
