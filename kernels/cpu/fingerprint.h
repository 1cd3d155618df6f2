// A number that another one takes the place of when a value changes.
#pragma once
#include <algorithm>
#include <vector>
#include "vectors.h"

// Every value of a chunk goes into one of 64 numbers of 32 bits, in the order of memory: an exclusive or, a rotation and
// a product with an odd number. Each of them is reversible, so that one other value always gives another number, and
// what the following values do to it depends on their order. The chunks do not depend on the threads.
static uint64_t fingerprint(const float* values, int64_t size, int64_t threads) {
    typedef Vector<8>::Bits Bits;
    constexpr int64_t VECTORS = 8, RUN = VECTORS * 8, CHUNK = 256 * RUN;
    const int64_t chunks = (size + CHUNK - 1) / CHUNK;
    std::vector<uint64_t> parts(chunks);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        Bits state[VECTORS];
        for (int i = 0; i < VECTORS; i++) state[i] = Bits{} + (uint32_t)(i + 1);
        const int64_t end = std::min(size, (chunk + 1) * CHUNK);
        for (int64_t at = chunk * CHUNK; at < end; at += RUN) {
            const float* run = values + at;
            float last[RUN] = {};
            if (end - at < RUN) run = (const float*)memcpy(last, run, (end - at) * sizeof(float));
            UNROLL for (int i = 0; i < VECTORS; i++) {
                Bits mixed = state[i] ^ (Bits)load<8>(run + i * 8);
                state[i] = (mixed << 13 | mixed >> 19) * 0x9E3779B1u;
            }
        }
        for (int i = 0; i < VECTORS; i++)
            for (int lane = 0; lane < 8; lane++) parts[chunk] = (parts[chunk] ^ state[i][lane]) * 0x100000001B3u;
    }
    uint64_t all = size;
    for (uint64_t part : parts) all = ((all ^ part) << 23 | (all ^ part) >> 41) * 0x9E3779B97F4A7C15u;
    return all;
}
