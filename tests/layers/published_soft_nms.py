"""Five boxes, and what the published implementations of NMS and soft-NMS make of them."""

# Of inclusive corners: the published implementations, run on them.
BOXES = [[0, 0, 99, 99], [10, 10, 109, 109], [0, 0, 99, 49], [200, 200, 259, 259], [20, 0, 119, 99]]
PUBLISHED = [
    ("gaussian", dict(sigma=0.6), [0, 3, 2, 1, 4], [0.9, 0.6, 0.461468, 0.313004, 0.088349]),
    ("gaussian", dict(sigma=0.5), [0, 3, 2, 1, 4], [0.9, 0.6, 0.424571, 0.259443, 0.062466]),
    ("linear", dict(iou_threshold=0.3), [0, 3, 2, 1, 4], [0.9, 0.6, 0.35, 0.17479, 0.033868]),
    ("hard", dict(iou_threshold=0.3), [0, 3], [0.9, 0.6]),
]
