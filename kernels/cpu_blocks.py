"""How volumes are cut into blocks for the convolutions of `cpu_convolution.py`.

A block's values are transformed, multiplied and transformed back before the next block's. Its size decides what is read
from which memory, and no output's bits; of the weight's gradient it decides the order of sums. With few channels a
block and its transformed values stay in the cache of one core. Where the transformed weight is larger than the
processor's cache, blocks are large, so that it is read seldom. With many channels all threads together read it once
for a block.
"""

# of the transform along H and W
POINTS = 8
# with which each thread has blocks of its own; a transformed weight of 64 to 64 channels has 8 MB
MAX_OWN_CHANNELS = 64
# of a transformed weight that stays in the processor's cache
MAX_CACHED_BYTES = 8_000_000
# in a block, tiles along H and W times channels, and tiles, where it stays in the cache of a core
CHANNELS_OF_TILES, MAX_TILES = 128, 8
# of outputs in a block
MAX_SLICES = 16
# so that no thread waits long for the last one
BLOCKS_A_THREAD = 3


def block_of(c, k, volumes, shape, taps, depth, threads, gradient=False):
    """The size of a block: output slices, tiles along H and W, and whether all threads share a block.

    Args:
        c, k: channels.
        volumes: N.
        shape: (D, H, W).
        taps, depth: of `cpu_convolution.TAPS` and `DEPTHS`.
        threads: how many there are.
        gradient: whether it is for the gradient of the weight, which is read and written for each block.
    """
    d, h, w = shape
    outputs = POINTS - taps + 1
    widest = max(c, k)
    cached = weight_size(c, k, taps, depth) * 4 * (2 if gradient else 1) <= MAX_CACHED_BYTES
    if cached and widest <= MAX_OWN_CHANNELS:
        count = min(MAX_TILES, CHANNELS_OF_TILES // widest)
        most = (2, count // 2) if count >= 4 else (1, count)
    else:
        most = (4, 8 if gradient else 4)
    tiles = [min(most[0], -(-h // outputs)), min(most[1], -(-w // outputs))]
    # as many as fit, in blocks of about the same depth
    deep = 4 * -(-d // (4 * -(-d // MAX_SLICES)))
    shared = deep, *tiles, True
    if widest > MAX_OWN_CHANNELS:
        return shared

    def blocks():
        return volumes * -(-d // deep) * -(-h // (outputs * tiles[0])) * -(-w // (outputs * tiles[1]))

    while threads > 1 and blocks() < BLOCKS_A_THREAD * threads:
        if max(tiles) > 1:
            tiles[tiles.index(max(tiles))] //= 2
        elif deep > 4:
            deep = deep // 8 * 4
        else:
            return shared
    return deep, *tiles, False


def weight_size(c, k, taps, depth):
    """The number of elements of a transformed weight of C to K channels."""
    return POINTS**2 * (depth + taps - 1 if depth > 1 else taps) * c * k
