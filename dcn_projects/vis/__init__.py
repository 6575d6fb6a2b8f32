"""What a model detects, and where its deformable layers look: numbers and pictures."""

from .detections import class_metadata, draw_detections, has_display, show
from .effective_dilation import SIZES, DilationStatistics, effective_dilation, object_sizes
from .look import Look, look
from .offset_magnitude import draw_heat_map, offset_magnitude
from .sampling_locations import (
    draw_deformed_bins,
    draw_sampling_locations,
    record_offsets,
    roi_bins,
    sampling_locations,
)

__all__ = [
    "SIZES",
    "DilationStatistics",
    "Look",
    "class_metadata",
    "draw_deformed_bins",
    "draw_detections",
    "draw_heat_map",
    "draw_sampling_locations",
    "effective_dilation",
    "has_display",
    "look",
    "object_sizes",
    "offset_magnitude",
    "record_offsets",
    "roi_bins",
    "sampling_locations",
    "show",
]
