// Values and labels between the voxels of a volume: the eight voxels around each place, and their weights.
#pragma once
#include "places.h"

constexpr int CORNERS_OF_A_CELL = 8;
// what makes eight bytes of one
constexpr uint64_t EIGHT_TIMES = 0x0101010101010101;

// What a volume is read at along its axes x, y and z: all voxels, or the nodes of a coarser lattice.
struct Lattice {
    int64_t lengths[3], strides[3], cells[3];
    // of a coarser lattice, the offset in the volume of each node
    std::vector<int32_t> nodes[3];

    explicit Lattice(const int64_t* shape) {
        for (int axis = 0; axis < 3; axis++) {
            lengths[axis] = shape[2 - axis];
            strides[axis] = axis ? strides[axis - 1] * lengths[axis - 1] : 1;
            cells[axis] = lengths[axis] - 1;
        }
        if (lengths[0] == 1) list_nodes();
    }

    // reads it at so many cells along each axis, from the voxel that is nearest to each node
    void coarsen(const float* counts) {
        bool whole = true;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t last = lengths[axis] - 1;
            // not below 0, nor NaN
            float count = counts[axis] > 0 ? std::min(counts[axis], (float)last) : 0.f;
            cells[axis] = (int64_t)count;
            whole = whole && cells[axis] == last;
        }
        if (!whole) list_nodes();
    }

    bool is_coarse() const {
        return cells[0] < lengths[0] - 1 || cells[1] < lengths[1] - 1 || cells[2] < lengths[2] - 1;
    }

    // whether voxels are found by their nodes, because not every one has a next one along x
    bool has_nodes() const { return !nodes[0].empty(); }

private:
    void list_nodes() {
        for (int axis = 0; axis < 3; axis++) {
            const int64_t last = lengths[axis] - 1, count = cells[axis];
            nodes[axis].clear();
            // the last one twice, for an axis of one node
            for (int64_t node = 0; node <= count + 1; node++) {
                int64_t voxel = (2 * std::min(node, count) * last + count) / std::max(2 * count, (int64_t)1);
                nodes[axis].push_back((int32_t)(voxel * strides[axis]));
            }
        }
    }
};

// The cells that a run is read from.
struct Cells {
    // of each voxel, the offset of its cell's first corner in the volume; or that node's numbers along x, y and z
    int32_t first[3][RUN + LANES];
    // of the second corners along the axes
    RunOf weights[3];
};

// The cells around places, which are clamped to the volume.
static void find_cells(const Lattice& lattice, const Places& places, int64_t count, Cells& cells) {
    typedef typename Vector<LANES>::Mask Int;
    Float<LANES> last[3], scale[3], end[3];
    for (int axis = 0; axis < 3; axis++) {
        last[axis] = broadcast<LANES>((float)(lattice.lengths[axis] - 1));
        end[axis] = broadcast<LANES>((float)std::max(lattice.cells[axis] - 1, (int64_t)0));
        // exactly 1 for all voxels
        scale[axis] = broadcast<LANES>((float)lattice.cells[axis] / std::max(lattice.lengths[axis] - 1, (int64_t)1));
    }
    for (int64_t i = 0; i < count; i += LANES) {
        Int offset{};
        UNROLL for (int axis = 0; axis < 3; axis++) {
            Float<LANES> place = load<LANES>(places.of[axis] + i);
            // NaN becomes 0
            place = place > 0.f ? place : 0.f;
            place = (place < last[axis] ? place : last[axis]) * scale[axis];
            // the last cell has the last corner too
            Float<LANES> before = place < end[axis] ? place : end[axis];
            Int first = __builtin_convertvector(before, Int);
            store<LANES>(cells.weights[axis] + i, place - __builtin_convertvector(first, Float<LANES>));
            if (lattice.has_nodes())
                store<LANES>(cells.first[axis] + i, first);
            else
                offset += first * (int32_t)lattice.strides[axis];
        }
        if (!lattice.has_nodes()) store<LANES>(cells.first[0] + i, offset);
    }
}

// The values at the eight corners of a voxel's cell; x changes first, z last.
//
// Of a volume that is read at all voxels, two corners lie side by side.
template <class T> struct SideBySide {
    const Cells& cells;
    const T* rows[4];

    SideBySide(const Lattice& lattice, const Cells& cells, const T* volume) : cells(cells) {
        const int64_t below = lattice.lengths[1] > 1 ? lattice.strides[1] : 0;
        const int64_t behind = lattice.lengths[2] > 1 ? lattice.strides[2] : 0;
        for (int row = 0; row < 4; row++) rows[row] = volume + (row & 1 ? below : 0) + (row & 2 ? behind : 0);
    }

    __attribute__((always_inline)) const T* pair(int64_t i, int row) const { return rows[row] + cells.first[0][i]; }

    __attribute__((always_inline)) T operator()(int64_t i, int corner) const { return pair(i, corner / 2)[corner % 2]; }
};

template <class T> struct AtNodes {
    const Lattice& lattice;
    const Cells& cells;
    const T* volume;

    AtNodes(const Lattice& lattice, const Cells& cells, const T* volume)
        : lattice(lattice), cells(cells), volume(volume) {}

    __attribute__((always_inline)) T operator()(int64_t i, int corner) const {
        int64_t offset = 0;
        UNROLL for (int axis = 0; axis < 3; axis++)
            offset += lattice.nodes[axis][cells.first[axis][i] + (corner >> axis & 1)];
        return volume[offset];
    }
};

// calls function with what reads the corners
template <class T, class F>
INLINE void with_corners(const Lattice& lattice, const Cells& cells, const T* volume, F function) {
    if (lattice.has_nodes())
        function(AtNodes<T>(lattice, cells, volume));
    else
        function(SideBySide<T>(lattice, cells, volume));
}

INLINE float between(float first, float second, float weight) { return (1 - weight) * first + weight * second; }

// The intensities of a run, of ranks and their table, interpolated linearly.
static void interpolate(const Lattice& lattice, const Cells& cells, const uint16_t* ranks, const float* table,
                        int64_t count, float* values) {
    with_corners(lattice, cells, ranks, [&](auto corners) {
        for (int64_t i = 0; i < count; i++) {
            float x = cells.weights[0][i], y = cells.weights[1][i], z = cells.weights[2][i], rows[4];
            UNROLL for (int row = 0; row < 4; row++)
                rows[row] = between(table[corners(i, 2 * row)], table[corners(i, 2 * row + 1)], x);
            values[i] = between(between(rows[0], rows[1], y), between(rows[2], rows[3], y), z);
        }
    });
}

// The label with the largest sum of weights among eight, and the smallest label if sums are equal.
static uint8_t largest_share(const uint8_t* labels, float x, float y, float z) {
    uint8_t best = 0;
    float most = -1;
    for (unsigned left = 0xff; left;) {
        const uint8_t label = labels[__builtin_ctz(left)];
        float share = 0;
        for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++)
            if (labels[corner] == label) {
                share += (corner & 4 ? z : 1 - z) * ((corner & 2 ? y : 1 - y) * (corner & 1 ? x : 1 - x));
                left &= ~(1u << corner);
            }
        if (share > most || (share == most && label < best)) best = label, most = share;
    }
    return best;
}

INLINE uint64_t all_labels(const SideBySide<uint8_t>& corners, int64_t i) {
    uint64_t labels = 0;
    UNROLL for (int row = 0; row < 4; row++) {
        const uint8_t* pair = corners.pair(i, row);
        labels |= (uint64_t)(uint16_t)(pair[0] | pair[1] << 8) << 16 * row;
    }
    return labels;
}

INLINE uint64_t all_labels(const AtNodes<uint8_t>& corners, int64_t i) {
    uint64_t labels = 0;
    for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++) labels |= (uint64_t)corners(i, corner) << 8 * corner;
    return labels;
}

// The labels of a run.
static void find_labels(const Lattice& lattice, const Cells& cells, const uint8_t* mask, int64_t count,
                        uint8_t* labels) {
    with_corners(lattice, cells, mask, [&](auto corners) {
        for (int64_t i = 0; i < count; i++) {
            const uint64_t all = all_labels(corners, i);
            labels[i] = (uint8_t)all;
            if (all == labels[i] * EIGHT_TIMES) continue;
            uint8_t around[CORNERS_OF_A_CELL];
            for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++) around[corner] = (uint8_t)(all >> 8 * corner);
            labels[i] = largest_share(around, cells.weights[0][i], cells.weights[1][i], cells.weights[2][i]);
        }
    });
}
