"""Segments volumes with a trained V-Net, in their own geometry."""

import sys
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from vnet_fast import command_line
from vnet_fast.command_line import option, path_text, share
from vnet_fast.devices import choose_precision, device_name, find_device, keep_freed_memory, use_all_cores
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.files import make_folder
from vnet_fast.prediction.inference import LEFT_RIGHT, NO_FLIP
from vnet_fast.prediction.segmentation import load_networks, plan, segment, segment_all


@dataclass(frozen=True)
class Config:
    """Segments volumes with a trained V-Net. Masks are on each input's own grid."""

    checkpoint: tuple = option(
        None,
        "best.pt or last.pt of a run; of several, the probabilities are averaged",
        type=path_text,
        metavar="FILE",
        nargs="+",
        required=True,
    )
    input: str = option(
        None, "a volume, a folder of DICOM slices, or a folder of volumes", type=path_text, required=True
    )
    output: str = option(None, "the mask's file, or a folder", type=path_text, required=True)
    validation_only: bool = option(False, "only the cases that every run held out", action="store_true")
    probabilities: bool = option(False, "writes NAME_probability files too, float32", action="store_true")
    all_components: bool = option(False, "keeps more than each class's largest component", action="store_true")
    overlap: float = option(
        None,
        "covers larger volumes by windows that overlap by this share, such as 0.5; without it only their centre is "
        "predicted, which is what the network was trained on",
        type=share,
        metavar="SHARE",
    )
    tta: bool = option(False, "averages with the volume mirrored left to right, in twice the time", action="store_true")
    amp: str = option(
        "off", "mixed precision; --amp alone is auto", nargs="?", const="auto", choices=("auto", "bf16", "fp16", "off")
    )
    device: str = option("auto", "where to run", choices=("auto", "cpu", "cuda"))


def treatment(config):
    """What is done with volumes larger than the network's size, for the log."""
    if config.overlap is None:
        return "background beyond, unless --overlap is given"
    return f"in windows, overlap {config.overlap:g}"


def main(given):
    """Runs with the options given; returns the exit code."""
    config = Config(**given)
    use_all_cores()
    keep_freed_memory()
    device = find_device(config.device)
    model, device, spacing, size, names = load_networks(config.checkpoint, device)
    if config.validation_only and len(config.checkpoint) > 1 and not names:
        cause = "no case was held out by every run"
        raise InputError("--validation-only", cause, "Give one checkpoint, or train with --fold all")
    pairs = plan(config, names if config.validation_only else None)
    folder = make_folder(pairs[0][1].parent, "Choose another --output")
    autocast, words = choose_precision(config.amp, device)
    together = f", {len(config.checkpoint)} networks averaged" if len(config.checkpoint) > 1 else ""
    print(f"device: {device_name(device)}, {words}{together}")

    bar = partial(tqdm, disable=not sys.stderr.isatty(), leave=False)
    errors, larger = segment_all(
        bar(pairs, "predicting", unit="volume"),
        config,
        partial(
            segment,
            model,
            spacing=spacing,
            size=size,
            autocast=autocast,
            overlap=config.overlap,
            flips=LEFT_RIGHT if config.tta else NO_FLIP,
            track=partial(bar, desc="windows", unit="window"),
        ),
    )
    if larger:
        extent = " x ".join(f"{n * s:g}" for n, s in zip(size, spacing, strict=True))
        print(f"{larger} of {len(pairs)} volumes are larger than the network's {extent} mm: {treatment(config)}")
    print(f"{len(pairs) - len(errors)} of {len(pairs)} volumes segmented, masks in {folder}")
    if errors:
        raise InputErrors(errors)
    return 0


if __name__ == "__main__":
    command_line.run(main, command_line.parser_of(Config, "vnet_fast.predict"))
