"""The Trainer: who is asked when, what equals what, and what survives an interruption."""

import copy

import pytest
import torch
from numpy.testing import assert_allclose
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from natwise.lm import SaltSchedule, SaltTrainer, TeacherCache
from natwise.testing import check_bad_input

V, T = 11, 8
IDS = torch.randint(V, (24, T), generator=torch.Generator().manual_seed(0))


def llama(seed=0, width=8, vocabulary=V):
    sizes = {"hidden_size": width, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes, max_position_embeddings=32)).eval()


def examples(ids=IDS, masked=3):
    rows = []
    for i, sequence in enumerate(ids):
        labels = sequence.clone()
        labels[: i % masked] = -100
        rows.append({"input_ids": sequence, "labels": labels, "index": i})
    return rows


def arguments(folder, **options):
    options = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, **options}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "use_cpu": True}
    return TrainingArguments(str(folder), **{**quiet, **options})


def train(folder, *, teacher=None, kd_steps=2, weight=0.6, options=None, **others):
    model = llama()
    schedule = SaltSchedule(6, kd_steps, weight)
    trainer = SaltTrainer(model, teacher, schedule, arguments(folder, **(options or {})), examples(), **others)
    trainer.train()
    return model, trainer


def assert_same_weights(first, second, tolerance=0.0):
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert_allclose(a.detach(), b.detach(), rtol=0, atol=tolerance)


@pytest.fixture
def teacher():
    return llama(seed=1, width=4)


def test_the_teacher_is_asked_in_the_first_stage_only(tmp_path, teacher):
    asked = []
    teacher.register_forward_hook(lambda module, *_: asked.append((module.training, torch.is_grad_enabled())))
    before = copy.deepcopy(teacher.state_dict())
    train(tmp_path, teacher=teacher, kd_steps=2)
    assert asked == [(False, False)] * 2
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("setting", [{"kd_steps": 0}, {"kd_steps": 6, "weight": 0.0}])
def test_without_weight_it_is_the_plain_trainer(tmp_path, setting):
    plain = llama()
    Trainer(plain, arguments(tmp_path), train_dataset=examples()).train()
    assert_same_weights(train(tmp_path, **setting)[0], plain)


@pytest.mark.parametrize("weight", [0.0, 0.6])
def test_batches_may_be_accumulated(tmp_path, teacher, weight):
    """Sequences with unequal numbers of tokens that count: the mean is over the tokens of the whole step."""
    options = {"optim": "sgd", "learning_rate": 0.5}
    whole = train(tmp_path, teacher=teacher, weight=weight, options=options)[0]
    parts = {**options, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_same_weights(train(tmp_path, teacher=teacher, weight=weight, options=parts)[0], whole, 1e-6)


def test_a_part_of_a_batch_may_be_all_padding(tmp_path, teacher):
    rows = examples(masked=1)
    rows[1]["labels"] = torch.full((T,), -100)
    trained = []
    for parts in ({}, {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}):
        options = arguments(tmp_path, optim="sgd", train_sampling_strategy="sequential", max_steps=1, **parts)
        trained.append(SaltTrainer(llama(), teacher, SaltSchedule(1, 1), options, rows))
        trained[-1].train()
    assert_same_weights(*(trainer.model for trainer in trained), 1e-6)


@pytest.mark.parametrize("step", [2, 4])
def test_goes_on_after_an_interruption(tmp_path, teacher, step):
    """From a checkpoint of either stage; the teacher is asked for what is left of its stage."""
    options = {"save_strategy": "steps", "save_steps": 2}
    whole = train(tmp_path, teacher=teacher, kd_steps=3, options=options)[0]
    asked = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    again = SaltTrainer(llama(), teacher, SaltSchedule(6, 3, 0.6), arguments(tmp_path, **options), examples())
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert_same_weights(again.model, whole)
    assert len(asked) == max(3 - step, 0)


def test_what_shows_only_in_training(tmp_path, teacher):
    options = arguments(tmp_path, max_steps=-1, num_train_epochs=1)
    with pytest.raises(ValueError, match="the run's 6 steps, got 7"):
        SaltTrainer(llama(), teacher, SaltSchedule(7, 2), options, examples()).train()
    with pytest.raises(ValueError, match="must give labels"):
        SaltTrainer(llama(), teacher, SaltSchedule(6, 2), arguments(tmp_path), [{"input_ids": i} for i in IDS]).train()


def test_loss_from_hidden_states(tmp_path, teacher):
    whole = train(tmp_path, teacher=teacher, kd_steps=6)[0]
    assert_same_weights(train(tmp_path, teacher=teacher, kd_steps=6, from_hidden=True, chunk_size=5)[0], whole, 1e-5)
    capped = copy.deepcopy(teacher)
    capped.lm_head.register_forward_hook(lambda module, inputs, output: 5 * torch.tanh(output + 1))
    with pytest.raises(ValueError, match="from_hidden needs a teacher"):
        train(tmp_path, teacher=capped, from_hidden=True)


def test_a_stored_teacher_with_all_tokens_is_the_teacher(tmp_path, teacher):
    cache = TeacherCache.build(teacher, IDS, tmp_path / "cache", k=V)
    options = {"optim": "sgd"}  # Adam would magnify that probabilities are stored in half precision
    whole = train(tmp_path, teacher=teacher, options=options)[0]
    assert_same_weights(train(tmp_path, teacher=cache, options=options)[0], whole, 1e-5)
    with pytest.raises(ValueError, match="index"):
        SaltTrainer(
            llama(), cache, SaltSchedule(6, 2), arguments(tmp_path),
            [{"input_ids": ids, "labels": ids} for ids in IDS],
        ).train()  # fmt: skip


EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}


def test_switch_when_the_student_overtakes(tmp_path, teacher):
    teacher.lm_head.weight.data *= 20  # a bad teacher
    asked = []
    teacher.register_forward_hook(lambda *_: asked.append(1))
    options = {**EVALUATING, "save_strategy": "steps", "save_steps": 2}
    setting = {"eval_dataset": examples(IDS[:4]), "switch_when_overtaken": True}
    _, trainer = train(tmp_path, teacher=teacher, kd_steps=6, options=options, **setting)
    stopped = [entry["teacher_stopped_at"] for entry in trainer.state.log_history if "teacher_stopped_at" in entry]
    assert stopped == [1]
    assert len(asked) == 1 + 1  # one training step and the teacher's own evaluation
    resumed = SaltTrainer(
        llama(), teacher, SaltSchedule(6, 6, 0.6), arguments(tmp_path, **options), examples(), **setting
    )
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(asked) == 2
    assert_same_weights(resumed.model, trainer.model)


def test_warns_when_the_student_overtakes(tmp_path, teacher):
    teacher.lm_head.weight.data *= 20
    with pytest.warns(UserWarning, match="has overtaken its teacher"):
        train(tmp_path, teacher=teacher, kd_steps=6, options=EVALUATING, eval_dataset=examples(IDS[:4]))


def test_both_parts_of_the_loss_are_logged(tmp_path, teacher):
    options = {"logging_strategy": "steps", "logging_steps": 1}
    _, trainer = train(tmp_path, teacher=teacher, options=options)
    parts = [entry for entry in trainer.state.log_history if "teacher_weight" in entry]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(parts) == 2
    for entry, loss in zip(parts, losses, strict=False):
        mixed = 0.4 * entry["cross_entropy"] + 0.6 * entry["teacher_cross_entropy"]
        assert_allclose(mixed, float(loss), atol=2e-3)


def test_bad_input(tmp_path, teacher):
    good = {"model": llama(), "teacher": teacher, "schedule": SaltSchedule(6, 2), "args": arguments(tmp_path)}
    cases = [
        ({"teacher": llama(vocabulary=12)}, ValueError, "12"),
        ({"teacher": None}, ValueError, "None"),
        ({"teacher": "gpt"}, TypeError, "str"),
        ({"schedule": 0.5}, TypeError, "float"),
        ({"schedule": SaltSchedule(7, 2)}, ValueError, "7"),
        ({"inverse_temperature": -1}, ValueError, "-1"),
        ({"chunk_size": 0}, ValueError, "0"),
        ({"from_hidden": 1}, TypeError, "True or False"),
        ({"switch_when_overtaken": "yes"}, TypeError, "True or False"),
        ({"model": None}, TypeError, "module"),
        ({"args": {}}, TypeError, "TrainingArguments"),
        ({"teacher": None, "schedule": SaltSchedule(6, 0), "from_hidden": True}, ValueError, "from_hidden"),
    ]
    check_bad_input(SaltTrainer, cases, **good)
    with pytest.warns(UserWarning, match="training mode"):
        SaltTrainer(**{**good, "teacher": teacher.train()})
