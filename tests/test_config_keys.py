import pytest
from yacs.config import CfgNode

from dcn_projects.config_keys import leaves, value_of

RAW = {"SEED": 1, "MODEL": {"MASK_ON": True, "RPN": {"SIZES": (1, 2), "NAME": "SEED"}}}


@pytest.mark.parametrize("cfg", [RAW, CfgNode(RAW)])
def test_value_of(cfg):
    assert value_of(cfg, "SEED") == 1
    assert value_of(cfg, "MODEL.RPN.SIZES") == (1, 2)
    assert value_of(cfg, "MODEL.RPN") is cfg["MODEL"]["RPN"]


@pytest.mark.parametrize("key", ["SEAD", "MODEL.RPM.SIZES", "SEED.MODEL", "MODEL.RPN.NAME.SEED"])
def test_missing_key(key):
    with pytest.raises(KeyError, match=key):
        value_of(RAW, key)


@pytest.mark.parametrize("cfg", [RAW, CfgNode(RAW)])
def test_leaves(cfg):
    assert dict(leaves(cfg)) == {
        "SEED": 1,
        "MODEL.MASK_ON": True,
        "MODEL.RPN.SIZES": (1, 2),
        "MODEL.RPN.NAME": "SEED",
    }
    assert dict(leaves(cfg["MODEL"]["RPN"], "R.")) == {"R.SIZES": (1, 2), "R.NAME": "SEED"}
