from detectron2.data import Metadata, MetadataCatalog

__all__ = ["class_metadata"]


def class_metadata(
    cfg, class_names: str = "thing_classes", num_classes: int | None = None
) -> Metadata:
    """
    Args:
        class_names: what of the Metadata has the names, thing_classes or stuff_classes
        num_classes: of the model; names of another number are not its own. None is any number
    Returns:
        Metadata: of the first data set of DATASETS.TRAIN, else of DATASETS.TEST, that has the names
        of the classes; without names if there is none
    """
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        metadata = MetadataCatalog.get(name)
        names = metadata.get(class_names)
        if names and num_classes in (None, len(names)):
            return metadata
    return Metadata(name="no_class_names")
