"""What is due when, and what an interrupted process leaves over."""

import pytest

from jpeglm_jax.training.loop import Duties, Duty


def duties_of(done, steps=10, check=lambda name: None, **every):
    def work(name):
        return lambda step, state: done.append((name, step, state))

    return Duties([Duty(name, n, work(name)) for name, n in every.items()], steps, check)


def test_duties_are_due_at_multiples_and_after_the_last_step_in_their_order():
    duties = duties_of([], steps=10, evaluate=4, sample=0, checkpoint=3)
    due = {step: duties.due(step) for step in range(1, 11)}
    assert due == {
        **{step: [] for step in (1, 2, 5, 7)},
        3: ["checkpoint"],
        4: ["evaluate"],
        6: ["checkpoint"],
        8: ["evaluate"],
        9: ["checkpoint"],
        10: ["evaluate", "checkpoint"],
    }


def test_each_is_performed_with_the_step_and_the_state():
    done = []
    duties_of(done, evaluate=1, checkpoint=1).perform(["evaluate", "checkpoint"], 3, "state")
    assert done == [("evaluate", 3, "state"), ("checkpoint", 3, "state")]


def test_what_was_interrupted_and_what_comes_after_it_stays_unfinished():
    done = []

    def check(name):
        if name == "sample":
            raise KeyboardInterrupt

    duties = duties_of(done, check=check, evaluate=1, sample=1, checkpoint=1)
    with pytest.raises(KeyboardInterrupt):
        duties.perform(["evaluate", "sample", "checkpoint"], 5, None)
    assert [name for name, _, _ in done] == ["evaluate"]
    assert duties.unfinished == ["sample", "checkpoint"]

    resumed = duties_of(done, evaluate=1, sample=1, checkpoint=1)
    resumed.perform(duties.unfinished, 5, None)
    assert [name for name, _, _ in done] == ["evaluate", "sample", "checkpoint"]
    assert resumed.unfinished == []


def test_a_checkpoint_sees_which_duties_of_its_step_are_left():
    seen = []
    duties = Duties(
        [
            Duty("checkpoint", 1, lambda step, state: seen.append(duties.unfinished)),
            Duty("evaluate", 1, lambda step, state: None),
        ],
        steps=1,
        check=lambda name: None,
    )
    duties.perform(duties.due(1), 1, None)
    assert seen == [["checkpoint", "evaluate"]]
