// Values and labels between the voxels of a volume: the eight voxels around each place, and their weights.
#pragma once
#include "places.h"

constexpr int CORNERS_OF_A_CELL = 8;

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
    }

    // reads it at so many cells along each axis, from the voxel that is nearest to each node
    void coarsen(const float* counts) {
        bool whole = true;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t last = lengths[axis] - 1;
            // not below 0, nor NaN
            float count = counts[axis] > 0 ? std::min(counts[axis], (float)last) : 0.f;
            cells[axis] = std::min((int64_t)count, last);
            whole = whole && cells[axis] == last;
        }
        if (whole) return;
        for (int axis = 0; axis < 3; axis++) {
            const int64_t last = lengths[axis] - 1, count = cells[axis];
            // the last one twice, for an axis of one node
            for (int64_t node = 0; node <= count + 1; node++) {
                int64_t voxel = (2 * std::min(node, count) * last + count) / std::max(2 * count, (int64_t)1);
                nodes[axis].push_back((int32_t)(voxel * strides[axis]));
            }
        }
    }

    bool is_coarse() const { return !nodes[0].empty(); }
};

// The cells that a run is read from.
struct Cells {
    // Of each voxel, the offset of its cell's first corner in the volume, or of a coarse lattice its nodes' numbers along the axes.
    int32_t first[3][RUN + LANES];
    // of the cell's second corner along an axis
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
        if (lattice.lengths[axis] == 1) scale[axis] = Float<LANES>{};
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
            if (lattice.is_coarse())
                *(Int*)(cells.first[axis] + i) = first;
            else
                offset += first * (int32_t)lattice.strides[axis];
        }
        if (!lattice.is_coarse()) *(Int*)(cells.first[0] + i) = offset;
    }
}

INLINE float between(float first, float second, float weight) { return (1 - weight) * first + weight * second; }

// The offsets in a volume of the corners of a voxel's cell; x changes first, z last.
template <bool COARSE> struct Corners {
    const Lattice& lattice;
    int64_t steps[3];

    explicit Corners(const Lattice& lattice) : lattice(lattice) {
        for (int axis = 0; axis < 3; axis++) steps[axis] = lattice.lengths[axis] > 1 ? lattice.strides[axis] : 0;
    }

    __attribute__((always_inline)) void find(const Cells& cells, int64_t i, int64_t* offsets) const {
        int64_t left, right, top, bottom, front, back;
        if constexpr (COARSE) {
            const int32_t* x = lattice.nodes[0].data() + cells.first[0][i];
            const int32_t* y = lattice.nodes[1].data() + cells.first[1][i];
            const int32_t* z = lattice.nodes[2].data() + cells.first[2][i];
            left = x[0], right = x[1], top = y[0], bottom = y[1], front = z[0], back = z[1];
        } else {
            left = cells.first[0][i], right = left + steps[0], top = front = 0, bottom = steps[1], back = steps[2];
        }
        offsets[0] = front + top + left, offsets[1] = front + top + right;
        offsets[2] = front + bottom + left, offsets[3] = front + bottom + right;
        offsets[4] = back + top + left, offsets[5] = back + top + right;
        offsets[6] = back + bottom + left, offsets[7] = back + bottom + right;
    }
};

// The intensities of a run, of ranks and their table, interpolated linearly.
template <bool COARSE>
static void interpolate(const Lattice& lattice, const Cells& cells, const uint16_t* ranks, const float* table,
                        int64_t count, float* values) {
    const Corners<COARSE> corners(lattice);
    for (int64_t i = 0; i < count; i++) {
        int64_t at[CORNERS_OF_A_CELL];
        corners.find(cells, i, at);
        float x = cells.weights[0][i], y = cells.weights[1][i], z = cells.weights[2][i];
        float front = between(between(table[ranks[at[0]]], table[ranks[at[1]]], x),
                              between(table[ranks[at[2]]], table[ranks[at[3]]], x), y);
        float back = between(between(table[ranks[at[4]]], table[ranks[at[5]]], x),
                             between(table[ranks[at[6]]], table[ranks[at[7]]], x), y);
        values[i] = between(front, back, z);
    }
}

// The label with the largest sum of weights among eight, and the smallest label if sums are equal.
static uint8_t largest_share(const uint8_t* labels, const float* weights) {
    uint8_t best = 0;
    float most = -1;
    for (unsigned left = 0xff; left;) {
        const uint8_t label = labels[__builtin_ctz(left)];
        float share = 0;
        for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++)
            if (labels[corner] == label) {
                share += weights[corner];
                left &= ~(1u << corner);
            }
        if (share > most || (share == most && label < best)) best = label, most = share;
    }
    return best;
}

// The labels of a run.
static void find_labels(const Lattice& lattice, const Cells& cells, const uint8_t* mask, int64_t count,
                        uint8_t* labels) {
    const Corners<false> corners(lattice);
    for (int64_t i = 0; i < count; i++) {
        int64_t at[CORNERS_OF_A_CELL];
        corners.find(cells, i, at);
        uint8_t around[CORNERS_OF_A_CELL], differs = 0;
        UNROLL for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++) {
            around[corner] = mask[at[corner]];
            differs |= around[corner] ^ around[0];
        }
        labels[i] = around[0];
        if (differs) {
            float x = cells.weights[0][i], y = cells.weights[1][i], z = cells.weights[2][i], weights[CORNERS_OF_A_CELL];
            for (int corner = 0; corner < CORNERS_OF_A_CELL; corner++)
                weights[corner] =
                    (corner & 4 ? z : 1 - z) * ((corner & 2 ? y : 1 - y) * (corner & 1 ? x : 1 - x));
            labels[i] = largest_share(around, weights);
        }
    }
}
