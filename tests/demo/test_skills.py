"""Problems, their held-out part, and the scorer."""

from __future__ import annotations

import random

import pytest
import torch

from mergeloom.demo import skills
from mergeloom.demo.llama import Model, load
from mergeloom.demo.run import MODELS
from mergeloom.demo.skills import Problem
from mergeloom.demo.train import BASE_TASKS


def test_answers_are_right():
    for question, answer in skills.held_out_problems("add", 50):
        first, second = question.removeprefix("add ").removesuffix("=").split()
        assert int(first) + int(second) == int(answer)
        assert 10 <= int(first) <= 99
        assert 10 <= int(second) <= 99
    for question, answer in skills.held_out_problems("sort", 50):
        word = question.removeprefix("sort ").removesuffix("=")
        assert len(word) == skills.WORD_LENGTH
        assert sorted(word) == list(answer)


@pytest.mark.parametrize("skill", skills.SKILLS)
def test_held_out_problems_are_different_and_never_trained_on(skill):
    held_out = skills.held_out_problems(skill, skills.MAX_PROBLEMS)
    assert len(set(held_out)) == skills.MAX_PROBLEMS
    assert held_out == skills.held_out_problems(skill, skills.MAX_PROBLEMS)
    rng = random.Random(5)
    draws = (skills.SKILLS[skill], *BASE_TASKS)
    trained = {skills.training_problem(rng, draw).question for draw in draws for _ in range(2000)}
    characters = {"".join(sorted(question)) for question in trained}
    assert not characters & {"".join(sorted(problem.question)) for problem in held_out}


def test_a_rearranged_problem_is_held_out_too():
    for question, _ in skills.held_out_problems("add", 50):
        first, second = question.removeprefix("add ").removesuffix("=").split()
        assert skills.is_held_out(skills.addition(int(second), int(first)))


def test_the_base_never_sees_a_problem_of_a_skill():
    rng = random.Random(6)
    for draw in BASE_TASKS:
        for _ in range(500):
            question = draw(rng).question
            assert not (question.startswith("add") and len(question) > len("add 10 9="))
            assert not (question.startswith("sort") and len(question) > len("sort abcde="))


def test_encode_pads_on_the_right_and_targets_the_answer_only():
    tokens, targets = skills.encode([Problem("add 1 2=", "3"), Problem("sort ba=", "ab")])
    id_of = skills.VOCABULARY
    expected = [id_of[t] for t in (skills.BOS, *"add 1 2=3", skills.PAD)]
    assert tokens[0].tolist() == expected
    none = [skills.NO_TARGET]
    assert targets[0].tolist() == none * 8 + [id_of["3"], id_of[skills.EOS]] + none
    assert targets[1].tolist() == none * 8 + [id_of["a"], id_of["b"], id_of[skills.EOS]]


@pytest.mark.parametrize("count", [0, -1, skills.MAX_PROBLEMS + 1])
def test_an_impossible_number_of_problems_is_refused(count):
    with pytest.raises(ValueError, match="between 1 and"):
        skills.held_out_problems("add", count)


def test_accuracy_is_the_share_that_greedy_decoding_solves():
    """One pass over the solved problems says the same as writing every answer."""
    base, add = load(MODELS / "base"), load(MODELS / "add")
    # Part of the way from the base to the specialist, where some answers are right and some wrong.
    weights = {name: w + 0.25 * (add.weights[name] - w) for name, w in base.weights.items()}
    model = Model(base.config, weights, base.vocabulary)
    problems = skills.held_out_problems("add", 40)
    solved = sum(skills.generate(model, question) == answer for question, answer in problems)
    assert 0 < solved < 40
    assert skills.accuracy(model, "add", 40) == pytest.approx(solved / 40)


def test_scoring_leaves_the_number_of_threads_alone():
    threads = torch.get_num_threads()
    skills.score(MODELS / "base", "add", 5)
    assert torch.get_num_threads() == threads
