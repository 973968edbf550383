"""Penalties against reference numbers, slow definitions and identities; training against what each rule promises.

`golden.npz` (see test_failure_modes.py) holds one batch in float64 and the original's penalties on it.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, one_hot

from natwise.core.io import load_npz
from natwise.shift import DomainGeneralizer
from natwise.shift.failure_modes import penalties, study
from natwise.shift.failure_modes._objective import WEIGHTS, Objective
from natwise.testing import check_bad_input, check_estimator_contract, check_result

GOLDEN = load_npz(Path(__file__).with_name("golden.npz"))
z, y, logits, domain, W = (torch.from_numpy(GOLDEN[f"penalty_{name}"]) for name in ("z", "y", "logits", "domain", "W"))
LOSSES = penalties.domain_losses(logits, y, domain, 3)


def head_losses(weights):
    return penalties.domain_losses(z @ weights, y, domain, 3)


def reference(name):
    return float(GOLDEN[f"expected_{name}"])


@pytest.mark.parametrize(
    ("found", "name"),
    [
        (lambda: penalties.coral(z, domain), "coral"),
        (lambda: penalties.mmd(z, domain), "mmd_rbf_sum7"),
        (lambda: penalties.irm(logits, y, domain), "irm_split_halves"),
        (lambda: penalties.irm(logits, y, domain, "full"), "irm_v1_full_batch"),
        (lambda: penalties.vrex(LOSSES), "vrex"),
        (lambda: penalties.spectral_decoupling(logits), "sd_mean_sq_logit"),
        (lambda: penalties.hsic(z, domain), "hsic_z_domain_median_width"),
        (lambda: penalties.hsic(z, one_hot(domain).double()), "hsic_bruteforce"),
        (lambda: penalties.conditional_hsic(z, y, domain), "cond_hsic_zy_domain"),
        (
            lambda: penalties.gradient_penalty(head_losses(w := W.clone().requires_grad_()), [w]),
            "loo_grad_penalty_linear_head",
        ),
    ],
)
def test_reference_numbers_of_the_original(found, name):
    assert found().item() == pytest.approx(reference(name), abs=1e-9)


def test_reference_trajectory_of_group_dro():
    np.testing.assert_allclose(LOSSES, GOLDEN["expected_group_losses"], atol=1e-9)
    q = torch.full((3,), 1 / 3, dtype=torch.float64)
    for t, expected in enumerate(GOLDEN["expected_groupdro_q_eta0.1_losses_scaled_by_t"], 1):
        loss, q = penalties.group_dro(LOSSES * t, q, 0.1)
        np.testing.assert_allclose(q, expected, atol=1e-9)
        assert loss.item() == pytest.approx(t * float(q @ LOSSES))
    assert float(q @ LOSSES) == pytest.approx(reference("groupdro_loss_last"), abs=1e-9)


def test_irm_is_the_gradient_of_a_scale():
    scale = torch.ones(1, dtype=torch.float64, requires_grad=True)
    gradients = [
        torch.autograd.grad(cross_entropy(scale * logits[domain == e], y[domain == e]), scale)[0] for e in range(3)
    ]
    assert penalties.irm(logits, y, domain, "full").item() == pytest.approx(torch.cat(gradients).square().mean().item())
    assert min(penalties.irm(logits[i : i + 6], y[i : i + 6], domain[i : i + 6] * 0) for i in range(50)) < 0


def test_penalties_vanish_for_equal_domains_and_know_no_order():
    twice, ids = torch.cat([z, z]), torch.arange(2).repeat_interleave(len(z))
    swapped = 7 - 3 * ids
    for penalty in (penalties.coral, penalties.mmd, penalties.hsic):
        assert abs(penalty(twice, ids).item()) < 1e-10
        assert penalty(z, domain).item() > 0
        assert penalty(z, 5 - domain).item() == pytest.approx(penalty(z, domain).item(), rel=1e-12)
        moved = torch.cat([z, 2 * z + 1])
        assert penalty(moved, swapped).item() == pytest.approx(penalty(moved, ids).item(), rel=1e-12)
    assert penalties.vrex(torch.full((4,), 0.3)).item() == pytest.approx(0, abs=1e-12)
    assert torch.equal(penalties.vrex(LOSSES.flip(0)), penalties.vrex(LOSSES))


def test_gradients_pass_through():
    """torch's finite differences, through widths and medians too; the reversed gradient is what it says."""
    some, ids, labels = z[::5, :3].clone().requires_grad_(), domain[::5], y[::5]
    for penalty in (
        lambda a: penalties.coral(a, ids),
        lambda a: penalties.mmd(a, ids),
        lambda a: penalties.irm(a, labels, ids * 0),
        lambda a: penalties.hsic(a, ids),
        lambda a: penalties.conditional_hsic(a, labels, ids),
        penalties.spectral_decoupling,
    ):
        assert torch.autograd.gradcheck(penalty, some)
    reversed_ = penalties.reverse_gradient(some, 0.25)
    assert torch.allclose(reversed_, some)
    assert torch.allclose(torch.autograd.grad(reversed_.sum(), some)[0], torch.full_like(some, -0.25))


def test_a_collapsed_representation_is_no_division_by_zero():
    flat = torch.zeros(8, 2, requires_grad=True)
    value = penalties.hsic(flat, torch.arange(8) % 2)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(torch.autograd.grad(value, flat)[0]).all()


def test_bad_tensors():
    good = {"z": z, "domain": domain}
    cases = [
        ({"z": z.numpy()}, TypeError, "float tensor"),
        ({"z": z.long()}, TypeError, "int64"),
        ({"z": z[:, 0, None, None]}, ValueError, "dimensions"),
        ({"z": z * np.nan}, ValueError, "finite"),
        ({"domain": domain.double()}, TypeError, "integer"),
        ({"domain": domain[1:]}, ValueError, "(60,)"),
        ({"domain": domain * 0}, ValueError, "at least 2 domains"),
        ({"domain": torch.arange(60)}, ValueError, "at least 2 rows"),
    ]
    check_bad_input(penalties.coral, cases, **good)
    check_bad_input(penalties.irm, [
        ({"y": y + 3}, ValueError, "0 to 2"),
        ({"y": y[1:]}, ValueError, "(60,)"),
        ({"estimator": "half"}, ValueError, "split"),
    ], logits=logits, y=y, domain=domain)  # fmt: skip
    check_bad_input(penalties.group_dro, [
        ({"q": torch.ones(2)}, ValueError, "3 losses"),
        ({"q": -torch.ones(3)}, ValueError, ">= 0"),
        ({"step_size": "fast"}, TypeError, "number"),
        ({"losses": LOSSES[None]}, ValueError, "dimensions"),
    ], losses=LOSSES, q=torch.ones(3) / 3, step_size=0.1)  # fmt: skip
    check_bad_input(
        penalties.hsic,
        [
            ({"b": domain[1:]}, ValueError, "same number"),
            ({"b": domain[:0]}, ValueError, "with entries"),
            ({"b": domain + 0j}, TypeError, "complex64"),
            ({"a": [1]}, TypeError, "list"),
            ({"a": z.to_sparse()}, TypeError, "sparse"),
        ],
        a=z,
        b=domain,
    )
    check_bad_input(penalties.gradient_penalty, [
        ({"losses": LOSSES[:1]}, ValueError, "two domains"),
        ({"losses": LOSSES, "parameters": [W]}, ValueError, "depend"),
        ({"parameters": 3}, TypeError, "int"),
    ], losses=LOSSES, parameters=[])  # fmt: skip
    check_bad_input(penalties.mmd, [({"z": z[:, 0]}, ValueError, "2 dimensions")], z=z, domain=domain)
    check_bad_input(penalties.reverse_gradient, [
        ({"weight": -1.0}, ValueError, ">= 0"),
        ({"z": [1.0]}, TypeError, "list"),
        ({"z": z * torch.nan}, ValueError, "finite"),
    ], z=z)  # fmt: skip
    check_bad_input(penalties.domain_losses, [
        ({"domain": domain - 1}, ValueError, "0 to 2, got -1"),
        ({"n_domains": 2.5}, TypeError, "integer"),
    ], logits=logits, y=y, domain=domain, n_domains=3)  # fmt: skip


def problem(seed=0, n=240, flips=(0.05, 0.1, 0.3)):
    """Return rows whose second feature is a shortcut that turns round in the test domain, the last entry."""
    rng = np.random.default_rng(seed)

    def draw(size, wrong):
        label = rng.permutation(np.arange(size) % 2)
        shortcut = np.where(rng.random(size) < wrong, 1 - label, label)
        return np.column_stack([1.5 * label, 4 * shortcut, np.zeros(size)]) + rng.normal(size=(size, 3)), label

    sites = np.arange(n) % len(flips)
    X, label = draw(n, np.array(flips)[sites])
    return X, label, sites, draw(n, 0.9)


def trained(algorithm="erm", **options):
    X, label, sites, _ = problem()
    model = DomainGeneralizer(algorithm, **{"max_epochs": 3, "random_state": 0, "selection": "last", **options})
    return model.fit(X, label, sites)


@pytest.mark.parametrize("algorithm", [*WEIGHTS, {"hsic": 1.0, "spectral_decoupling": 0.01, "dann": 0.5}])
def test_every_algorithm_trains(algorithm):
    X, *_ = problem()
    model = trained(algorithm)
    assert np.isfinite(model.history_["loss"]).all()
    np.testing.assert_allclose(model.predict_proba(X).sum(axis=1), 1, atol=1e-12)
    z_ = torch.from_numpy(model.transform(X))
    scores = model.network_.head(z_).detach().numpy()
    np.testing.assert_array_equal(model.predict(X), scores.argmax(axis=1))


def test_the_loss_is_what_it_says():
    torch.manual_seed(0)
    x, sites = z.float(), domain
    weights = {"irm": 50.0, "spectral_decoupling": 0.5}
    objective = Objective(torch.nn.Linear(5, 4), 4, 3, 3, weights, "full")
    out = objective.head(objective.featurizer(x))
    risk = torch.stack([cross_entropy(out[sites == e], y[sites == e]) for e in range(3)]).mean()
    irm = penalties.irm(out, y, sites, "full")
    expected = (risk + 50 * irm + 0.5 * (out**2).mean()) / 50
    assert objective(x, y, sites).item() == pytest.approx(expected.item(), rel=1e-5)
    objective.annealing = True
    assert objective(x, y, sites).item() == pytest.approx((risk + irm + 0.5 * (out**2).mean()).item(), rel=1e-5)
    dro = Objective(torch.nn.Linear(5, 4), 4, 3, 4, {"group_dro": 1.0}, "split")
    losses = penalties.domain_losses(dro.head(dro.featurizer(x)), y, sites, 4)
    loss, q = penalties.group_dro(losses, torch.full((4,), 0.25), 1.0)
    assert losses[3] == 0
    assert dro(x, y, sites).item() == pytest.approx(loss.item(), rel=1e-6)
    torch.testing.assert_close(dro.q, q)


def test_irm_takes_the_shortcut_less():
    X, label, sites, (X_new, y_new) = problem(n=900, flips=(0.1, 0.2, 0.3))
    options = {"selection": "last", "max_epochs": 60, "batch_size": 450, "learning_rate": 3e-3, "random_state": 0}
    erm = DomainGeneralizer("erm", **options).fit(X, label, sites)
    irm = DomainGeneralizer("irm", weight=1e3, irm_estimator="full", **options).fit(X, label, sites)
    assert irm.score(X_new, y_new) > erm.score(X_new, y_new) + 0.05
    assert irm.score(X, label) < erm.score(X, label)


def test_selection_rules():
    X, label, sites, test = problem()
    weights = [0.0, 1000.0]
    by_rule = {
        rule: trained("vrex", weight=weights, selection=rule) for rule in ("training_domain", "leave_one_domain_out")
    }
    model = DomainGeneralizer("vrex", weight=weights, selection="oracle", max_epochs=3, random_state=0)
    by_rule["oracle"] = model.fit(X, label, sites, validation=test)
    for rule, model in by_rule.items():
        assert model.candidate_scores_.shape == (2,)
        assert model.weight_ == weights[int(model.candidate_scores_.argmax())], rule
        curve = model.history_["validation_accuracy"]
        assert curve[model.best_epoch_] == curve.max() == model.candidate_scores_.max()
    assert by_rule["oracle"].score(*test) == pytest.approx(by_rule["oracle"].candidate_scores_.max())
    last = trained("vrex")
    assert last.candidate_scores_.shape == (0,)
    assert last.best_epoch_ == 2


def test_leaving_out_a_domain_scores_that_domain():
    """The scores are those of trainings that never see the domain: a domain of turned labels is guessed wrong."""
    X, label, sites, _ = problem(flips=(0, 0, 1))
    X[:, 0] = 0
    options = {"max_epochs": 15, "learning_rate": 0.01, "random_state": 0}
    model = DomainGeneralizer(selection="leave_one_domain_out", **options).fit(X, label, sites)
    assert model.candidate_scores_[0] < 0.75
    blind = DomainGeneralizer(**options).fit(X[sites < 2], label[sites < 2], sites[sites < 2])
    assert blind.candidate_scores_[0] > 0.9


def test_contract():
    X, label, sites, _ = problem()
    names = np.array(["no", "yes"])[label]
    model = DomainGeneralizer("irm", max_epochs=2, n_hidden=8)
    check_estimator_contract(model, X, names, domain=[f"site {number}" for number in sites])
    own = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6))
    images = np.random.default_rng(0).normal(size=(60, 2, 2))
    fitted = DomainGeneralizer(featurizer=own, max_epochs=2, random_state=0).fit(images, label[:60], sites[:60])
    assert fitted.transform(images).shape == (60, 6)
    assert own[2].num_batches_tracked == 0  # a copy is trained
    np.testing.assert_allclose(fitted.predict_proba(images[:7]), fitted.predict_proba(images)[:7], atol=1e-6)


def test_bad_input():
    X, label, sites, test = problem()
    good = {"X": X, "y": label, "domain": sites}
    cases = [
        ({"domain": sites * 0}, ValueError, "2 domains"),
        ({"domain": sites[1:]}, ValueError, "240 entries"),
        ({"domain": sites / 2}, TypeError, "float64"),
        ({"domain": np.append(np.zeros(239, dtype=int), 1)}, ValueError, "2 rows"),
        ({"y": label * 0}, ValueError, "two classes"),
        ({"y": label + 0.5}, ValueError, "not continuous"),
        ({"y": label[1:]}, ValueError, "240 entries"),
        ({"X": np.zeros((240, 4), dtype="datetime64[s]")}, TypeError, "datetime64"),
        ({"X": np.ma.masked_less(X, 0)}, ValueError, "no masked values"),
        ({"validation": test}, ValueError, "None"),
    ]
    check_bad_input(DomainGeneralizer().fit, cases, **good)
    with pytest.raises(ValueError, match="NaN"):
        DomainGeneralizer().fit(X * np.nan, label, sites)
    options = [
        ({"algorithm": "emr"}, ValueError, "Did you mean 'erm'"),
        ({"algorithm": {"irm": -1.0}}, ValueError, ">= 0"),
        ({"algorithm": {}}, ValueError, "at least one"),
        ({"algorithm": {"irm": 1.0}, "weight": 1.0}, ValueError, "None"),
        ({"weight": [1.0, "2"]}, TypeError, "number"),
        ({"weight": b"12"}, TypeError, "number"),
        ({"weight": np.array(1j)}, TypeError, "number"),
        ({"weight": []}, ValueError, "at least one"),
        ({"weight": [1, 2], "selection": "last"}, ValueError, "one number"),
        ({"selection": "test"}, ValueError, "oracle"),
        ({"validation_fraction": 1.0}, ValueError, "< 1"),
        ({"validation_fraction": 1e-3}, ValueError, "every domain"),
        ({"batch_size": 5}, ValueError, ">= 2 per domain"),
        ({"max_epochs": 0}, ValueError, ">= 1"),
        ({"anneal_steps": -1}, ValueError, ">= 0"),
        ({"irm_estimator": "both"}, ValueError, "full"),
        ({"learning_rate": 0.0}, ValueError, "> 0"),
        ({"featurizer": "mlp"}, TypeError, "Module"),
        ({"featurizer": torch.nn.Unflatten(1, (1, 3))}, ValueError, "shape (n, d)"),
        ({"device": "gpu"}, ValueError, "cuda"),
    ]
    check_bad_input(lambda **kwargs: DomainGeneralizer(**kwargs).fit(**good), options)
    oracle = DomainGeneralizer(selection="oracle")
    wrong = [
        ({"validation": None}, ValueError, "tuple"),
        ({"validation": [test]}, TypeError, "tuple"),
        ({"validation": (test[0], test[1] + 5)}, ValueError, "classes"),
        ({"validation": (test[0], test[1].astype(str))}, TypeError, "like those of y"),
    ]
    check_bad_input(oracle.fit, wrong, **good)
    with pytest.raises(ValueError, match="at least 3 domains"):
        trained("erm", selection="leave_one_domain_out").fit(X[sites < 2], label[sites < 2], sites[sites < 2])


@pytest.mark.slow
def test_irm_changes_the_parts_as_claimed(local_data):
    local_data(study.MNIST)
    result = study.run("irm-noninvariance", scale="small", seed=0)
    check_result(result)
    assert result.scalars["noninvariance_cut"] >= 0.15
    assert result.scalars["underfitting_rise"] > 0
    assert len(study.figure("irm-noninvariance", result).axes) == 3
