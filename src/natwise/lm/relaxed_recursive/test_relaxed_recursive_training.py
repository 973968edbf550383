"""Early exits, uptraining with a teacher, and the command line."""

import copy

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.nn.functional import cross_entropy, log_softmax
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainingArguments

from natwise.lm import EarlyExitLoss, UptrainTrainer, evaluate_exits, to_recursive
from natwise.lm.relaxed_recursive._command import uptrain
from natwise.lm.relaxed_recursive.test_relaxed_recursive import source
from natwise.testing import check_bad_input, check_result

IDS = torch.randint(3, 48, (24, 9), generator=torch.Generator().manual_seed(0))
EXITS = [torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in range(3)]
LABELS = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(9))
LABELS[0, :2] = -100


def slow_loss(kind, coef, self_distill, hard_labels):
    """The losses as one would write them down, token by token."""
    *early, final = [log_softmax(one, -1) for one in EXITS]
    losses = []
    for one in [*early, final]:
        hard = soft = 0.0
        for b, t in zip(*torch.where(LABELS != -100), strict=True):
            hard = hard - one[b, t, LABELS[b, t]] / 8
            soft = soft + (final[b, t].exp() * (final[b, t] - one[b, t])).sum() / 8
        is_final = one is final
        losses.append(hard if is_final else hard * hard_labels + soft * self_distill)
    weights = [coef, coef, 1] if kind == "aggressive" else [1 / 6, 2 / 6, 3 / 6]
    return sum(weight * loss for weight, loss in zip(weights, losses, strict=True))


@pytest.mark.parametrize("kind", ["aggressive", "weighted"])
@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, True)])
def test_early_exit_loss(kind, flags):
    loss = EarlyExitLoss(kind, 0.3, flags[0], hard_labels=flags[1])
    assert_allclose(float(loss(EXITS, LABELS)), float(slow_loss(kind, 0.3, *flags)), rtol=1e-10)


def test_the_final_loop_does_not_learn_from_itself():
    exits = [one.clone().requires_grad_() for one in EXITS]
    EarlyExitLoss("aggressive", 0.5)(exits, LABELS).backward()
    final = EXITS[-1].clone().requires_grad_()
    cross_entropy(final.flatten(0, 1), LABELS.flatten()).backward()
    assert_allclose(exits[-1].grad, final.grad, atol=1e-12)
    single = EarlyExitLoss()(EXITS[:1], LABELS)
    assert_allclose(float(single), float(cross_entropy(EXITS[0].flatten(0, 1), LABELS.flatten())), rtol=1e-12)


def test_evaluation_of_exits():
    model = to_recursive(source(layers=6), 3, "average").train()
    result = evaluate_exits(model, IDS, batch_size=5)
    assert model.training
    check_result(result)
    with torch.no_grad():
        exits = [one[:, :-1] for one in model.eval()(IDS, output_exits=True).exit_logits]
    for i, one in enumerate(exits):
        expected = cross_entropy(one.flatten(0, 1), IDS[:, 1:].flatten())
        assert_allclose(result.arrays["loss"][i], float(expected), rtol=1e-5)
        assert_allclose(result.arrays["accuracy"][i], float((one.argmax(-1) == IDS[:, 1:]).double().mean()))
    guesses = np.array([one.argmax(-1).numpy() for one in exits])
    mean_exit = ((guesses == guesses[-1]).argmax(0) + 1).mean()
    assert_allclose(result.scalars["mean_exit"], mean_exit)
    assert result.arrays["agreement"][-1] == 1.0
    assert evaluate_exits(model, IDS.int(), batch_size=5).scalars == pytest.approx(result.scalars)
    middle = evaluate_exits(to_recursive(source(layers=6), 2, sharing="middle_cycle"), IDS)
    assert (middle.rows, middle.scalars["mean_exit"]) == (("loop 2",), 2.0)


def arguments(folder, **options):
    options = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 0.5, "optim": "sgd", **options}
    quiet = {"report_to": [], "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no", "use_cpu": True}
    return TrainingArguments(str(folder), **{**quiet, **options})


def train(folder, options=None, model=None, resume=None, **others):
    model = model or to_recursive(source(), 2, "average", 2, random_state=0)
    examples = [{"input_ids": one, "labels": one.clone()} for one in IDS]
    for i, example in enumerate(examples):
        example["labels"][: i % 3] = -100
    trainer = UptrainTrainer(model, arguments(folder, **(options or {})), examples, **others)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=resume)
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_batches_may_be_accumulated(tmp_path):
    """Sequences with unequal numbers of tokens that count: the mean is over the tokens of the whole step."""
    settings = {"teacher": source(), "distillation": "tvd", "early_exit": EarlyExitLoss()}
    whole = train(tmp_path, **settings)
    parts = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    assert_allclose(train(tmp_path, parts, **settings), whole, atol=1e-5)


def test_an_interrupted_run_goes_on(tmp_path):
    options = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    whole = train(tmp_path, options)
    model = to_recursive(source(), 2, "average", 2, random_state=5)
    assert torch.equal(train(tmp_path, options, model, resume=str(tmp_path / "checkpoint-2")), whole)


def test_trainer_takes_what_it_is_given(tmp_path):
    start = to_recursive(source(), 2, "average", 2, random_state=0)
    plain = train(tmp_path, model=copy.deepcopy(start))
    assert_allclose(
        train(tmp_path, model=copy.deepcopy(start), teacher=source(), distillation_weight=0.0), plain, atol=1e-6
    )
    before = start(IDS, labels=IDS).loss
    train(tmp_path, model=start, teacher=source())
    assert start(IDS, labels=IDS).loss < before
    cases = [
        ({"teacher": source(vocab_size=50)}, ValueError, "vocabulary"),
        ({"teacher": torch.nn.Linear(1, 1)}, TypeError, "PreTrainedModel"),
        ({"distillation": "kl"}, ValueError, "must be one of"),
        ({"distillation_weight": -1.0}, ValueError, ">= 0"),
        ({"temperature": 0.0}, ValueError, "> 0"),
        ({"early_exit": 0.1}, TypeError, "EarlyExitLoss"),
        ({"model": "gpt"}, TypeError, "module"),
        ({"args": None}, TypeError, "TrainingArguments"),
        ({"early_exit": EarlyExitLoss(), "model": source()}, TypeError, "RecursiveForCausalLM"),
    ]
    check_bad_input(UptrainTrainer, cases, model=start, args=arguments(tmp_path))


def test_bad_exits():
    cases = [
        ({"kind": "mild"}, ValueError, "must be one of"),
        ({"coef": -0.1}, ValueError, ">= 0"),
        ({"coef": "0.1"}, TypeError, "number"),
        ({"self_distill": 1}, TypeError, "True or False"),
        ({"self_distill": False, "hard_labels": False}, ValueError, "learn"),
    ]
    check_bad_input(EarlyExitLoss, cases)
    everywhere = torch.full_like(LABELS, -100)
    cases = [
        ({"exit_logits": []}, ValueError, "one shape"),
        ({"exit_logits": EXITS[0]}, TypeError, "list of tensors"),
        ({"exit_logits": [EXITS[0], EXITS[1][:1]]}, ValueError, "one shape"),
        ({"exit_logits": [EXITS[0] * float("nan")]}, ValueError, "finite"),
        ({"exit_logits": [EXITS[0].to(torch.complex64)]}, TypeError, "floats, got torch.complex64"),
        ({"labels": LABELS.float()}, TypeError, "int64"),
        ({"labels": LABELS[:1]}, ValueError, "shape"),
        ({"labels": LABELS + 7}, ValueError, "classes"),
        ({"labels": everywhere}, ValueError, "not everywhere"),
    ]
    check_bad_input(
        lambda exit_logits, labels: EarlyExitLoss()(exit_logits, labels), cases, exit_logits=EXITS, labels=LABELS
    )
    cases = [
        ({"model": source()}, TypeError, "RecursiveForCausalLM"),
        ({"sequences": IDS.numpy()}, TypeError, "must be a tensor"),
        ({"sequences": IDS.float()}, TypeError, "integers"),
        ({"sequences": IDS > 3}, TypeError, "integers"),
        ({"sequences": IDS[0]}, ValueError, "(sequences, tokens)"),
        ({"sequences": IDS[:0]}, ValueError, "hold tokens"),
        ({"sequences": IDS + 48}, ValueError, "0..47"),
        ({"sequences": IDS.repeat(1, 300)}, ValueError, "max_position_embeddings"),
        ({"sequences": IDS[:, :1]}, ValueError, "two tokens"),
        ({"batch_size": 0}, ValueError, ">= 1"),
    ]
    check_bad_input(evaluate_exits, cases, model=to_recursive(source(), 2), sequences=IDS)


@pytest.fixture
def checkpoint(tmp_path):
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2,
        max_position_embeddings=32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "source")
    (tmp_path / "text.txt").write_text("to be or not to be, that is the question. " * 60)
    return tmp_path


def test_command(checkpoint, capsys):
    files = {"model": checkpoint / "source", "text": checkpoint / "text.txt", "out": checkpoint / "out"}
    settings = {"steps": 8, "learning_rate": 0.02, "rank": 2, "init": "average", "batch": "4x16"}
    uptrain(**files, **settings, distill="forward_kl", early_exit=0.1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        before, after = (float(word) for word in line.split(": ")[1].split(" nats")[0].split(" -> "))
        assert after < before
    model = AutoModelForCausalLM.from_pretrained(checkpoint / "out")
    assert (model.config.num_loops, model.config.lora_rank) == (2, 2)
    assert not (checkpoint / "out" / "checkpoints").exists()
    (checkpoint / "other" / "checkpoints").mkdir(parents=True)
    (checkpoint / "other" / "checkpoints" / "recipe.json").write_text("{}")
    cases = [
        ({"steps": 0}, ValueError, ">= 1"),
        ({"batch": "4x64"}, ValueError, "at most 32"),
        ({"batch": "16"}, ValueError, "like 16x512"),
        ({"distill": "kl"}, ValueError, "must be one of"),
        ({"distill": "jsd", "model": checkpoint / "out"}, ValueError, "not recursive yet"),
        ({"rank": 3, "model": checkpoint / "out"}, ValueError, "rank is 2 in the recursive checkpoint"),
        ({"loops": 3, "model": checkpoint / "out"}, ValueError, "loops is 2 in the recursive checkpoint"),
        ({"init": "first"}, ValueError, "must be one of"),
        ({"model": checkpoint}, ValueError, "no "),
        ({"text": checkpoint / "none.txt"}, ValueError, "must be a file"),
        ({"out": checkpoint / "other"}, ValueError, "other settings"),
    ]
    check_bad_input(uptrain, cases, **files, **settings)
    with pytest.raises(ValueError, match="num_loops must divide"):
        uptrain(**files, **settings, loops=3)
