"""Config files hold plain values only, and not more of them than a config has."""

import yaml

__all__ = ["check_plain_yaml"]

# Most characters of a file, and of what it stands for when its aliases are written out, in which
# each value counts for some more. A config with all keys of detectron2 has 50,000 of the latter.
_MAX_SIZE = 2**20
_SIZE_OF_VALUE = 50
_MAX_DEPTH = 32  # of lists and groups of keys in one another
# Tags that the safe loader of YAML makes nothing but numbers, texts, lists and dictionaries of.
_PLAIN_TAGS = {
    f"tag:yaml.org,2002:{kind}" for kind in "null bool int float str seq map merge value".split()
}


def check_plain_yaml(file, name: str) -> None:
    """
    Look at a YAML file without making anything of it. That takes time and memory in proportion to
    its size, whatever it holds.

    Args:
        file: opened to read text
        name: of the file, for messages
    Raises:
        ValueError: if it is no YAML, holds objects of a program, or is larger or deeper than a
            config can be; one line that names it
    """
    try:
        text = file.read(_MAX_SIZE + 1)
        if len(text) > _MAX_SIZE:
            raise ValueError(f"{name}: it has more than {_MAX_SIZE:,} characters: no config")
        loader = yaml.SafeLoader(text)
        loader.name = name
        _check_events(loader, name)
    except UnicodeDecodeError as e:
        raise ValueError(f"{name}: it is no text in UTF-8 ({e.reason})") from None
    except yaml.YAMLError as e:
        message = str(e).replace('"<unicode string>"', "it")
        raise ValueError(f"{name}: {' '.join(message.split())}") from None


def _check_events(loader: yaml.SafeLoader, name: str) -> None:
    sizes = {}  # of what has an anchor, when it is complete
    open_nodes = []  # (anchor, size before it)
    size = 0
    while loader.check_event():
        event = loader.get_event()
        at = f"{name}: line {event.start_mark.line + 1}"
        if isinstance(event, yaml.AliasEvent):
            if any(event.anchor == anchor for anchor, _ in open_nodes):
                raise ValueError(f"{at}: *{event.anchor} is a part of itself")
            size += sizes.get(event.anchor, _SIZE_OF_VALUE)  # without an anchor: YAML refuses it
        elif isinstance(event, yaml.NodeEvent):
            _check_tag(event.tag, at)
            open_nodes.append((event.anchor, size))
            size += _SIZE_OF_VALUE + len(getattr(event, "value", ""))
        if isinstance(event, (yaml.ScalarEvent, yaml.CollectionEndEvent)):
            anchor, before = open_nodes.pop()
            sizes[anchor] = size - before
        if size > _MAX_SIZE:
            raise ValueError(
                f"{at}: it has more values than a config, with aliases (*name) written out"
            )
        if len(open_nodes) > _MAX_DEPTH:
            raise ValueError(f"{at}: more than {_MAX_DEPTH} lists or keys are in one another")


def _check_tag(tag: str | None, at: str) -> None:
    if tag is None or tag == "!" or tag in _PLAIN_TAGS:
        return
    short = tag.replace("tag:yaml.org,2002:", "!!")
    raise ValueError(
        f"{at}: {short[:80]!r} makes an object. A config holds plain values only: write the "
        "numbers, texts or lists themselves"
    )
