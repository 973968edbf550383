"""SALT's loss from hidden states against the plain form, side by side in one run: peak memory and time.

Each form runs in a process of its own; its peak is what the process needs beyond what it held before the call. The
plain form writes the loss as one would: logits of student and teacher, two (log-)softmaxes, autograd.
"""

import argparse
import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor

import torch
from torch.nn.functional import cross_entropy

from natwise.lm import linear_salt_loss, salt_loss

WEIGHT, RHO = 0.667, 0.5


def plain(hidden, matrix, taught, teacher_matrix, labels):
    """Return the loss written straight from its definition."""
    student, teacher = hidden @ matrix.T, (taught @ teacher_matrix.T).detach()
    soft = torch.softmax(RHO * teacher, dim=-1)
    taught_loss = -(soft * torch.log_softmax(student, dim=-1)).sum(-1).mean()
    return (1 - WEIGHT) * cross_entropy(student, labels) + WEIGHT * taught_loss


def from_logits(hidden, matrix, taught, teacher_matrix, labels):
    """Return natwise's loss of whole logits."""
    return salt_loss(hidden @ matrix.T, (taught @ teacher_matrix.T).detach(), labels, WEIGHT, RHO)


def from_hidden(hidden, matrix, taught, teacher_matrix, labels):
    """Return natwise's loss that never holds all logits."""
    return linear_salt_loss(hidden, matrix, taught, teacher_matrix, labels, WEIGHT, RHO)


def measure(name, n_tokens, width, vocabulary, repeats):
    """Return the best CPU seconds of loss and gradient, the peak memory in MB, and the loss."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    hidden, matrix = (torch.randn(n, width, generator=generator) for n in (n_tokens, vocabulary))
    taught, teacher_matrix = (torch.randn(n, width // 2, generator=generator) for n in (n_tokens, vocabulary))
    labels = torch.randint(vocabulary, (n_tokens,), generator=generator)
    tensors = [(0.1 * hidden).requires_grad_(), matrix.requires_grad_(), 0.1 * taught, teacher_matrix, labels]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        loss = globals()[name](*tensors)
        torch.autograd.grad(loss, tensors[:2])
        times.append(time.process_time() - begin)
    return min(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024, float(loss.detach())


def main():
    """Print time and memory of the three forms, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    n_tokens, width, vocabulary, repeats = (1024, 64, 8_000, 2) if parser.parse_args().quick else (4096, 128, 32_000, 3)
    print(f"{n_tokens} tokens, {vocabulary} words, width {width}, one thread; loss and gradient")
    found = {}
    for name in ("plain", "from_logits", "from_hidden"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            found[name] = fresh.submit(measure, name, n_tokens, width, vocabulary, repeats).result()
        seconds, memory, loss = found[name]
        print(f"{name}: {seconds:.2f} CPU s, {memory:.0f} MB, loss {loss:.6f}", flush=True)
    for name in ("from_logits", "from_hidden"):
        time_ratio, memory_ratio = (found["plain"][i] / found[name][i] for i in (0, 1))
        print(f"{name}: {memory_ratio:.1f}x less memory, {time_ratio:.2f}x the speed")


if __name__ == "__main__":
    main()
