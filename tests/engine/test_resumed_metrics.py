"""metrics.json of a training that is killed and resumed has the lines of one that is not."""

import json
import math

import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from dcn_projects.engine.resumed_metrics import (
    PERIOD,
    cut_metrics,
    measured_last,
    resume_metrics,
)


class Killed(Exception):
    pass


def train(path, max_iter, checkpoint, save_every=7, killed_at=None):
    """
    What detectron2's trainer does to metrics.json. `checkpoint` is (iterations done, measured), and
    is updated; `killed_at` is (iteration, stage): before the checkpoint of that iteration, before
    the writer, or in its middle.
    """
    done, measured = checkpoint
    writer = JSONWriter(str(path))
    with EventStorage(done) as storage:
        if resume_metrics(path, storage, measured, done):
            writer.write()
        for i in range(done, max_iter):
            storage.iter = i
            storage.put_scalar("loss", math.sin(i * i))
            storage.put_scalar("lr", i / 100, smoothing_hint=False)
            if i % 6 == 0:
                storage.put_scalar("offsets", i, smoothing_hint=False)
            if killed_at == (i, 0):
                raise Killed
            if (i + 1) % save_every == 0:
                checkpoint[:] = i + 1, json.loads(json.dumps(measured_last(storage)))
            if killed_at == (i, 1):
                raise Killed
            if (i + 1) % 28 == 0:
                storage.put_scalar("AP", i / 7, smoothing_hint=False)
            if (i + 1) % PERIOD == 0 or i == max_iter - 1:
                writer.write()
                if killed_at == (i, 2):
                    path.write_bytes(path.read_bytes()[:-9])
                    raise Killed
        storage.iter = max_iter
        storage.put_scalar("AP", 99.0, smoothing_hint=False)
        writer.write()
        writer.close()


@pytest.mark.parametrize("save_every", [1, 5, 7, 20])
@pytest.mark.parametrize("max_iter", [60, 47])
def test_killed_anywhere(max_iter, save_every, tmp_path):
    path = tmp_path / "metrics.json"
    train(path, max_iter, [0, {}], save_every)
    expected = sorted(path.read_text().splitlines())
    assert sum('"iteration": 19}' in line or '"iteration": 19,' in line for line in expected) == 1
    for iteration in range(max_iter):
        for stage in range(3):
            path.unlink()
            checkpoint, done = [0, {}], 0
            try:
                train(path, max_iter, checkpoint, save_every, (iteration, stage))
            except Killed:
                done = checkpoint[0]
                train(path, max_iter, checkpoint, save_every)
            lines = sorted(path.read_text().splitlines())
            # An evaluation right after the checkpoint may not have been made, and is not made now.
            lost = [x for x in expected if x.startswith('{"AP"') and f": {done - 1}}}" in x]
            assert lines == expected or sorted([*lines, *lost]) == expected, (iteration, stage)


def test_lines_of_other_trainings_stay(tmp_path):
    path = tmp_path / "metrics.json"
    cut_metrics(path, 5)
    assert not path.exists()
    lines = ['{"iteration": 99}', '{"iteration": 3}', "no JSON", '{"iteration": 7}', '{"iterat']
    path.write_text("\n".join(lines))
    cut_metrics(path, math.inf)
    assert path.read_text().splitlines() == lines[:4]
    cut_metrics(path, 5)
    assert path.read_text().splitlines() == lines[:2]
    cut_metrics(path, 0)
    assert path.read_text().splitlines() == lines[:1]
