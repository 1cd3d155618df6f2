/* Loops of multiply-adds that stay in registers: the most arithmetic that a core can do.
 *
 * `ceilings.py` compiles this file for the processor that it runs on. Each function runs `turns` turns of its loop on
 * sums that it reads from `values` and writes back there; 384 floats are enough on every processor. It returns the
 * number of operations, where a multiplication and an addition are two, or 0 if the processor has no such instruction.
 */

#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif

/* Enough independent sums to hide the latency of an instruction, and few enough for the 32 or 16 registers. */
#if defined(__AVX512F__) || defined(__aarch64__)
#define SUMS 24
#else
#define SUMS 12
#endif

typedef float vector __attribute__((vector_size(BYTES)));

double multiply_add_float32(int64_t turns, float *values)
{
    vector sums[SUMS], factor, summand;
    memcpy(sums, values, sizeof sums);
    for (unsigned lane = 0; lane < BYTES / sizeof(float); lane++) {
        factor[lane] = 0.5f;
        summand[lane] = 1.0f;
    }
    for (int64_t turn = 0; turn < turns; turn++) {
        /* The sum is a factor, because the compiler would move a product of constants out of the loop. */
#pragma GCC unroll 24
        for (int sum = 0; sum < SUMS; sum++)
            sums[sum] = sums[sum] * factor + summand;
    }
    memcpy(values, sums, sizeof sums);
    return 2.0 * turns * SUMS * (BYTES / sizeof(float));
}

#if defined(__AVX512BF16__)
#include <immintrin.h>

double multiply_add_bfloat16(int64_t turns, float *values)
{
    __m512 sums[SUMS];
    memcpy(sums, values, sizeof sums);
    __m512 small = _mm512_set1_ps(1.0f / 1024);
    __m512bh factor = _mm512_cvtne2ps_pbh(small, small);
    for (int64_t turn = 0; turn < turns; turn++) {
#pragma GCC unroll 24
        for (int sum = 0; sum < SUMS; sum++)
            sums[sum] = _mm512_dpbf16_ps(sums[sum], factor, factor);
    }
    memcpy(values, sums, sizeof sums);
    /* Each instruction adds two products to each of 16 sums. */
    return 4.0 * turns * SUMS * 16;
}
#else
double multiply_add_bfloat16(int64_t turns, float *values)
{
    (void)turns, (void)values;
    return 0.0;
}
#endif
