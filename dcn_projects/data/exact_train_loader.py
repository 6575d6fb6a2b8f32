import functools
import itertools
from collections.abc import Iterator

import numpy as np
from detectron2.data import DatasetFromList, build_detection_train_loader
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import IterableDataset, get_worker_info

from .images import image_size

__all__ = ["ExactTrainLoader", "check_exact_resume"]


# What random numbers are for; the first of the numbers that seed them.
IMAGE, MODEL = range(2)


def seed_by(*numbers: int) -> None:
    """Seed all random numbers of this process by several numbers, none below 0."""
    seed_all_rng(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


size_of_file = functools.cache(image_size)  # which is asked in every epoch


def is_wide(record: dict) -> bool:
    """What detectron2 groups images by. Where a record has no size, its mapper adds the file's."""
    if "width" in record:
        return record["width"] > record["height"]
    width, height = size_of_file(record["file_name"])
    return width > height


class TrainingStream(IterableDataset):
    """
    The images that this process reads in a training, from a batch on: every epoch shuffled anew,
    dealt out to the processes in turn. What is at a position, and how it is augmented, depends on
    the seed and the position alone.

    Batches are made by detectron2, of images that are all wider than high or all not; those that
    were read and wait for others of their kind come first.
    """

    def __init__(self, records, mapper, seed: int, batch_size: int):
        """
        Args:
            records: detectron2's records of the images
            mapper: of a record to what the model takes
            seed: 0 or more
            batch_size: of this process
        """
        self.records, self.mapper, self.seed, self.batch_size = records, mapper, seed, batch_size
        self.first_batch = 0
        self.rank, self.processes = comm.get_rank(), comm.get_world_size()
        self.epoch = None

    def record(self, position: int) -> dict:
        epoch, i = divmod(position, len(self.records))
        if epoch != self.epoch:
            rng = np.random.default_rng((self.seed, epoch))
            self.epoch, self.order = epoch, rng.permutation(len(self.records))
        return self.records[self.order[i]]

    def positions(self) -> Iterator[int]:
        positions = itertools.count(self.rank, self.processes)
        waiting = [], []
        batches = 0
        while batches < self.first_batch:
            position = next(positions)
            of_a_kind = waiting[is_wide(self.record(position))]
            of_a_kind.append(position)
            if len(of_a_kind) == self.batch_size:
                of_a_kind.clear()
                batches += 1
        yield from itertools.chain(*waiting, positions)

    def __iter__(self):
        # The loader takes one image of each of its workers in turn.
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for position in itertools.islice(self.positions(), first, None, step):
            seed_by(IMAGE, self.seed, position)
            yield self.mapper(self.record(position))


class ExactTrainLoader:
    """
    detectron2's training loader, which can begin with the batch of any iteration, and which makes
    that iteration draw what it would have drawn after those before it.

    Attributes:
        first_iteration: counted from 0; to be set before the first batch is read
    """

    def __init__(self, options: dict, seed: int):
        """
        Args:
            options: arguments of detectron2's `build_detection_train_loader`; the sampler is not
                used
            seed: 0 or more
        """
        records = DatasetFromList(options["dataset"], copy=False)
        batch_size = options["total_batch_size"] // comm.get_world_size()
        self.stream = TrainingStream(records, options["mapper"], seed, batch_size)
        options = {**options, "dataset": self.stream, "mapper": None, "sampler": None}
        self.loader = build_detection_train_loader(**options)
        self.seed, self.first_iteration = seed, 0

    def __iter__(self):
        # A generator: this line runs when the first batch is asked for, and then workers start.
        self.stream.first_batch = self.first_iteration
        for iteration, batch in enumerate(self.loader, self.first_iteration):
            # The loader has drawn too, more for its first batch than for others.
            seed_by(MODEL, self.seed, iteration, comm.get_rank())
            yield batch


def check_exact_resume(cfg) -> None:
    """Raises ValueError if DATALOADER.EXACT_RESUME is on beside keys that make it impossible."""
    if not cfg.DATALOADER.EXACT_RESUME:
        return
    if cfg.SEED < 0:
        raise ValueError("DATALOADER.EXACT_RESUME needs a SEED of 0 or more")
    if cfg.DATALOADER.SAMPLER_TRAIN != "TrainingSampler":
        raise ValueError("DATALOADER.EXACT_RESUME needs DATALOADER.SAMPLER_TRAIN TrainingSampler")
    if not cfg.DATALOADER.ASPECT_RATIO_GROUPING:
        raise ValueError("DATALOADER.EXACT_RESUME needs DATALOADER.ASPECT_RATIO_GROUPING True")
    if cfg.TEST.PRECISE_BN.ENABLED:
        raise ValueError(
            "DATALOADER.EXACT_RESUME needs TEST.PRECISE_BN.ENABLED False: its images are others "
            "after a resumption"
        )
