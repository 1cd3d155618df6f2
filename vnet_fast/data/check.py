"""Checks all cases of a folder without training: prints a table of them, and reports all errors."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from vnet_fast.data.cases import Case
from vnet_fast.data.channels import Channel, find_channels, find_errors, fitted
from vnet_fast.data.classes import Classes
from vnet_fast.data.extent import headers_exceed
from vnet_fast.data.labels import count_classes, without_ignored
from vnet_fast.data.preparation import PreparedCase, map_cases, read_case
from vnet_fast.data.settings import DataSettings
from vnet_fast.data.training_data import find_duplicates, find_run_cases, find_warnings
from vnet_fast.errors import InputError, InputErrors
from vnet_fast.progress import say, track, warn
from vnet_fast.text_table import format_table, printable

# fewer voxels along an axis are a warning
FEW_VOXELS = 4
# the only label of a mask that was drawn as a picture
DRAWN = 255
HEADINGS = ("case", "size", "spacing mm", "intensities", "labels")


@dataclass(frozen=True)
class CaseSummary:
    """The content of a case's files.

    Args:
        case: the Case.
        size: voxels, x y z.
        spacing: mm, x y z.
        intensities: lowest and highest, of each channel.
        prepared: the PreparedCase.
    """

    case: Case
    size: tuple[int, int, int]
    spacing: tuple[float, float, float]
    intensities: list[tuple[float, float]]
    prepared: PreparedCase

    def row(self) -> tuple[str, ...]:
        """Returns the cells of its row of the table, under HEADINGS."""
        return (
            printable(self.case.name),
            _format_size(self.size),
            " x ".join(f"{length:.4g}" for length in self.spacing),
            ", ".join(f"{low:.6g} to {high:.6g}" for low, high in self.intensities),
            " ".join(map(str, self.prepared.labels)),
        )

    def warnings(self) -> list[InputError]:
        """Returns a warning, as an InputError that is never raised, if the volume is very small."""
        if min(self.size) >= FEW_VOXELS:
            return []
        return [InputError(self.case.image, f"only {_format_size(self.size)} voxels", "Check that the volume is whole")]


def check_data(settings: DataSettings) -> int:
    """Reads every case as training would, but writes nothing.

    Args:
        settings: of the training.

    Returns:
        exit code 0.

    Raises:
        InputError, InputErrors: for everything that training would refuse.
    """
    if settings.data is None:
        raise InputError("--check", "given without --data", "Name the folder of the volumes too")
    cases, errors = find_run_cases(settings, settings.data)
    channels = find_channels(settings.data, settings.labels)
    # only centres are checked, for want of memory: where training takes patches, a label that lies outside is not lost
    is_part = settings.wants_patches is None and headers_exceed(cases, settings.spacing, settings.volume)
    try:
        progress = partial(track, description="checking", unit="cases", total=len(cases))
        summaries = map_cases(lambda case: _summarise(case, settings, channels), cases, progress)
    except InputErrors as several:
        summaries = list(several.results)
        errors += several.errors
    for line in format_table([HEADINGS, *(summary.row() for summary in summaries)]):
        say(line)
    readable, prepared = [summary.case for summary in summaries], [summary.prepared for summary in summaries]
    own = [warning for summary in summaries for warning in summary.warnings()]
    for warning in (warnings := find_warnings(readable, prepared, is_part) + own):
        warn(str(warning))
    is_whole = not errors
    errors += find_errors(prepared, {case.name: case.image for case in cases}, channels, settings.data)
    errors += find_duplicates(cases, prepared)
    try:
        _check_labels(settings, readable, prepared, is_whole, () if is_part or errors else channels)
    except InputError as error:
        errors.append(error)
    say(f"{settings.data}: {len(readable)} of {len(cases)} cases can be read, {len(warnings)} warnings")
    if errors:
        raise InputErrors(errors)
    return 0


def _check_labels(
    settings: DataSettings,
    cases: Sequence[Case],
    prepared: Sequence[PreparedCase],
    is_whole: bool,
    channels: Sequence[Channel],
) -> None:
    """Raises an InputError if labels can't be classes, or channels of CT can't be scaled.

    Args:
        settings: of the training.
        cases: those that could be read.
        prepared: they as they are trained on.
        is_whole: whether these are all cases; otherwise a label may be missing with the case that has it.
        channels: to be scaled.
    """
    classes = Classes.of(settings).named_by(case.mask for case in cases)
    prepared = [without_ignored(case, classes.ignored) for case in prepared]
    # the labels below 255 are missing in any case
    is_drawn = not classes.regions and any(set(case.labels) - {0} == {DRAWN} for case in prepared)
    if is_whole or is_drawn:
        count_classes(prepared, cases, classes.binary, classes.declared, classes.regions, classes.regions_from)
    fitted(channels, prepared, settings.data or "", classes.ignored)


def _summarise(case: Case, settings: DataSettings, channels: Sequence[Channel]) -> CaseSummary:
    # imported here, because training from the cache needs no image library
    from vnet_fast.io.volumes import sitk

    raw = [channel.is_ct for channel in channels]
    images, _, prepared = read_case(case, settings.spacing, settings.volume, bool(settings.wants_patches), raw)
    values = [sitk.GetArrayViewFromImage(image) for image in images]
    intensities = [(float(channel.min()), float(channel.max())) for channel in values]
    return CaseSummary(case, images[0].GetSize(), images[0].GetSpacing(), intensities, prepared)


def _format_size(size: tuple[int, int, int]) -> str:
    return " x ".join(map(str, size))
