"""
What a model finds, and where its deformable layers look: numbers and pictures. What draws needs
OpenCV, which is imported when the first of it is asked for.
"""

from dcn_projects.lazy_import import lazy_attributes

from .class_metadata import class_metadata
from .effective_dilation import SIZES, DilationStatistics, effective_dilation, object_sizes
from .image_offsets import ImageOffsets, record_image
from .narrow_images import NarrowImageError, narrow_images_refused
from .offset_magnitude import offset_magnitude
from .recorded_offsets import LayerOffsets, record_offsets
from .sampling_locations import roi_bins, sampling_locations
from .windows import has_display, show

Look, look = ImageOffsets, record_image  # their names in version 0.1

_DRAWING = {
    "InstanceDrawer": "drawers",
    "OffsetPictures": "draw_offsets",
    "PixelClassDrawer": "drawers",
    "LONGEST": "pictures",
    "bounded": "pictures",
    "contact_sheet": "pictures",
    "detect": "drawers",
    "draw_deformed_bins": "draw_offsets",
    "draw_detections": "drawers",
    "draw_heat_map": "draw_offsets",
    "draw_pixel_classes": "drawers",
    "draw_sampling_locations": "draw_offsets",
    "side_by_side": "pictures",
    "text_line": "pictures",
    "write_picture": "pictures",
}

__all__ = [
    "SIZES",
    "DilationStatistics",
    "ImageOffsets",
    "LayerOffsets",
    "Look",
    "NarrowImageError",
    "class_metadata",
    "effective_dilation",
    "has_display",
    "look",
    "narrow_images_refused",
    "object_sizes",
    "offset_magnitude",
    "record_image",
    "record_offsets",
    "roi_bins",
    "sampling_locations",
    "show",
    *_DRAWING,
]
__getattr__, __dir__ = lazy_attributes(__name__, _DRAWING)
