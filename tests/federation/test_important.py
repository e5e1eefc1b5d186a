"""Slices of important channels: equal widths are HeteroFL's, the order moves with the model."""

import torch

from heterofl_flwr import Adam, Evaluation, MovingAverage
from heterofl_flwr.report import Recorder, RunFolder
from tests.federation.tiny import build_normed, equal, make_app, play

IMPORTANT = {"slice_rule": "important", "rank_every": 2, "rank_margin": 0.0}


def channel_norms(state):
    entries = torch.cat([state["hidden.weight"], state["hidden.bias"][:, None], state["classifier.weight"].T], 1)
    return entries.double().norm(dim=1)


def sorted_state(state):
    places = sorted(range(8), key=lambda channel: -channel_norms(state)[channel])
    return {name: tensor[:, places] if name == "classifier.weight" else tensor[places] if "hidden" in name else tensor
            for name, tensor in state.items()}  # fmt: skip


def test_channels_are_sorted_every_k_rounds_against_prefixes_of_sorted_models():
    """Rounds of prefixes, with the model sorted before the first and the third."""
    important = play(None, "a1-b1-c1", 6, 3, **IMPORTANT)
    state = important.before
    for number in (2, 1):
        start = {"initial_arrays": important.result.arrays.__class__(sorted_state(state))}
        state = play(None, "a1-b1-c1", 6, number, start=start).state
    assert equal(state, important.state)
    assert not equal(state, play(None, "a1-b1-c1", 6, 3).state)


def test_tensors_of_stages_move_with_their_channels_and_resume_goes_on_equally(tmp_path):
    options = {**IMPORTANT, "build": build_normed, "evaluation": Evaluation(every=2, levels=True)}

    def run(**more):
        return play(make_app(build=build_normed), "a1-c1", 4, **options, stages=[Adam(), MovingAverage()], **more)

    whole = run(num_rounds=3)
    run(num_rounds=2, callbacks=[Recorder(tmp_path)])
    resumed = run(num_rounds=3, start={"resume": RunFolder(tmp_path).load_checkpoint()})
    assert equal(*(dict(sorted(found.state.items())) for found in (whole, resumed)))
    stages = [progress.stages for progress in whole.progress]
    order = whole.architecture.channel_order
    found = order.find(whole.progress[1].state)
    assert found is not None
    before, after = (own["MovingAverage/hidden.weight"] for own in stages[1:])
    moved = order.apply(found, "hidden.weight", before)
    assert not torch.equal(moved, before)
    torch.testing.assert_close(after, moved.lerp(whole.progress[2].state["hidden.weight"], 0.1))
    assert whole.strategy.moments.keys() == {1.0, 0.25}
