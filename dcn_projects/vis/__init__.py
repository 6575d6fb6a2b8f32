from .sampling_locations import (
    draw_deformed_bins,
    draw_sampling_locations,
    record_offsets,
    roi_bins,
    sampling_locations,
)

__all__ = [
    "draw_deformed_bins",
    "draw_sampling_locations",
    "record_offsets",
    "roi_bins",
    "sampling_locations",
]
