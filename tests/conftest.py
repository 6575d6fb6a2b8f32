def pytest_addoption(parser):
    parser.addoption(
        "--long",
        type=float,
        metavar="HOURS",
        help="run tests/layers/test_fuzz.py on random seeds for so long, shared by its tests",
    )
