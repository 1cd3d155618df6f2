// Convolutions 3x3x3 and 5x5x5 of a few channels, such as the image, to many: direct sums, and the gradient of their
// weight.
//
// A copy of a volume, channel by channel, has zeros around it, so that no loop looks for the border. A row of outputs
// is computed in registers: R voxels times N vectors of channels.
#pragma once
#include "products.h"
#include "transforms.h"

// A volume of C channels with zeros around it, as a filter of TAPS taps reads it: C x (D + TAPS - 1) x (H + TAPS - 1) x
// `row` floats.
template <int TAPS> struct Padded {
    static constexpr int PADDING = TAPS / 2;
    const Layer& layer;
    // beyond a row of outputs, the last of which may be computed with others that are not there
    int64_t row, plane, volume;

    explicit Padded(const Layer& layer) : layer(layer) {
        row = layer.w + 2 * PADDING + 16;
        plane = (layer.h + 2 * PADDING) * row;
        volume = (layer.d + 2 * PADDING) * plane;
    }
    int64_t size() const { return layer.c * volume; }

    template <class T> void fill(const T* x, float* out) const {
#pragma omp for schedule(static)
        for (int64_t line = 0; line < (layer.d + 2 * PADDING) * (layer.h + 2 * PADDING); line++) {
            int64_t d = line / (layer.h + 2 * PADDING) - PADDING, h = line % (layer.h + 2 * PADDING) - PADDING;
            bool inside = d >= 0 && d < layer.d && h >= 0 && h < layer.h;
            for (int64_t channel = 0; channel < layer.c; channel++) {
                float* to = out + channel * volume + line * row;
                memset(to, 0, row * 4);
                const T* from = x + ((d * layer.h + h) * layer.w) * layer.c + channel;
                for (int64_t w = 0; inside && w < layer.w; w++) to[PADDING + w] = widened(from[w * layer.c]);
            }
        }
    }
};

// R outputs of a row, N vectors of their channels, from the padded input (channel, kd, kh) at the first output
template <int TAPS, int R, int N, int L>
INLINE void sum_taps(const Padded<TAPS>& padded, const float* in, const float* weight, int64_t weight_row,
                     Float<L> (&sum)[R][N]) {
    for (int64_t channel = 0; channel < padded.layer.c; channel++)
        for (int kd = 0; kd < TAPS; kd++)
            for (int kh = 0; kh < TAPS; kh++) {
                const float* from = in + channel * padded.volume + kd * padded.plane + kh * padded.row;
                NO_UNROLL for (int kw = 0; kw < TAPS; kw++, weight += weight_row) {
                    FORGET_LOADS;
                    Float<L> columns[N];
                    UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(weight + n * L);
                    UNROLL for (int r = 0; r < R; r++) {
                        Float<L> value = broadcast<L>(from[r + kw]);
                        UNROLL for (int n = 0; n < N; n++) sum[r][n] += value * columns[n];
                    }
                }
            }
}

// The outputs of one row of voxels (d, h) of volume n, with the epilogue. `weight`: C x taps x K.
template <int TAPS, int N, int L, class T>
static void first_layer_row(const Padded<TAPS>& padded, const float* in, const float* weight, int64_t n, int64_t d,
                            int64_t h) {
    constexpr int R = MAX_ROWS<N>;
    const Layer& layer = padded.layer;
    int64_t voxel = ((n * layer.d + d) * layer.h + h) * layer.w;
    const float* line = in + d * padded.plane + h * padded.row;
    for (int64_t k = 0; k < layer.k; k += N * L)
        for (int64_t w = 0; w < layer.w; w += R) {
            Float<L> sum[R][N] = {};
            sum_taps<TAPS, R, N, L>(padded, line + w, weight + k, layer.k, sum);
            // an array that is indexed by a variable is not in registers
            float values[R][N * L];
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int i = 0; i < N; i++) store<L>(values[r] + i * L, sum[r][i]);
            int64_t wide = std::min<int64_t>(R, layer.w - w);
            for (int vector = 0; vector < N; vector++) {
                int64_t channel = k + vector * L;
                Float<L> bias = layer.bias ? load<L>(layer.bias + channel) : Float<L>{};
                Float<L> slope = layer.slope ? load<L>(layer.slope + channel) : Float<L>{};
                for (int64_t r = 0; r < wide; r++)
                    finish<L, T>(layer, voxel + w + r, channel, load<L>(values[r] + vector * L), bias, slope);
            }
        }
}

// Adds a row's part to the gradient of the weight, C x taps x K: G rows of taps (kh) at a time.
template <int TAPS, int G, int N, int L, class T>
INLINE void add_taps(const Padded<TAPS>& padded, const float* in, const T* dy, int64_t k, float* grad) {
    Float<L> sum[G * TAPS][N];
    UNROLL for (int i = 0; i < G * TAPS; i++)
        UNROLL for (int n = 0; n < N; n++) sum[i][n] = load<L>(grad + i * k + n * L);
    for (int64_t w = 0; w < padded.layer.w; w++, dy += k) {
        Float<L> columns[N];
        UNROLL for (int n = 0; n < N; n++) columns[n] = load<L>(dy + n * L);
        UNROLL for (int i = 0; i < G * TAPS; i++) {
            Float<L> value = broadcast<L>(in[i / TAPS * padded.row + i % TAPS + w]);
            UNROLL for (int n = 0; n < N; n++) sum[i][n] += value * columns[n];
        }
    }
    UNROLL for (int i = 0; i < G * TAPS; i++)
        UNROLL for (int n = 0; n < N; n++) store<L>(grad + i * k + n * L, sum[i][n]);
}

template <int TAPS, int N, int L, class T>
static void first_layer_gradient_row(const Padded<TAPS>& padded, const float* in, float* grad, int64_t n, int64_t d,
                                     int64_t h) {
    const Layer& layer = padded.layer;
    const T* dy = (const T*)layer.y + ((n * layer.d + d) * layer.h + h) * layer.w * layer.k;
    constexpr int G = std::min(TAPS, std::max(1, (REGISTERS - N - 1) / (TAPS * N)));
    for (int64_t k = 0; k < layer.k; k += N * L)
        for (int64_t channel = 0; channel < layer.c; channel++)
            for (int64_t kd = 0; kd < TAPS; kd++) {
                const float* line = in + channel * padded.volume + (d + kd) * padded.plane + h * padded.row;
                float* to = grad + ((channel * TAPS + kd) * TAPS * TAPS) * layer.k + k;
                int kh = 0;
                for (; kh + G <= TAPS; kh += G)
                    add_taps<TAPS, G, N, L>(padded, line + kh * padded.row, dy + k, layer.k, to + kh * TAPS * layer.k);
                for (; kh < TAPS; kh++)
                    add_taps<TAPS, 1, N, L>(padded, line + kh * padded.row, dy + k, layer.k, to + kh * TAPS * layer.k);
            }
}
