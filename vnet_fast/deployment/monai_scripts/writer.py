"""Writes masks."""

from typing import Any

from monai.data import NibabelWriter


class MaskWriter(NibabelWriter):
    """Writes NIfTI files of three axes, also of volumes of one slice, which MONAI's writer makes 2-D."""

    def set_data_array(
        self, data_array: Any, channel_dim: int | None = 0, squeeze_end_dims: bool = True, **kwargs: Any
    ) -> None:
        """Takes the (1, *spatial) mask that is to be written; `squeeze_end_dims` is passed over."""
        values = data_array if channel_dim is None else data_array[0]
        super().set_data_array(values, channel_dim=None, squeeze_end_dims=False, **kwargs)
        # the channel that MONAI appends
        self.data_obj = self.data_obj[..., 0]

    def set_metadata(self, meta_dict: Any, resample: bool = True, **options: Any) -> None:
        """Takes the affine as it is, because the mask is on its volume's grid; `resample` is passed over.

        MONAI's writer would take x for the channels if the metadata says that the volume had an axis of channels.
        """
        _, self.affine, _ = self.get_meta_info(meta_dict)
