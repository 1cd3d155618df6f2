"""What a rehearsal must find: the table to update when kernels change.

Where a number differs, the tests show the number that was found.
"""

from collections import Counter

# PReLUs of a network
ACTIVATIONS = {"paper": 29, "caffe": 26}
# of each activation in a step, and of all of them
OF_AN_ACTIVATION = {"_add_prelu_forward_kernel": 1, "_add_prelu_backward_kernel": 1}
OF_ALL_ACTIVATIONS = {"_sum_all_partials_kernel": 1}
# of each activation outside of a step
OF_AN_ACTIVATION_ALONE = {"_add_prelu_forward_kernel": 1, "_add_prelu_backward_kernel": 1, "_sum_partials_kernel": 1}
OF_A_NORMALISED_ACTIVATION = {
    "_statistics_kernel": 1,
    "_combine_statistics_kernel": 1,
    "_normalise_kernel": 1,
    "_reduce_gradients_kernel": 1,
    "_combine_gradients_kernel": 1,
    "_gradient_kernel": 1,
}
OF_A_PREDICTION = {"_add_prelu_forward_kernel": 1}
# of a step, whatever the network
OF_THE_BATCH = {"_augment_kernel": 1}
OF_A_TRANSFORMED_BATCH = {"_transform_kernel": 1}
OF_A_BATCH_OF_PATCHES = {"_patches_kernel": 1}
OF_THE_DICE_LOSS = {"_dice_forward_kernel": 1, "_dice_backward_kernel": 1}
# of SGD in mixed precision: weights with copies in half precision, other weights, and biases
OF_SGD = {"_sgd_kernel": 3}
# of AdamW, also in float32, where weights without copies need two
OF_ADAMW = {"_adamw_kernel": 3}
OF_A_STACK = {"_stack_kernel": 1}
MAX_CLASSES = 32
# kernels that are compiled for each of the devices
COMPILATIONS = {
    ("steps", (8, 0)): 293,
    ("steps", (9, 0)): 548,
    ("steps", (10, 0)): 295,
    ("operators", (8, 0)): 64,
    ("operators", (9, 0)): 250,
    ("operators", (10, 0)): 62,
}
# all together, at least
ALL_COMPILATIONS = 600


def launches_of_a_step(network):
    """{kernel: launches} of a training step of a `configurations.Network`."""
    expected = Counter(OF_THE_BATCH)
    if network.norm is None:
        expected += Counter(OF_ALL_ACTIVATIONS) + of_all_activations(network, OF_AN_ACTIVATION)
    else:
        expected += of_all_activations(network, OF_A_NORMALISED_ACTIVATION)
    # every loss is made of the same sums
    expected += Counter(OF_THE_DICE_LOSS)
    # the weights of norms have no copies either, and do not fit into the launch of the slopes
    if network.optimizer == "sgd" and network.precision != "float32":
        expected += Counter(OF_SGD) + Counter({"_sgd_kernel": 1} if network.norm else {})
    if network.optimizer == "adamw":
        expected += Counter(OF_ADAMW) + Counter({"_adamw_kernel": 1} if network.norm else {})
    return expected


def launches_of_a_pass(network):
    """{kernel: launches} of a forward and a backward pass outside of a step."""
    return of_all_activations(network, OF_AN_ACTIVATION_ALONE) + Counter(OF_THE_DICE_LOSS)


def launches_of_a_prediction(network):
    """{kernel: launches} of a forward pass."""
    return of_all_activations(network, OF_A_PREDICTION)


def of_all_activations(network, of_one):
    """{kernel: launches} of all activations of a network."""
    return Counter({kernel: ACTIVATIONS[network.topology] * count for kernel, count in of_one.items()})


def launches_of_a_loss(logits_shape):
    """{kernel: launches} of a Dice loss and its gradient."""
    return Counter(OF_THE_DICE_LOSS if logits_shape[1] <= MAX_CLASSES else {})
