"""What a source must have, and how two ResNets are distinguished."""

from dcn_projects.checkpoint.conversion_rules import expected_parameters
from dcn_projects.checkpoint.parameter_names import differing_stages

NAMES = [
    "backbone.stem.conv1.weight",
    "backbone.stem.conv1.norm.num_batches_tracked",
    "backbone.res5.0.conv2.weight",
    "backbone.res5.0.conv2.conv_offset.weight",
    "roi_heads.box_head.fc1.weight",
    "roi_heads.window",
]


def test_expected_parameters():
    assert expected_parameters(NAMES, {"roi_heads.window"}) == [NAMES[0], *NAMES[2:5]]
    assert expected_parameters(NAMES) == [NAMES[0], *NAMES[2:]]
    assert expected_parameters(NAMES, resnet_only=True) == [NAMES[0], NAMES[2]]


def test_differing_stages():
    """Wherever a ResNet is in either; a stage that only one of them has does not count."""
    two = [f"res{stage}.{block}.conv1.weight" for stage in (2, 3) for block in (0, 1)]
    three = [f"backbone.res{stage}.{block}.conv1.bias" for stage in (3, 4) for block in (0, 1, 2)]
    assert differing_stages(two, three) == [("res3", 2, 3)]
    assert differing_stages(two, two + ["head.res3.weight"]) == []
