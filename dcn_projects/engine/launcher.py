import contextlib
import logging
import os
from argparse import Namespace
from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.utils import comm

from .stop_signals import Stopped, passed_on

__all__ = ["launch"]


def launch(main: Callable[[Namespace], object], args: Namespace) -> None:
    """
    Run `main(args)` in as many processes as asked for: those of torchrun, if it started this
    program, else those of `--num-gpus` and `--num-machines` through detectron2's launcher.
    If there are fewer GPUs than processes, they communicate over gloo. Without torchrun and without
    a GPU, a single process runs.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _join_torchrun()
        try:
            main(args)
            # Older gloo aborts if a process ends while another one still communicates with it.
            comm.synchronize()
        except Stopped as stopped:  # where all processes have waited for the first one
            if not stopped.by_all:
                raise
            dist.destroy_process_group()
            raise
        dist.destroy_process_group()
    elif torch.cuda.is_available():
        several = args.num_gpus * args.num_machines > 1
        with passed_on() if several else contextlib.nullcontext():
            engine.launch(
                main,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args,),
            )
    else:
        if args.num_gpus * args.num_machines > 1:
            logging.getLogger(__name__).warning(
                "No GPU: one process on the CPU. Start with torchrun to use several."
            )
        main(args)


def _join_torchrun() -> None:
    use_cuda = torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"])
    if use_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if use_cuda else "gloo")
    # detectron2's own launcher does the same, under a name that changed after release 0.6.
    per_machine = int(os.environ["LOCAL_WORLD_SIZE"])
    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(per_machine)
    else:
        for first in range(0, dist.get_world_size(), per_machine):
            ranks = list(range(first, first + per_machine))
            group = dist.new_group(ranks)
            if dist.get_rank() in ranks:
                comm._LOCAL_PROCESS_GROUP = group
    comm.synchronize()
