// The transforms of minimal filtering F(M, 5): M outputs of a filter of five taps from M + 4 products.
//
//     y = A^T ((G w) * (B^T x))        x: M + 4 inputs, w: 5 taps, y: M outputs
//
// A polynomial of degree M + 3 is the product of two of lower degree, evaluated at 0, at pairs +a and -a, and at
// infinity, and interpolated. Each pair shares the even and the odd part of its sums.
//
//     F(4, 5): a = 1/2, 1, 2        F(2, 5): a = 2/3, 3/2
//
// These pairs have the smallest error among fourteen rational candidates. Nested along axes, the errors multiply.
// The gradient of the weight needs the transposes: dw = G^T ((A dy) * (B^T x)).
//
// Source: Toom 1963, Cook 1966, Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308.
#pragma once
#include "vectors.h"

template <int M> struct Points;
template <> struct Points<4> {
    static constexpr int PAIRS = 3;
    static constexpr float a(int i) { return i == 0 ? .5f : i == 1 ? 1.f : 2.f; }
};
template <> struct Points<2> {
    static constexpr int PAIRS = 2;
    static constexpr float a(int i) { return i == 0 ? 2.f / 3 : 1.5f; }
};

// B^T x: M + 4 values, `step` vectors apart, to M + 4
template <int M, class V> INLINE void input_transform(const V* x, int step, V* out, int out_step) {
    if constexpr (M == 4) {
        constexpr float A = .25f, B = 1.f, C = 4.f, sum1 = A + B + C, sum2 = A * B + A * C + B * C, sum3 = A * B * C;
        V x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
        V x4 = x[4 * step], x5 = x[5 * step], x6 = x[6 * step], x7 = x[7 * step];
        out[0] = (x6 - sum1 * x4) + (sum2 * x2 - sum3 * x0);
        out[7 * out_step] = (x7 - sum1 * x5) + (sum2 * x3 - sum3 * x1);
        V even = x6 - (B + C) * x4 + (B * C) * x2;
        V odd = .5f * x5 - (.5f * (B + C)) * x3 + (.5f * B * C) * x1;
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        even = x6 - (A + C) * x4 + (A * C) * x2;
        odd = x5 - (A + C) * x3 + (A * C) * x1;
        out[3 * out_step] = even + odd;
        out[4 * out_step] = even - odd;
        even = x6 - (A + B) * x4 + (A * B) * x2;
        odd = 2.f * x5 - (2.f * (A + B)) * x3 + (2.f * A * B) * x1;
        out[5 * out_step] = even + odd;
        out[6 * out_step] = even - odd;
    } else {
        constexpr float a = Points<2>::a(0), b = Points<2>::a(1), A = a * a, B = b * b;
        V x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step], x5 = x[5 * step];
        out[0] = x4 - (A + B) * x2 + (A * B) * x0;
        out[5 * out_step] = x5 - (A + B) * x3 + (A * B) * x1;
        V even = x4 - B * x2, odd = a * x3 - (a * B) * x1;
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        even = x4 - A * x2;
        odd = b * x3 - (b * A) * x1;
        out[3 * out_step] = even + odd;
        out[4 * out_step] = even - odd;
    }
}

// A^T m: M + 4 products to M outputs
template <int M, class V> INLINE void output_transform(const V* m, int step, V* out, int out_step) {
    V a = m[step], b = m[2 * step], c = m[3 * step], d = m[4 * step];
    if constexpr (M == 4) {
        V e = m[5 * step], f = m[6 * step];
        V sum1 = a + b, sum2 = c + d, sum3 = e + f, difference1 = a - b, difference2 = c - d, difference3 = e - f;
        out[0] = m[0] + sum1 + sum2 + sum3;
        out[out_step] = .5f * difference1 + difference2 + 2.f * difference3;
        out[2 * out_step] = .25f * sum1 + sum2 + 4.f * sum3;
        out[3 * out_step] = .125f * difference1 + difference2 + 8.f * difference3 + m[7 * step];
    } else {
        out[0] = m[0] + (a + b) + (c + d);
        out[out_step] = Points<2>::a(0) * (a - b) + Points<2>::a(1) * (c - d) + m[5 * step];
    }
}

// A y: M values to M + 4, the transpose of the above
template <int M, class V> INLINE void output_transposed(const V* y, int step, V* out, int out_step) {
    V y0 = y[0], y1 = y[step];
    if constexpr (M == 4) {
        V y2 = y[2 * step], y3 = y[3 * step];
        out[0] = y0;
        out[7 * out_step] = y3;
        V even = y0 + .25f * y2, odd = .5f * y1 + .125f * y3;
        out[out_step] = even + odd;
        out[2 * out_step] = even - odd;
        even = y0 + y2;
        odd = y1 + y3;
        out[3 * out_step] = even + odd;
        out[4 * out_step] = even - odd;
        even = y0 + 4.f * y2;
        odd = 2.f * y1 + 8.f * y3;
        out[5 * out_step] = even + odd;
        out[6 * out_step] = even - odd;
    } else {
        out[0] = y0;
        out[5 * out_step] = y1;
        V odd = Points<2>::a(0) * y1;
        out[out_step] = y0 + odd;
        out[2 * out_step] = y0 - odd;
        odd = Points<2>::a(1) * y1;
        out[3 * out_step] = y0 + odd;
        out[4 * out_step] = y0 - odd;
    }
}

// the factors of G: 1 / product of the differences of a point to all others
template <int M> constexpr float factor(int pair) {
    float a = Points<M>::a(pair), product = 2 * a * a;
    for (int j = 0; j < Points<M>::PAIRS; j++)
        if (j != pair) product *= a * a - Points<M>::a(j) * Points<M>::a(j);
    return 1 / product;
}
template <int M> constexpr float factor_of_zero() {
    float product = 1;
    for (int j = 0; j < Points<M>::PAIRS; j++) product *= -Points<M>::a(j) * Points<M>::a(j);
    return 1 / product;
}

// G w: five taps to M + 4
template <int M, class V> INLINE void weight_transform(const V* w, int step, V* out, int out_step) {
    V w0 = w[0], w1 = w[step], w2 = w[2 * step], w3 = w[3 * step], w4 = w[4 * step];
    out[0] = factor_of_zero<M>() * w0;
    out[(M + 3) * out_step] = w4;
    UNROLL for (int i = 0; i < Points<M>::PAIRS; i++) {
        const float a = Points<M>::a(i), f = factor<M>(i);
        V even = f * w0 + (f * a * a) * w2 + (f * a * a * a * a) * w4, odd = (f * a) * w1 + (f * a * a * a) * w3;
        out[(1 + 2 * i) * out_step] = even + odd;
        out[(2 + 2 * i) * out_step] = even - odd;
    }
}

// G^T m: M + 4 values to five taps
template <int M, class V> INLINE void weight_transposed(const V* m, int step, V* out, int out_step) {
    V w0 = factor_of_zero<M>() * m[0], w1{}, w2{}, w3{}, w4 = m[(M + 3) * step];
    UNROLL for (int i = 0; i < Points<M>::PAIRS; i++) {
        const float a = Points<M>::a(i), f = factor<M>(i);
        V even = f * (m[(1 + 2 * i) * step] + m[(2 + 2 * i) * step]);
        V odd = (f * a) * (m[(1 + 2 * i) * step] - m[(2 + 2 * i) * step]);
        w0 += even;
        w1 += odd;
        w2 += (a * a) * even;
        w3 += (a * a) * odd;
        w4 += (a * a * a * a) * even;
    }
    out[0] = w0;
    out[out_step] = w1;
    out[2 * out_step] = w2;
    out[3 * out_step] = w3;
    out[4 * out_step] = w4;
}
