"""Continuous chain of thought as it was first trained: one cached call per step, targets fed one by one."""

import torch


def stepwise_loss(model, prompt, targets):
    """Sum over steps of KL divergences, mean over prompts, by `steps` calls in a row."""
    weight = model.get_input_embeddings().weight
    embedded, cache, total = weight[prompt], None, 0.0
    steps = targets.shape[1]
    for step in range(steps):
        output = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
        log_p = output.logits[:, -1].log_softmax(dim=-1)
        aim = targets[:, step]
        total = total + (torch.special.xlogy(aim, aim) - aim * log_p).sum(dim=-1).mean()
        cache, embedded = output.past_key_values, aim[:, None] @ weight
    return total


def answers_one_by_one(model, prompt, steps):
    """Decode every prompt by itself."""
    weight = model.get_input_embeddings().weight
    found = []
    with torch.no_grad():
        for one in prompt:
            embedded, cache = weight[one][None], None
            for _ in range(steps):
                output = model(inputs_embeds=embedded, past_key_values=cache, use_cache=True)
                p = output.logits[:, -1].softmax(dim=-1)
                cache, embedded = output.past_key_values, p[:, None] @ weight
            found.append(p.argmax(dim=-1))
    return torch.cat(found)
