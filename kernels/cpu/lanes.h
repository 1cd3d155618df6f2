// How many lanes and vectors suit a number of channels, and sums of what threads have summed.
#pragma once
#include <cstdint>
#include <type_traits>
#include "vectors.h"

// vectors of columns in a panel of the transformed weight
static inline int vectors_of(int64_t channels, int lanes) { return channels % (2 * lanes) == 0 ? 2 : 1; }

// calls function with the lanes and the vectors of a panel of `channels`, as constants
template <class F> static void with_lanes(int64_t channels, F function) {
    if constexpr (LANES > 8) {
        if (channels % LANES) return function(std::integral_constant<int, 8>{});
    }
    function(std::integral_constant<int, LANES>{});
}

template <class F> static void with_panel(int64_t channels, F function) {
    with_lanes(channels, [&](auto lanes) {
        if (vectors_of(channels, lanes.value) == 2)
            function(std::integral_constant<int, 2>{}, lanes);
        else
            function(std::integral_constant<int, 1>{}, lanes);
    });
}

// The sum of `count` parts, each `size` floats and `step` floats apart, into the first, in their order.
static void sum_parts(float* parts, int64_t count, int64_t step, int64_t size, int64_t threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < size / LANES; i++) {
        Float<LANES> sum = load<LANES>(parts + i * LANES);
        for (int64_t part = 1; part < count; part++) sum += load<LANES>(parts + part * step + i * LANES);
        store<LANES>(parts + i * LANES, sum);
    }
}
