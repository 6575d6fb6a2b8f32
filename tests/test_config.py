"""Every key of this project is read by a component that says so, or by the engine."""

from detectron2.config import get_cfg
from detectron2.projects.deeplab import add_deeplab_config

from dcn_projects.config import add_dcn_config, keys_read_by, reads
from dcn_projects.config_keys import leaves
from dcn_projects.engine import check_config
from dcn_projects.engine.tasks import REGISTRIES

# Groups that the engine reads, for every model.
ENGINE = {"INPUT", "SOLVER", "DATALOADER", "TEST.AUG"}


def our_keys() -> set[str]:
    theirs, ours = get_cfg(), get_cfg()
    add_deeplab_config(theirs)
    add_dcn_config(ours)
    return dict(leaves(ours)).keys() - dict(leaves(theirs)).keys()


def declared_keys() -> set[str]:
    components = [component for registry in REGISTRIES.values() for _, component in registry]
    return {key for c in components for key in keys_read_by(c)}


def is_below(key: str, group: str) -> bool:
    return key == group or key.startswith(group + ".")


def test_every_key_has_a_reader():
    readers = declared_keys() | ENGINE
    assert [key for key in our_keys() if not any(is_below(key, r) for r in readers)] == []


def test_every_declared_key_is_there():
    # Keys of detectron2 that have values of this project are declared, too.
    keys = our_keys() | set(check_config.POOLERS)
    assert [r for r in declared_keys() | ENGINE if not any(is_below(key, r) for key in keys)] == []


def test_declarations_are_inherited():
    @reads("MODEL.A", "MODEL.B")
    class Base:
        pass

    @reads("MODEL.C")
    class Derived(Base):
        pass

    assert keys_read_by(Base) == {"MODEL.A", "MODEL.B"}
    assert keys_read_by(Derived) == {"MODEL.A", "MODEL.B", "MODEL.C"}
