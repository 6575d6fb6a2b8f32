"""Keys of a config that are written in full, such as "MODEL.MASK_ON"."""

from collections.abc import Iterator, Mapping

__all__ = ["leaves", "value_of"]


def value_of(cfg: Mapping, key: str):
    """
    Args:
        cfg: a config, or the nested dicts of a YAML file
        key: of a value, or of a group of keys such as "MODEL.RPN"
    Raises:
        KeyError: naming the key, if there is none of this name
    """
    node = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            raise KeyError(key)
        node = node[part]
    return node


def leaves(cfg: Mapping, prefix: str = "") -> Iterator[tuple[str, object]]:
    """
    Args:
        cfg: see `value_of`
        prefix: of all keys, if `cfg` is a group of keys: "MODEL.RPN."
    Returns:
        Iterator: each key that has a value, written in full, and its value
    """
    for name, value in cfg.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
