// Where the voxels of a patch are read from: an affine map, and a displacement by cubic B-splines.
//
// The patch's voxels are met in runs, in the order of memory. A run consists of parts of rows, in each of which only x
// changes, so that what depends on y and z is computed once for each part.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

// voxels of a run: all that is known of them stays in the fastest cache; a multiple of the four numbers of noise that
// have one counter
constexpr int64_t RUN = 512;
// cubic B-splines on a mesh of 2x2x2 cells, whose domain reaches beyond the centres of the outer voxels
constexpr int MESH = 2, POINTS = MESH + 3, PLANE = POINTS * POINTS;
constexpr double DOMAIN_MARGIN = 0.625;

// A number for each voxel of a run, and room for the vector that the last one is in.
struct RunOf {
    float values[RUN + LANES];
    float& operator[](int64_t i) { return values[i]; }
    float operator[](int64_t i) const { return values[i]; }
    operator float*() { return values; }
    operator const float*() const { return values; }
};

// x, y and z of the places that a run is read from, in voxels of the stored volume.
struct Places {
    RunOf of[3];
};

INLINE Float<LANES> count_up() {
    Float<LANES> numbers;
    UNROLL for (int i = 0; i < LANES; i++) numbers[i] = (float)i;
    return numbers;
}

// The weight of a control point at a voxel of an axis.
static float spline_weight(int64_t index, int64_t length, int point) {
    double position = (index + DOMAIN_MARGIN) / (length - 1 + 2 * DOMAIN_MARGIN) * MESH;
    double distance = std::abs(position - point + 1);
    double outer = std::max(2 - distance, 0.0), inner = std::max(1 - distance, 0.0);
    return (float)((outer * outer * outer - 4 * inner * inner * inner) / 6);
}

// The weights of the control points along the axes of a patch.
struct Splines {
    int64_t row;                        // of the weights along x, with room for a vector
    std::vector<float> of_x, of_y, of_z;  // POINTS x row, height x POINTS, depth x POINTS

    Splines(int64_t depth, int64_t height, int64_t width)
        : row(width + LANES), of_x(POINTS * row), of_y(height * POINTS), of_z(depth * POINTS) {
        for (int point = 0; point < POINTS; point++) {
            for (int64_t x = 0; x < width; x++) of_x[point * row + x] = spline_weight(x, width, point);
            for (int64_t y = 0; y < height; y++) of_y[y * POINTS + point] = spline_weight(y, height, point);
            for (int64_t z = 0; z < depth; z++) of_z[z * POINTS + point] = spline_weight(z, depth, point);
        }
    }

    // the displacement of a row of the patch, as a sum over five points along x; points: (z, y, x)
    void sum_row(const float* points, int64_t z, int64_t y, float* sums) const {
        std::fill(sums, sums + POINTS, 0.f);
        for (int plane = 0; plane < PLANE; plane++) {
            float weight = of_z[z * POINTS + plane / POINTS] * of_y[y * POINTS + plane % POINTS];
            for (int point = 0; point < POINTS; point++) sums[point] += weight * points[plane * POINTS + point];
        }
    }
};

// The places of `count` voxels of a row of the patch from x on, into a run from `at` on. Up to a vector more is
// written.
//
// matrix: 3 x 4. points: 2 x 5 x 5 x 5, or null for none; nothing is displaced along z.
static void find_places(const float* matrix, const Splines& splines, const float* points, int64_t z, int64_t y,
                        int64_t x, int64_t count, int64_t at, Places& places) {
    for (int axis = 0; axis < 3; axis++) {
        const float* of = matrix + 4 * axis;
        const Float<LANES> start = broadcast<LANES>((float)((double)of[1] * y + (double)of[2] * z + of[3]));
        const bool moves = points && axis < 2;
        float sums[POINTS] = {};
        if (moves) splines.sum_row(points + axis * PLANE * POINTS, z, y, sums);
        for (int64_t i = 0; i < count; i += LANES) {
            Float<LANES> place = (count_up() + (float)(x + i)) * of[0] + start;
            if (moves)
                UNROLL for (int point = 0; point < POINTS; point++)
                    place += sums[point] * load<LANES>(splines.of_x.data() + point * splines.row + x + i);
            store<LANES>(places.of[axis] + at + i, place);
        }
    }
}
