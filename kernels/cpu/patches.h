// Patches of stored volumes, augmented as they are read. See cpu_patches.py.
#pragma once
#include "intensities.h"
#include "interpolation.h"

constexpr int64_t RANK_LEVELS = 65536;

// A batch of N patches of C channels, and the volumes that they are read from.
struct Patches {
    const uint16_t* ranks;  // of all volumes one after the other, in each C channels
    const float* tables;
    const uint8_t* masks;
    const int64_t* places;  // of each volume: its first voxel, depth, height and width
    const int64_t *cases, *intensities_of;
    const uint8_t* deformed;
    const float *control_points, *transforms;
    float* image;
    uint8_t* mask;
    int64_t n, channels, d, h, w, threads;

    int64_t voxels() const { return d * h * w; }
    int64_t runs() const { return (voxels() + RUN - 1) / RUN; }
};

// One of the patches, and what is computed once for all its voxels.
struct Patch {
    const Patches& batch;
    const uint16_t* ranks;
    const float *tables, *rows, *points;
    const uint8_t* mask;
    Lattice voxels, lattice;  // of the labels, and of the image
    int64_t stored;
    // whether each voxel is a stored one: then its number is first + a step along each axis, x first
    bool whole;
    int64_t first = 0, steps[3];

    Patch(const Patches& batch, int64_t n, const int64_t* place)
        : batch(batch),
          ranks(batch.ranks + place[0] * batch.channels),
          tables(batch.tables + batch.intensities_of[n] * batch.channels * RANK_LEVELS),
          rows(batch.transforms + n * batch.channels * FIELDS),
          points(batch.deformed[n] ? batch.control_points + n * 2 * PLANE * POINTS : nullptr),
          mask(batch.masks + place[0]),
          voxels(place + 1),
          lattice(place + 1),
          stored(place[1] * place[2] * place[3]) {
        lattice.coarsen(rows + CELLS_COLUMN);
        whole = !points && !lattice.is_coarse();
        const int64_t lengths[] = {batch.w, batch.h, batch.d};
        for (int axis = 0; axis < 3; axis++) {
            const float *of = rows + 4 * axis, offset = of[3], last = offset + of[axis] * (lengths[axis] - 1);
            for (int other = 0; other < 3; other++)
                whole = whole && (other == axis ? std::abs(of[other]) == 1 : of[other] == 0);
            whole = whole && offset == std::rint(offset) && std::min(offset, last) >= 0 &&
                    std::max(offset, last) < voxels.lengths[axis];
            if (!whole) return;
            first += (int64_t)offset * voxels.strides[axis];
            steps[axis] = (int64_t)of[axis] * voxels.strides[axis];
        }
    }
};

// calls function(z, y, x, count, at) for the parts of rows that a run of `count` voxels consists of
template <class F> static void for_each_part(const Patches& batch, int64_t voxel, int64_t count, F function) {
    for (int64_t at = 0; at < count;) {
        int64_t x = (voxel + at) % batch.w, row = (voxel + at) / batch.w, part = std::min(batch.w - x, count - at);
        function(row / batch.h, row % batch.h, x, part, at);
        at += part;
    }
}

// A run of a patch whose voxels are stored ones.
static void look_up_run(const Patch& patch, const uint16_t* ranks, const float* table, int64_t voxel, int64_t count,
                        float* values, uint8_t* labels) {
    for_each_part(patch.batch, voxel, count, [&](int64_t z, int64_t y, int64_t x, int64_t part, int64_t at) {
        const int64_t step = patch.steps[0], from = patch.first + z * patch.steps[2] + y * patch.steps[1] + x * step;
        if (step > 0) {
            for (int64_t i = 0; i < part; i++) values[at + i] = table[ranks[from + i]];
            if (labels) memcpy(labels + at, patch.mask + from, part);
        } else {
            for (int64_t i = 0; i < part; i++) values[at + i] = table[ranks[from - i]];
            for (int64_t i = 0; labels && i < part; i++) labels[at + i] = patch.mask[from - i];
        }
    });
}

static void read_run(const Patch& patch, const Splines& splines, int64_t n, int64_t voxel) {
    const Patches& batch = patch.batch;
    const int64_t count = std::min(RUN, batch.voxels() - voxel);
    uint8_t* labels = batch.mask + n * batch.voxels() + voxel;
    // noise comes from four numbers of each lane
    float values[RUN + NUMBERS * LANES] = {};
    Cells cells;
    if (!patch.whole) {
        Places places;
        for_each_part(batch, voxel, count, [&](int64_t z, int64_t y, int64_t x, int64_t part, int64_t at) {
            find_places(patch.rows, splines, patch.points, z, y, x, part, at, places);
        });
        find_cells(patch.voxels, places, count, cells);
        find_labels(patch.voxels, cells, patch.mask, count, labels);
        if (patch.lattice.is_coarse()) find_cells(patch.lattice, places, count, cells);
    }
    for (int64_t channel = 0; channel < batch.channels; channel++) {
        const uint16_t* ranks = patch.ranks + channel * patch.stored;
        const float *table = patch.tables + channel * RANK_LEVELS, *row = patch.rows + channel * FIELDS;
        if (patch.whole)
            look_up_run(patch, ranks, table, voxel, count, values, channel ? nullptr : labels);
        else
            interpolate(patch.lattice, cells, ranks, table, count, values);
        change_intensities(row, table[0], table[RANK_LEVELS - 1], voxel, count, values);
        memcpy(batch.image + (n * batch.channels + channel) * batch.voxels() + voxel, values, count * sizeof(float));
    }
}

static void read_patches(const Patches& batch) {
    const Splines splines(batch.d, batch.h, batch.w);
    std::vector<Patch> patches;
    patches.reserve(batch.n);
    for (int64_t n = 0; n < batch.n; n++) patches.emplace_back(batch, n, batch.places + 4 * batch.cases[n]);
    // a run costs more or less, but gives the same on any thread
#pragma omp parallel for schedule(dynamic, 16) num_threads(batch.threads)
    for (int64_t i = 0; i < batch.n * batch.runs(); i++)
        read_run(patches[i / batch.runs()], splines, i / batch.runs(), i % batch.runs() * RUN);
}
