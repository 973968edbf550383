"""Training runs, in one process and in several; started with a path, this file is such a run."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from natwise.core.random import Streams
from natwise.core.training import Trainer
from natwise.lm.mixture_of_recursions import MoRConfig, MoRForCausalLM

RUNS = {
    "expert": {"capacity_warmup_steps": 4, "sampling_coef": 0.1, "z_coef": 0.01},
    "aux_router": {"sampling": "aux_router", "kv": "share"},
    "token": {"routing": "token_choice"},
    "loss_free": {"routing": "token_choice", "balancing": "loss_free", "balancing_step": 0.02},
}


def train(out, name):
    """Train a tiny mixture on random tokens; write its weights and losses."""
    streams = Streams(5)
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    with streams.torch_global("weights"):
        model = MoRForCausalLM(MoRConfig(**sizes, num_hidden_layers=5, initializer_range=0.3, **RUNS[name]))
    ids = torch.from_numpy(streams.numpy("ids").integers(20, size=(24, 12)))
    # Adam's first steps amplify rounding where a gradient is 0 up to rounding
    trainer = Trainer(max_epochs=2, batch_size=4, learning_rate=0.05, optimizer=torch.optim.SGD, random_state=1)
    history = trainer.fit(model, lambda net, batch, step: net(input_ids=batch, labels=batch).loss, ids)
    save_file({**model.state_dict(), "losses": torch.tensor(history.losses)}, out)


@pytest.mark.slow
def test_two_processes_train_what_one_trains(tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess.run([*launch, __file__, str(tmp_path / "two")], check=True)
    for name in RUNS:
        train(tmp_path / "one", name)
        one = load_file(tmp_path / "one")
        assert one["model.training_steps"] == 12
        for rank in range(2):
            for key, value in load_file(tmp_path / f"two.{name}.{rank}").items():
                torch.testing.assert_close(value, one[key], rtol=0, atol=1e-5, msg=f"{name} {key}")


if __name__ == "__main__":
    for each in RUNS:
        train(f"{sys.argv[1]}.{each}.{os.environ['RANK']}", each)
