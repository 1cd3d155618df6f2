// Vectors of L floats in the extensions of GCC and Clang, and how they are read from and written to memory.
//
// The compiler turns them into the widest instructions that it may use: there is one source for AVX-512, AVX2, SSE2
// and NEON. Arithmetic is always float32. Memory is float32, or bfloat16, of which the narrowing rounds to even.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#ifdef __clang__
#define UNROLL _Pragma("unroll")
#define NO_UNROLL _Pragma("nounroll")
#else
#define UNROLL _Pragma("GCC unroll 64")
#define NO_UNROLL _Pragma("GCC unroll 1")
#endif
// Before it nothing is loaded for what comes after it. Between the turns of a loop that share inputs, it keeps the
// compiler from carrying these in registers, of which there are too few.
#define FORGET_LOADS asm volatile("" ::: "memory")

// floats of the widest vector that is used, and how many of these the registers hold; a test asks for those of AVX-512
#if defined(__AVX512F__) || defined(VNET_FAST_AS_AVX512)
constexpr int LANES = 16, REGISTERS = 32;
#elif defined(__AVX2__)
constexpr int LANES = 8, REGISTERS = 16;
#elif defined(__aarch64__)
constexpr int LANES = 8, REGISTERS = 16;
#else
constexpr int LANES = 8, REGISTERS = 8;
#endif

// OpenMP's, of which Apple's compiler has no header
extern "C" int omp_get_thread_num();
extern "C" int omp_get_num_threads();

typedef uint16_t bfloat16;

// Vectors that the functions compute with are aligned as the compiler wants them. Those of `InMemory` may lie anywhere;
// only `load` and `store` use them. A vector to compute with may not have `aligned` itself, because a template that
// deduces its type loses that attribute, and then takes an array for an aligned one that is not.
template <int L> struct Vector;
#define DEFINE_VECTOR(L)                                                                            \
    template <> struct Vector<L> {                                                                  \
        typedef float Float __attribute__((vector_size(4 * L)));                                    \
        typedef uint32_t Bits __attribute__((vector_size(4 * L)));                                  \
        typedef int32_t Mask __attribute__((vector_size(4 * L)));                                   \
        typedef uint16_t Half __attribute__((vector_size(2 * L)));                                  \
        struct InMemory {                                                                           \
            typedef float Float __attribute__((vector_size(4 * L), aligned(4), may_alias));         \
            typedef int32_t Mask __attribute__((vector_size(4 * L), aligned(4), may_alias));        \
            typedef uint16_t Half __attribute__((vector_size(2 * L), aligned(2), may_alias));       \
        };                                                                                          \
    };
DEFINE_VECTOR(8)
DEFINE_VECTOR(16)
#undef DEFINE_VECTOR
template <int L> using Float = typename Vector<L>::Float;
template <int L> using InMemory = typename Vector<L>::InMemory;

template <class V> constexpr bool is_aligned_as(const V*, size_t alignment) { return alignof(V) == alignment; }
static_assert(is_aligned_as((const Float<16>*)nullptr, alignof(Float<16>)), "an array of vectors may be misaligned");

template <int L> INLINE Float<L> load(const float* p) { return *(const typename InMemory<L>::Float*)p; }

template <int L> INLINE Float<L> load(const bfloat16* p) {
    typedef typename Vector<L>::Bits Bits;
    return (Float<L>)(__builtin_convertvector(*(const typename InMemory<L>::Half*)p, Bits) << 16);
}

template <int L> INLINE void store(float* p, Float<L> x) { *(typename InMemory<L>::Float*)p = x; }

template <int L> INLINE void store(int32_t* p, typename Vector<L>::Mask x) { *(typename InMemory<L>::Mask*)p = x; }

template <int L> INLINE void store(bfloat16* p, Float<L> x) {
    typedef typename Vector<L>::Bits Bits;
    Bits bits = (Bits)x;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // adding to the bits of NaN may give infinity or zero
    rounded = x == x ? rounded : (bits >> 16) | 0x40;
    *(typename InMemory<L>::Half*)p = __builtin_convertvector(rounded, typename Vector<L>::Half);
}

template <int L> INLINE Float<L> broadcast(float value) { return Float<L>{} + value; }

INLINE float widened(float value) { return value; }

INLINE float widened(bfloat16 value) {
    uint32_t bits = (uint32_t)value << 16;
    float wide;
    memcpy(&wide, &bits, 4);
    return wide;
}

// one bit for each lane, into L / 8 bytes; a lane of a mask is 0 or -1
template <int L> INLINE void store_bits(uint8_t* p, typename Vector<L>::Mask mask) {
#if defined(__AVX512DQ__)
    if constexpr (L == 16) {
        uint16_t bits = (uint16_t)_mm512_movepi32_mask((__m512i)mask);
        memcpy(p, &bits, 2);
        return;
    }
#endif
#if defined(__AVX2__)
    if constexpr (L == 8) {
        *p = (uint8_t)_mm256_movemask_ps((__m256)mask);
        return;
    }
#endif
    for (int byte = 0; byte < L / 8; byte++) {
        int bits = 0;
        UNROLL for (int i = 0; i < 8; i++) bits |= (mask[byte * 8 + i] & 1) << i;
        p[byte] = (uint8_t)bits;
    }
}
