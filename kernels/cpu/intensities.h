// Other intensities of a run of voxels: noise, brightness, contrast and gamma. See vnet_fast/ops/intensities.py.
#pragma once
#include <cfloat>

#include "places.h"

// columns of a row of numbers, see vnet_fast/ops/transform_rows.py
constexpr int CELLS_COLUMN = 12, NOISE = 16, SEED = 17, BRIGHTNESS = 19, CONTRAST = 20, GAMMA = 21, INVERTED = 22;
constexpr int FIELDS = 23;
// of Philox 4x32
constexpr int ROUNDS = 10;
// numbers of a counter
constexpr int NUMBERS = 4;

typedef Float<LANES> Values;
typedef typename Vector<LANES>::Bits Words;
typedef typename Vector<LANES>::Mask Ints;

INLINE Values as_float(Words bits) { return (Values)bits; }

// The upper and the lower half of the products of 32 bits.
INLINE void multiply(Words x, uint32_t factor, Words& high, Words& low) {
    uint32_t from[LANES], upper[LANES];
    memcpy(from, &x, sizeof x);
    for (int i = 0; i < LANES; i++) upper[i] = (uint32_t)(((uint64_t)from[i] * factor) >> 32);
    memcpy(&high, upper, sizeof high);
    low = x * factor;
}

// The four words of each counter, by Philox 4x32 with 10 rounds (Salmon et al. 2011).
INLINE void random_words(uint32_t seed, Words counter, Words (&words)[NUMBERS]) {
    words[0] = counter, words[1] = words[2] = words[3] = Words{};
    uint32_t key = seed, other = 0;
    UNROLL for (int round = 0; round < ROUNDS; round++) {
        Words high, low, other_high, other_low;
        multiply(words[0], 0xD2511F53, high, low);
        multiply(words[2], 0xCD9E8D57, other_high, other_low);
        words[0] = other_high ^ words[1] ^ key;
        words[1] = other_low;
        words[2] = high ^ words[3] ^ other;
        words[3] = low;
        key += 0x9E3779B9, other += 0xBB67AE85;
    }
}

INLINE Values square_root(Values x) {
    float numbers[LANES];
    memcpy(numbers, &x, sizeof x);
    for (int i = 0; i < LANES; i++) numbers[i] = __builtin_sqrtf(numbers[i]);
    memcpy(&x, numbers, sizeof x);
    return x;
}

// The natural logarithm of positive numbers, to a few units in the last place (Cephes).
INLINE Values logarithm(Values x) {
    Words bits = (Words)x;
    // the mantissa from 1 / sqrt(2) to sqrt(2)
    Ints exponent = (Ints)(bits - 0x3f3504f3) >> 23;
    x = as_float(bits - ((Words)exponent << 23)) - 1.f;
    Values n = __builtin_convertvector(exponent, Values), square = x * x;
    Values y = x * 7.0376836292e-2f - 1.1514610310e-1f;
    y = y * x + 1.1676998740e-1f;
    y = y * x - 1.2420140846e-1f;
    y = y * x + 1.4249322787e-1f;
    y = y * x - 1.6668057665e-1f;
    y = y * x + 2.0000714765e-1f;
    y = y * x - 2.4999993993e-1f;
    y = y * x + 3.3333331174e-1f;
    y = y * x * square - n * 2.12194440e-4f - 0.5f * square;
    return x + y + n * 0.693359375f;
}

// e to numbers from -87 to 0, likewise.
INLINE Values exponential(Values x) {
    Ints n = __builtin_convertvector(x * 1.44269504089f - 0.5f, Ints);
    Values whole = __builtin_convertvector(n, Values);
    x = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    Values y = x * 1.9875691500e-4f + 1.3981999507e-3f;
    y = y * x + 8.3334519073e-3f;
    y = y * x + 4.1665795894e-2f;
    y = y * x + 1.6666665459e-1f;
    y = y * x + 5.0000001201e-1f;
    return (y * x * x + x + 1.f) * as_float((Words)(n + 127) << 23);
}

// Cosine and sine of a turn in 2^-24 of a whole one, by Taylor's series of the nearest quarter turn.
INLINE void cosine_and_sine(Words turn, Values& cosine, Values& sine) {
    Words quarter = (turn + (1 << 21)) >> 22;
    Values angle = __builtin_convertvector((Ints)(turn - (quarter << 22)), Values) * (1.5707963267948966f / 4194304);
    Values square = angle * angle;
    Values s = 1.f / 5040 - square * (1.f / 362880), c = 1.f / 720 - square * (1.f / 40320);
    s = angle * (1.f - square * (1.f / 6 - square * (1.f / 120 - square * s)));
    c = 1.f - square * (0.5f - square * (1.f / 24 - square * c));
    Ints odd = (quarter & 1) != 0;
    cosine = odd ? s : c, sine = odd ? c : s;
    cosine = ((quarter + 1) & 2) != 0 ? -cosine : cosine;
    sine = (quarter & 2) != 0 ? -sine : sine;
}

// Two standard normal numbers of each pair of words (Box and Muller 1958).
INLINE void normal_numbers(Words radius, Words turn, Values& first, Values& second) {
    // the upper 24 bits, which float32 holds exactly
    Values share = __builtin_convertvector((Ints)((radius >> 8) + 1), Values) * (1.f / 16777216);
    Values length = square_root(-2.f * logarithm(share));
    cosine_and_sine(turn >> 8, first, second);
    first *= length, second *= length;
}

// Adds noise to a run that begins at a voxel, the number of which is a multiple of four.
static void add_noise(float deviation, uint32_t seed, int64_t voxel, int64_t count, float* values) {
    Words lanes;
    UNROLL for (int i = 0; i < LANES; i++) lanes[i] = i;
    for (int64_t i = 0; i < count; i += NUMBERS * LANES) {
        Words words[NUMBERS];
        Values numbers[NUMBERS];
        random_words(seed, lanes + (uint32_t)((voxel + i) / NUMBERS), words);
        normal_numbers(words[0], words[1], numbers[0], numbers[1]);
        normal_numbers(words[2], words[3], numbers[2], numbers[3]);
        float parts[NUMBERS][LANES];
        memcpy(parts, numbers, sizeof parts);
        for (int lane = 0; lane < LANES; lane++)
            UNROLL for (int part = 0; part < NUMBERS; part++)
                values[i + lane * NUMBERS + part] += deviation * parts[part][lane];
    }
}

// Changes the intensities of a run as a row of numbers says.
//
// low, high: the ends of the volume's range. voxel: the number of the first voxel in its patch, a multiple of RUN.
// values: with room for as many more as one vector has of counters.
static void change_intensities(const float* row, float low, float high, int64_t voxel, int64_t count, float* values) {
    if (row[NOISE] > 0)
        add_noise(row[NOISE], (uint32_t)row[SEED] + ((uint32_t)row[SEED + 1] << 16), voxel, count, values);
    const float brightness = row[BRIGHTNESS], contrast = row[CONTRAST], gamma = row[GAMMA];
    const bool inverted = row[INVERTED] != 0;
    if (brightness == 1 && contrast == 1 && gamma == 1) return;
    const float scale = brightness * std::min(contrast, 1.f), bottom = scale * low;
    const float spread = std::max(scale * (high - low), FLT_MIN);
    const Values darkest = broadcast<LANES>(brightness * low), brightest = broadcast<LANES>(brightness * high);
    const Values zero{}, one = broadcast<LANES>(1);
    for (int64_t i = 0; i < count; i += LANES) {
        Values value = load<LANES>(values + i) * brightness;
        if (contrast != 1) {
            value *= contrast;
            value = value > darkest ? value : darkest;
            value = value < brightest ? value : brightest;
        }
        if (gamma != 1) {
            Values share = (value - bottom) / spread;
            share = share > zero ? share : zero;
            share = share < one ? share : one;
            if (inverted) share = 1.f - share;
            Values power = gamma * logarithm(share > 0.f ? share : one);
            power = exponential(power > -87.f ? power : broadcast<LANES>(-87));
            share = share > 0.f ? power : zero;
            value = bottom + spread * (inverted ? 1.f - share : share);
        }
        store<LANES>(values + i, value);
    }
}
