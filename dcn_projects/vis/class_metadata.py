from detectron2.data import Metadata, MetadataCatalog

__all__ = ["class_metadata"]


def class_metadata(cfg) -> Metadata:
    """Of the first test data set. It has no class names if the data set is not registered."""
    return MetadataCatalog.get(cfg.DATASETS.TEST[0] if cfg.DATASETS.TEST else "no_class_names")
