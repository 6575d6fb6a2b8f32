"""A few generated digits, and small models on them, for tests that train."""

from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = "configs/R-FCN/deformable_rfcn_R_14_C5_digits.yaml"
SMALL = "INPUT.MIN_SIZE_TRAIN [96] INPUT.MIN_SIZE_TEST 96 SOLVER.IMS_PER_BATCH 2 MODEL.DEVICE cpu"


def check_message(message, named):
    """One line says what is wrong. As an exit code it is not 0."""
    assert message.startswith("error: ") and "\n" not in message
    assert all(n in message for n in named), message
