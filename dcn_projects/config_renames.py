"""
Keys and values of configs that had other names in version 0.1, and what they are now. `read_config`
translates those of files, also of the config.yaml that a training of version 0.1 wrote, and
`merge_options` those of a command line. What they renamed is logged. detectron2 does the same for
its own old keys in `detectron2.config.compat`.
"""

from collections.abc import Mapping

from yacs.config import CfgNode as CN  # detectron2, whose configs are such, takes long to import

from .config_keys import value_of

__all__ = [
    "current_value",
    "register_renames",
    "rename_keys",
    "rename_option",
    "rename_values",
    "upgrade_rfcn",
]

# Old key -> the key that means the same now.
KEYS = {
    "MODEL.DYNAMIC_RCNN.KI": "MODEL.DYNAMIC_RCNN.IOU_TOPK",
    "MODEL.DYNAMIC_RCNN.KE": "MODEL.DYNAMIC_RCNN.ERROR_TOPK",
    "MODEL.DYNAMIC_RCNN.ITERATION_COUNT": "MODEL.DYNAMIC_RCNN.UPDATE_PERIOD",
    "MODEL.MIMIC.SIZE": "MODEL.MIMIC.PATCH_SIZE",
    "MODEL.MIMIC.WEIGHT_COS": "MODEL.MIMIC.COS_WEIGHT",
    "MODEL.MIMIC.WEIGHT_CLS": "MODEL.MIMIC.CLS_WEIGHT",
}
# Old key below MODEL.RFCN -> the key below MODEL.ROI_BOX_HEAD that means the same in R-FCN now, and
# the default of the old one. DEFORM_POOL, True or False, chooses between two types of RoI pooling.
RFCN_KEYS = {
    "CONV_DIM": ("REDUCED_DIM", 1024),
    "GROUP_SIZE": ("POOLER_RESOLUTION", 7),
    "DEFORM_POOL": ("POOLER_TYPE", False),
    "SAMPLING_RATIO": ("POOLER_SAMPLING_RATIO", 4),
    "GAMMA": ("POOLER_GAMMA", 0.1),
}
_RFCN_POOLERS = {False: "PSROIPool", True: "DeformPSROIPool"}
# Key -> old value -> value that means the same now.
VALUES = {"MODEL.ANCHOR_GENERATOR.NAME": {"MXNetAnchorGenerator": "PyFasterRCNNAnchorGenerator"}}
# In version 0.1 this stood in META_ARCHITECTURE, and the name of the model in
# DEFORMABLE.META_ARCHITECTURE, wherever convolutions were to be swapped.
_SWAPS = "build_deformable_model"


def register_renames(cfg: CN) -> None:
    """
    Let detectron2's own `cfg.merge_from_file` and `merge_from_list`, which do not use this table,
    name the new keys in their error about old ones.
    """
    names = {
        f"MODEL.RFCN.{old}": f"MODEL.ROI_BOX_HEAD.{new}" for old, (new, _) in RFCN_KEYS.items()
    }
    for old, new in {**KEYS, **names, "MODEL.RFCN": "MODEL.ROI_BOX_HEAD"}.items():
        if not cfg.key_is_renamed(old):
            cfg.register_renamed_key(
                old, new, "dcn_projects.engine.read_config reads configs with old keys, too"
            )


def current_value(key: str, value):
    """What a value of a key, in full, is called now."""
    return VALUES[key].get(value, value) if key in VALUES else value


def rename_keys(raw: dict, defaults: Mapping) -> list[str]:
    """
    Args:
        raw: a config file as YAML has it, changed in place. Where a key stands under its old and
            its new name, the old one counts: it is from a file on top of one that was updated
        defaults: a config with the default of each new key, which is also that of the old key
    Returns:
        list: what was renamed. Keys that have their defaults are not named, as a training of
            version 0.1 wrote down those of all models
    """
    renamed = []
    for old, new in KEYS.items():
        node, name = _parent(raw, old)
        if name in node:
            value = node[new.rpartition(".")[2]] = node.pop(name)
            if value != value_of(defaults, new):
                renamed.append(_is_now(old, new))
    return renamed


def upgrade_rfcn(raw: dict) -> list[str]:
    """
    Move the keys of MODEL.RFCN to MODEL.ROI_BOX_HEAD. Configs of other models, which have the
    former where version 0.1 wrote down all its keys, lose them.

    Args:
        raw: a config file, merged with its bases, changed in place
    Returns:
        list: what was renamed. Keys that have their old defaults are not named
    Raises:
        ValueError: if MODEL.RFCN has a key that it never had, or a DEFORM_POOL that is no bool
    """
    model, _ = _parent(raw, "MODEL.RFCN")
    old = model.pop("RFCN", None)
    for name in old or ():
        if name not in RFCN_KEYS:
            raise ValueError(f"there is no key MODEL.RFCN.{name}")
    if _model_name(model) != "RFCN":
        return []
    head = model.setdefault("ROI_BOX_HEAD", {})
    defaults = {new: _rfcn_value(name, value) for name, (new, value) in RFCN_KEYS.items()}
    if head.get("POOLER_TYPE") not in _RFCN_POOLERS.values() and old is not None:
        head.update(defaults)  # version 0.1 did not read these keys of the box head
    elif "POOLER_TYPE" not in head:
        head.update(defaults | head)
    renamed = []
    for name, value in (old or {}).items():
        new, default = RFCN_KEYS[name]
        head[new] = _rfcn_value(name, value)
        if value != default:
            renamed.append(
                _is_now(f"MODEL.RFCN.{name} {value}", f"MODEL.ROI_BOX_HEAD.{new} {head[new]}")
            )
    return renamed


def _rfcn_value(name: str, value):
    """The value of today for the value of a key of MODEL.RFCN."""
    if name != "DEFORM_POOL":
        return value
    if value not in _RFCN_POOLERS:
        raise ValueError(f"MODEL.RFCN.DEFORM_POOL is {value}, expected True or False")
    return _RFCN_POOLERS[value]


def rename_option(cfg: CN, key: str, text: str) -> tuple[str, str, list[str]]:
    """
    Args:
        cfg: of a model, into which the option is to be merged
        key, text: of an option of the command line
    Returns:
        tuple: key and text with today's names, and a list of what was renamed
    Raises:
        ValueError: for a key of R-FCN in the config of another model, or DEFORM_POOL other than
            True and False
    """
    if key in KEYS:
        return KEYS[key], text, [_is_now(key, KEYS[key])]
    group, _, name = key.rpartition(".")
    if group != "MODEL.RFCN" or name not in RFCN_KEYS:
        return key, text, []
    new = f"MODEL.ROI_BOX_HEAD.{RFCN_KEYS[name][0]}"
    if _model_name(cfg.MODEL) != "RFCN":
        raise ValueError(f"{key} is a key of R-FCN, and MODEL.META_ARCHITECTURE is another model")
    value = _rfcn_value(name, {"True": True, "False": False}.get(text, text))
    return new, value, [_is_now(f"{key} {text}", f"{new} {value}")]


def rename_values(cfg: CN) -> list[str]:
    """
    Args:
        cfg: a complete config with old values, changed in place
    Returns:
        list: what was renamed
    """
    renamed = []
    for key in VALUES:
        node, name = _parent(cfg, key)
        old, node[name] = node[name], current_value(key, node[name])
        if node[name] != old:
            renamed.append(_is_now(f"{key} {old}", f"{key} {node[name]}"))
    model = cfg.MODEL
    name = _model_name(model)
    if name != model.META_ARCHITECTURE:
        model.META_ARCHITECTURE = name
        key = "MODEL.META_ARCHITECTURE"
        renamed.append(_is_now(f"{key} {_SWAPS}", f"{key} {name}"))
    return renamed


def _model_name(model: Mapping) -> str | None:
    """The name of the model itself that the keys below MODEL describe, if they have it."""
    name = model.get("META_ARCHITECTURE")
    return model.get("DEFORMABLE", {}).get("META_ARCHITECTURE") if name == _SWAPS else name


def _is_now(old: str, new: str) -> str:
    return f"{old} is {new} now"


def _parent(raw: dict, key: str) -> tuple[dict, str]:
    """The node that holds a key, or an empty one if there is none, and the key's last part."""
    group, _, name = key.rpartition(".")
    try:
        node = value_of(raw, group)
    except KeyError:
        node = None
    return node if isinstance(node, dict) else {}, name
