// Runs the CPU's kernels on tensors that end where their memory ends, for the sanitizers, and compares them with sums.
#include <cmath>
#include <cstdio>
#include <memory>
#include <random>

#include "library.cpp"

struct Tensor {
    int64_t n, d, h, w, c;
    // of its exact size, so that nothing beyond it is accessible
    std::unique_ptr<float[]> data;

    Tensor(int64_t n, int64_t d, int64_t h, int64_t w, int64_t c)
        : n(n), d(d), h(h), w(w), c(c), data(new float[size()]) {}
    int64_t size() const { return n * d * h * w * c; }
    float at(int64_t i, int64_t z, int64_t y, int64_t x, int64_t channel) const {
        bool inside = z >= 0 && z < d && y >= 0 && y < h && x >= 0 && x < w;
        return inside ? data[(((i * d + z) * h + y) * w + x) * c + channel] : 0;
    }
};

static std::mt19937 generator(0);

static void fill(float* data, int64_t size) {
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < size; i++) data[i] = normal(generator);
}

static bool is_near(const float* found, const std::vector<double>& exact) {
    double error = 0, norm = 0;
    for (size_t i = 0; i < exact.size(); i++) {
        error += (found[i] - exact[i]) * (found[i] - exact[i]);
        norm += exact[i] * exact[i];
    }
    return error <= 1e-8 * norm;
}

constexpr int64_t FIRST_LAYER = 0, DIRECT = -1;

// whether the gradient of the input of a layer, by direct sums, stays in its memory; tests of PyTorch look at its values
static bool has_input_gradient(Layer layer, const Tensor& weight, int64_t taps) {
    Tensor grad(layer.n, layer.d, layer.h, layer.w, layer.c);
    layer.x = layer.y, layer.weight = weight.data.get(), layer.y = grad.data.get();
    layer.bias = layer.slope = nullptr, layer.negative = nullptr;
    std::swap(layer.c, layer.k);
    return vnet_fast_direct(&layer, taps, 1, 0) == 0;
}

// whether output and gradient of the weight of a layer are those of the sums, by tiles of a depth, as a first layer or
// by direct sums
static bool is_right(int64_t d, int64_t h, int64_t w, int64_t c, int64_t k, int64_t taps, int64_t depth, bool shared) {
    Tensor x(2, d, h, w, c), y(2, d, h, w, k), weight(k, taps, taps, taps, c), grad(k, taps, taps, taps, c);
    const int64_t cube = taps * taps * taps, reach = taps / 2;
    const bool filtered = depth > 0;
    int64_t size = filtered ? vnet_fast_weight_size(c, k, taps, depth) : 1;
    fill(x.data.get(), x.size());
    fill(weight.data.get(), weight.size());
    std::unique_ptr<float[]> transformed(new float[size]), bias(new float[k]);
    std::unique_ptr<uint8_t[]> negative(new uint8_t[y.size() / 8]);
    // so many share the channels of a point; a block of the others has several tiles along the depth
    const int64_t threads = shared ? 9 : 3, block_d = shared ? 4 : 8;
    std::unique_ptr<double[]> extent(new double[2 * threads]());
    fill(bias.get(), k);
    if (filtered) vnet_fast_transform_weight(weight.data.get(), transformed.get(), c, k, taps, depth, 0, 3);
    std::vector<double> exact(y.size()), exact_grad(grad.size());
    Layer layer{x.data.get(), filtered ? transformed.get() : weight.data.get(), bias.get(), nullptr, bias.get(), y.data.get(), negative.get(),
                extent.get(), 2, d, h, w, c, k, 0, block_d, 2, 1, shared, threads};
    bool right = (filtered          ? vnet_fast_convolve(&layer, taps, depth, 0)
                  : depth == DIRECT ? vnet_fast_direct(&layer, taps, 0, 0)
                                    : vnet_fast_first_layer(&layer, taps, 0)) == 0;
    for (int64_t i = 0, at = 0; i < 2; i++)
        for (int64_t z = 0; z < d; z++)
            for (int64_t row = 0; row < h; row++)
                for (int64_t column = 0; column < w; column++)
                    for (int64_t output = 0; output < k; output++, at++) {
                        double sum = bias[output];
                        for (int64_t tap = 0; tap < cube; tap++)
                            for (int64_t channel = 0; channel < c; channel++) {
                                double value = x.at(i, z + tap / taps / taps - reach, row + tap / taps % taps - reach,
                                                    column + tap % taps - reach, channel);
                                sum += value * weight.data[(output * cube + tap) * c + channel];
                                exact_grad[(output * cube + tap) * c + channel] += value * y.data[at];
                            }
                        exact[at] = sum > 0 ? sum : sum * bias[output];
                    }
    right = right && is_near(y.data.get(), exact);
    // of the output itself as the gradient
    float* to = grad.data.get();
    right = right && (filtered          ? vnet_fast_weight_gradient(&layer, to, taps, depth, 0)
                      : depth == DIRECT ? vnet_fast_direct_weight_gradient(&layer, to, taps, 0)
                                        : vnet_fast_first_layer_gradient(&layer, to, taps, 0)) == 0;
    right = right && (depth != DIRECT || has_input_gradient(layer, weight, taps));
    return right && is_near(to, exact_grad);
}

// adds biases and applies PReLU, whose slopes are the biases too, as the kernels do; null is none of it
static void finish_exactly(std::vector<double>& exact, const float* bias, const float* slope, int64_t channels) {
    for (size_t i = 0; i < exact.size(); i++) {
        exact[i] += bias ? bias[i % channels] : 0;
        exact[i] *= slope && exact[i] <= 0 ? slope[i % channels] : 1;
    }
}

// whether both directions of stride 2 and the gradient of their weight are those of the sums
static bool is_right_strided(int64_t d, int64_t h, int64_t w, int64_t c, int64_t k, bool with_bias, bool with_slope) {
    Tensor fine(2, 2 * d, 2 * h, 2 * w, c), coarse(2, d, h, w, k), weight(k, 2, 2, 2, c), grad(k, 2, 2, 2, c);
    Tensor gathered(2, d, h, w, k), scattered(2, 2 * d, 2 * h, 2 * w, c);
    Tensor of_coarse(1, 1, 1, 1, k), of_fine(1, 1, 1, 1, c);
    for (Tensor* tensor : {&fine, &coarse, &weight, &of_coarse, &of_fine}) fill(tensor->data.get(), tensor->size());
    std::vector<double> exact(gathered.size()), exact_fine(scattered.size()), exact_grad(grad.size());
    for (int64_t i = 0; i < 2 * d * h * w; i++)
        for (int64_t corner = 0; corner < 8; corner++) {
            int64_t z = i / w / h * 2 + corner / 4, y = i / w % h * 2 + corner / 2 % 2, x = i % w * 2 + corner % 2;
            int64_t voxel = (z * 2 * h + y) * 2 * w + x;
            for (int64_t output = 0; output < k; output++)
                for (int64_t channel = 0; channel < c; channel++) {
                    int64_t at = (output * 8 + corner) * c + channel;
                    double value = fine.data[voxel * c + channel], other = coarse.data[i * k + output];
                    exact[i * k + output] += value * weight.data[at];
                    exact_fine[voxel * c + channel] += other * weight.data[at];
                    exact_grad[at] += value * other;
                }
        }
    auto layer = [&](const Tensor& x, const Tensor& y, const Tensor& numbers) {
        const float *bias = with_bias ? numbers.data.get() : nullptr, *slope = with_slope ? numbers.data.get() : nullptr;
        return Layer{x.data.get(), weight.data.get(), bias, nullptr, slope, y.data.get(), nullptr, nullptr,
                     2, d, h, w, c, k, 0, 0, 0, 0, 0, 3};
    };
    Layer down = layer(fine, gathered, of_coarse), up = layer(coarse, scattered, of_fine);
    Layer outer = layer(fine, coarse, of_coarse);
    finish_exactly(exact, down.bias, down.slope, k);
    finish_exactly(exact_fine, up.bias, up.slope, c);
    return vnet_fast_gather(&down, 0) == 0 && vnet_fast_scatter(&up, 0) == 0 &&
           vnet_fast_strided_weight_gradient(&outer, grad.data.get(), 0) == 0 && is_near(gathered.data.get(), exact) &&
           is_near(scattered.data.get(), exact_fine) && is_near(grad.data.get(), exact_grad);
}

// whether the activation of channels that lie between others, and its gradients, are those of the formula
static bool is_right_activation(int64_t voxels, int64_t c) {
    Tensor x(2, 1, 1, voxels, c), wide(2, 1, 1, voxels, 2 * c), grad_z(2, 1, 1, voxels, c), slope(1, 1, 1, 1, c);
    fill(x.data.get(), x.size());
    fill(wide.data.get(), wide.size());
    fill(slope.data.get(), c);
    std::unique_ptr<double[]> sums(new double[2 * 3 * c]);
    std::vector<double> exact(x.size()), exact_sums(2 * 3 * c);
    for (int64_t i = 0; i < x.size(); i++) {
        int64_t voxel = i / c, channel = i % c, sum = voxel / voxels * 3 * c + channel;
        double z = x.data[i], grad = wide.data[voxel * 2 * c + channel];
        exact[i] = z > 0 ? grad : grad * slope.data[channel];
        exact_sums[sum] += exact[i];
        exact_sums[sum + c] += exact[i] * z;
        exact_sums[sum + 2 * c] += z > 0 ? 0 : grad * z;
    }
    Activation layer{};
    layer.x = x.data.get(), layer.grad_y = wide.data.get(), layer.slope = slope.data.get();
    layer.grad_z = grad_z.data.get(), layer.sums = sums.get();
    layer.n = 2, layer.voxels = voxels, layer.c = c, layer.y_stride = 2 * c, layer.threads = 3;
    if (vnet_fast_activate_backward(&layer, 0) || !is_near(grad_z.data.get(), exact)) return false;
    for (int64_t i = 0; i < 2 * 3 * c; i++)
        if (std::abs(sums[i] - exact_sums[i]) > 1e-3) return false;
    layer.y = wide.data.get();
    return vnet_fast_activate(&layer, 0) == 0 && vnet_fast_statistics(&layer, 0) == 0;
}

// A batch of two patches of two channels, and what they are read from, each of its exact size.
struct Batch {
    int64_t n = 2, channels = 2, voxels, stored;
    std::unique_ptr<uint16_t[]> ranks;
    std::unique_ptr<float[]> tables, points, rows, image;
    std::unique_ptr<uint8_t[]> masks, deformed, mask;
    std::vector<int64_t> places, cases{1, 0}, intensities_of{0, 1};

    Batch(const int64_t* size, const int64_t* patch)
        : voxels(patch[0] * patch[1] * patch[2]), stored(size[0] * size[1] * size[2]),
          ranks(new uint16_t[2 * channels * stored]), tables(new float[2 * channels * RANK_LEVELS]),
          points(new float[n * 2 * PLANE * POINTS]), rows(new float[n * channels * FIELDS]),
          image(new float[n * channels * voxels]), masks(new uint8_t[2 * stored]), deformed(new uint8_t[n]),
          mask(new uint8_t[n * voxels]), places{0, size[0], size[1], size[2], stored, size[0], size[1], size[2]} {
        for (int64_t i = 0; i < 2 * channels * stored; i++) ranks[i] = (uint16_t)generator();
        for (int64_t i = 0; i < 2 * stored; i++) masks[i] = (uint8_t)(generator() % 3);
        // of which an interpolated value is exact: the rank itself
        for (int64_t i = 0; i < 2 * channels * RANK_LEVELS; i++) tables[i] = (float)(i % RANK_LEVELS);
        fill(points.get(), n * 2 * PLANE * POINTS);
    }

    // map: 3 x 4. cells: of all voxels less than these
    void set(const float* map, const int64_t* size, int64_t less, bool deforms, float changes) {
        for (int64_t row = 0; row < n * channels; row++) {
            float* to = rows.get() + row * FIELDS;
            std::copy(map, map + 12, to);
            for (int axis = 0; axis < 3; axis++) to[12 + axis] = (float)std::max(size[2 - axis] - 1 - less, (int64_t)0);
            const float columns[] = {1, changes, 123, 456, 1 + changes, 1 + changes, 1 + changes, changes};
            std::copy(columns, columns + 8, to + 15);
        }
        std::fill(deformed.get(), deformed.get() + n, deforms);
    }

    Patches arguments(const int64_t* patch) const {
        return {ranks.get(), tables.get(), masks.get(), places.data(), cases.data(), intensities_of.data(),
                deformed.get(), points.get(), rows.get(), image.get(), mask.get(), n, channels, patch[0], patch[1],
                patch[2], 3};
    }
};

// whether patches are those of the formula where a volume is read at whole voxels, and stay in their memory elsewhere
static bool is_right_batch(const int64_t* size, const int64_t* patch) {
    Batch batch(size, patch);
    const float far = 1e30f, shifted[] = {1, 0, 0, -2, 0, 1, 0, 3, 0, 0, -1, 1}, nan = std::nanf("");
    const float maps[][12] = {{.9f, -.3f, .1f, 2, .3f, .9f, -.1f, -1, .1f, -.1f, 1.1f, .5f},
                              {far, 0, 0, -far, 0, -far, 0, 0, 0, 0, 1, far}, {nan, 0, 0, 0, 0, nan, 0, 1, 0, 0, 1, nan}};
    for (auto& map : maps)
        for (int64_t less : {0, 1, 3}) {
            batch.set(map, size, less, less != 1, .3f);
            Patches arguments = batch.arguments(patch);
            if (vnet_fast_patches(&arguments)) return false;
        }
    batch.set(shifted, size, 0, false, 0);
    Patches arguments = batch.arguments(patch);
    if (vnet_fast_patches(&arguments)) return false;
    for (int64_t n = 0; n < batch.n; n++)
        for (int64_t i = 0; i < batch.voxels; i++) {
            const int64_t lengths[] = {patch[2], patch[1]}, x = i % lengths[0], y = i / lengths[0] % lengths[1];
            auto inside = [&](int64_t place, int axis) { return std::min(std::max(place, (int64_t)0), size[axis] - 1); };
            const int64_t from = (inside(1 - i / lengths[0] / lengths[1], 0) * size[1] + inside(y + 3, 1)) * size[2] +
                                 inside(x - 2, 2), volume = batch.cases[n] * batch.stored;
            if (batch.mask[n * batch.voxels + i] != batch.masks[volume + from]) return false;
            for (int64_t channel = 0; channel < batch.channels; channel++)
                if (batch.image[(n * batch.channels + channel) * batch.voxels + i] !=
                    (float)batch.ranks[volume * batch.channels + channel * batch.stored + from])
                    return false;
        }
    return true;
}

int main() {
    int cases = 0;
    const int64_t sizes[][3] = {{1, 1, 1}, {3, 5, 7}, {5, 4, 9}}, channels[][2] = {{8, 16}, {16, 8}, {24, 8}, {32, 24}, {1, 16}, {3, 8}};
    for (auto [d, h, w] : sizes)
        for (auto [c, k] : channels)
            for (int64_t depth : {DIRECT, FIRST_LAYER, (int64_t)1, (int64_t)2, (int64_t)4})
                for (bool shared : {false, true}) {
                    if ((depth == FIRST_LAYER) != (c < 8) || (depth == DIRECT && shared)) continue;
                    for (int64_t taps : {3, 5}) {
                        if (!is_right(d, h, w, c, k, taps, depth, shared)) {
                            fprintf(stderr, "%ldx%ldx%ld, %ld to %ld, %ld taps, %ld slices\n", d, h, w, c, k, taps, depth);
                            return 1;
                        }
                        cases++;
                    }
                }
    for (auto [d, h, w] : sizes)
        for (auto [c, k] : channels)
            if (c >= 8) {
                bool right = is_right_activation(d * h * w * 13, c);
                for (int numbers = 0; numbers < 3; numbers++, cases++)
                    right = right && is_right_strided(d, h, w, c, k, numbers > 0, numbers > 1);
                if (!right) {
                    fprintf(stderr, "%ldx%ldx%ld, %ld and %ld\n", d, h, w, c, k);
                    return 1;
                }
            }
    const int64_t volumes[][3] = {{1, 1, 1}, {3, 5, 1}, {1, 4, 9}, {2, 1, 7}, {9, 11, 13}};
    const int64_t patches[][3] = {{1, 1, 1}, {2, 3, 5}, {3, 17, 33}};
    for (auto& size : volumes)
        for (auto& patch : patches) {
            if (!is_right_batch(size, patch)) {
                fprintf(stderr, "patches %ldx%ldx%ld\n", size[0], size[1], size[2]);
                return 1;
            }
            cases++;
        }
    printf("%d cases\n", cases);
}
