// The transforms of minimal filtering F(M, T): M outputs of a filter of T taps from P = M + T - 1 products.
//
//     y = A^T ((G w) * (B^T x))        x: P inputs, w: T taps, y: M outputs
//
// A polynomial of degree P - 1 is the product of two of lower degree, evaluated at 0, at pairs +a and -a, and at
// infinity, and interpolated. Each pair shares the even and the odd part of its sums. The transform of the inputs
// depends on the points alone.
//
//     F(4, 5), F(6, 3): a = 1/2, 1, 2        F(2, 5), F(4, 3): a = 2/3, 3/2        F(2, 3): a = 1
//
// These pairs have the smallest error among fourteen rational candidates. Nested along axes, the errors multiply.
// The gradient of the weight needs the transposes: dw = G^T ((A dy) * (B^T x)).
//
// Source: Toom 1963, Cook 1966, Winograd 1980; Lavin and Gray 2016, arXiv 1509.09308.
#pragma once
#include "vectors.h"

template <int P> struct Points;
template <> struct Points<8> {
    static constexpr float a(int i) { return i == 0 ? .5f : i == 1 ? 1.f : 2.f; }
};
template <> struct Points<6> {
    static constexpr float a(int i) { return i == 0 ? 2.f / 3 : 1.5f; }
};
template <> struct Points<4> {
    static constexpr float a(int) { return 1.f; }
};
template <int P> constexpr int PAIRS = P / 2 - 1;

// the power of a point
template <int P> constexpr float power(int pair, int exponent) {
    float product = 1;
    for (int i = 0; i < exponent; i++) product *= Points<P>::a(pair);
    return product;
}

// B^T x: P values, `step` vectors apart, to P
template <int P, class V> INLINE void input_transform(const V* x, int step, V* out, int out_step) {
    if constexpr (P == 8) {
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
    } else if constexpr (P == 6) {
        constexpr float a = Points<6>::a(0), b = Points<6>::a(1), A = a * a, B = b * b;
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
    } else {
        V x0 = x[0], x1 = x[step], x2 = x[2 * step], x3 = x[3 * step];
        out[0] = x2 - x0;
        out[3 * out_step] = x3 - x1;
        out[out_step] = x2 + x1;
        out[2 * out_step] = x2 - x1;
    }
}

// A^T m: P products to M outputs
template <int M, int P, class V> INLINE void output_transform(const V* m, int step, V* out, int out_step) {
    V sum[PAIRS<P>], difference[PAIRS<P>];
    UNROLL for (int i = 0; i < PAIRS<P>; i++) {
        sum[i] = m[(1 + 2 * i) * step] + m[(2 + 2 * i) * step];
        difference[i] = m[(1 + 2 * i) * step] - m[(2 + 2 * i) * step];
    }
    UNROLL for (int j = 0; j < M; j++) {
        V total = power<P>(0, j) * (j % 2 ? difference[0] : sum[0]);
        UNROLL for (int i = 1; i < PAIRS<P>; i++) total += power<P>(i, j) * (j % 2 ? difference[i] : sum[i]);
        if (j == 0) total += m[0];
        if (j == M - 1) total += m[(P - 1) * step];
        out[j * out_step] = total;
    }
}

// A y: M values to P, the transpose of the above
template <int M, int P, class V> INLINE void output_transposed(const V* y, int step, V* out, int out_step) {
    V values[M];
    UNROLL for (int j = 0; j < M; j++) values[j] = y[j * step];
    out[0] = values[0];
    out[(P - 1) * out_step] = values[M - 1];
    UNROLL for (int i = 0; i < PAIRS<P>; i++) {
        V even = values[0], odd = power<P>(i, 1) * values[1];
        UNROLL for (int j = 2; j < M; j++) (j % 2 ? odd : even) += power<P>(i, j) * values[j];
        out[(1 + 2 * i) * out_step] = even + odd;
        out[(2 + 2 * i) * out_step] = even - odd;
    }
}

// the factors of G: 1 / product of the differences of a point to all others
template <int P> constexpr float factor(int pair) {
    float square = power<P>(pair, 2), product = 2 * square;
    for (int j = 0; j < PAIRS<P>; j++)
        if (j != pair) product *= square - power<P>(j, 2);
    return 1 / product;
}
template <int P> constexpr float factor_of_zero() {
    float product = 1;
    for (int j = 0; j < PAIRS<P>; j++) product *= -power<P>(j, 2);
    return 1 / product;
}

// G w: T taps to P
template <int P, int T, class V> INLINE void weight_transform(const V* w, int step, V* out, int out_step) {
    V taps[T];
    UNROLL for (int t = 0; t < T; t++) taps[t] = w[t * step];
    out[0] = factor_of_zero<P>() * taps[0];
    out[(P - 1) * out_step] = taps[T - 1];
    UNROLL for (int i = 0; i < PAIRS<P>; i++) {
        V even = factor<P>(i) * taps[0], odd = (factor<P>(i) * power<P>(i, 1)) * taps[1];
        UNROLL for (int t = 2; t < T; t++) (t % 2 ? odd : even) += (factor<P>(i) * power<P>(i, t)) * taps[t];
        out[(1 + 2 * i) * out_step] = even + odd;
        out[(2 + 2 * i) * out_step] = even - odd;
    }
}

// G^T m: P values to T taps
template <int P, int T, class V> INLINE void weight_transposed(const V* m, int step, V* out, int out_step) {
    V taps[T] = {};
    taps[0] = factor_of_zero<P>() * m[0];
    taps[T - 1] = m[(P - 1) * step];
    UNROLL for (int i = 0; i < PAIRS<P>; i++) {
        V even = factor<P>(i) * (m[(1 + 2 * i) * step] + m[(2 + 2 * i) * step]);
        V odd = factor<P>(i) * (m[(1 + 2 * i) * step] - m[(2 + 2 * i) * step]);
        UNROLL for (int t = 0; t < T; t++) taps[t] += power<P>(i, t) * (t % 2 ? odd : even);
    }
    UNROLL for (int t = 0; t < T; t++) out[t * out_step] = taps[t];
}
