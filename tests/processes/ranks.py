"""What the tests have each of several processes do, by the name that `Group.launch` is given."""

import json
import random
import time
from pathlib import Path

from llmrec.errors import RecipeError
from llmrec.runs import processes as runtime


def _told(out, what):
    rank = runtime.processes().process_index
    Path(f"{out}-{rank}.json").write_text(json.dumps(what), "utf-8")


def takes_from_a_queue(out, count):
    """Rank 0 is slow; each says which numbers it worked on, in two queues."""
    state = runtime.joined()
    found = []
    for _ in range(2):
        mine = []
        for number in runtime.taken(int(count)):
            mine.append(number)
            time.sleep(0.2 if state.is_main_process else 0.01)
        runtime.together()
        found.append(mine)
    _told(out, found)


def waits_longer_than_collectives(out):
    """Collectives give up after a second; rank 0 is two seconds late, three times."""
    state = runtime.joined(1.0)

    def slow():
        time.sleep(2.0)
        return {"who": state.process_index}

    found = [runtime.main_only(slow)]
    with runtime.main_first():
        if state.is_main_process:
            time.sleep(2.0)
        found.append(time.monotonic())
    if state.is_main_process:
        time.sleep(2.0)
    runtime.together()
    _told(out, found)


def fails_in_the_main_process(out):
    """All fail as rank 0 does."""
    runtime.joined()

    def failing():
        raise RecipeError("the recipe says what cannot be")

    runtime.main_only(failing)


def is_alone_in_the_main_process(out):
    """What is done by one alone asks nobody else, though it calls what all call."""
    runtime.joined()

    def nested():
        with runtime.main_first():
            runtime.together()
        return [list(runtime.taken(3)), runtime.share_of(2), runtime.gathered({1: 2})]

    _told(out, [runtime.main_only(nested), runtime.share_of(4)])


def has_a_folder_of_its_own(out):
    """Each rank has another folder under the same name, as hosts that share nothing."""
    state = runtime.joined()
    runtime.PATIENCE = 0.5
    runtime._require_shared(Path(f"{out}-{state.process_index}"))


def runs_with_a_late_main_process(seed, recipe):
    """`llmrec run`, in which rank 0 comes late to whatever processes meet in."""
    from llmrec.recipe.loading import load
    from llmrec.runs.folder import RunFolder
    from llmrec.stages import pipeline

    state = runtime.joined()
    draws, wait = random.Random(int(seed)), runtime._wait

    def late(there):
        if state.is_main_process:
            time.sleep(draws.choice([0.0, 0.0, 0.02, 0.1]))
        wait(there)

    runtime._wait = late
    loaded = load(Path(recipe), [])
    pipeline.run(loaded, RunFolder.of(loaded))


def trains_with_a_number_that_is_none(where, recipe):
    """`llmrec train`, whose second step has one that is not finite, in a loss or in a gradient."""
    from llmrec.model.softmax import MaskedSoftmax
    from llmrec.model.trainer import TreeTrainer
    from llmrec.recipe.loading import load
    from llmrec.runs.folder import RunFolder
    from llmrec.stages import pipeline

    read, learn = MaskedSoftmax.branch_log_probabilities, TreeTrainer.training_step
    steps = []

    def reading(self, model, batch):
        values = read(self, model, batch)
        if values.requires_grad and len(steps) == 2:
            if where == "value":
                return values * float("nan")
            values.register_hook(lambda gradient: gradient * float("nan"))
        return values

    def learning(self, *asked):
        steps.append(self.state.global_step)
        return learn(self, *asked)

    MaskedSoftmax.branch_log_probabilities, TreeTrainer.training_step = reading, learning
    loaded = load(Path(recipe), [])
    pipeline.train(loaded, RunFolder.of(loaded))
