import pytest
import torch

from natwise.core.networks import small_resnet


@pytest.mark.parametrize(("width", "blocks", "size"), [(16, 3, 269_722 + 2560), (4, 1, None)])
def test_small_resnet(width, blocks, size):
    """The published network of 20 layers has .27 million weights; the two 1 x 1 shortcuts add 512 and 2048."""
    network = small_resnet(3, 10, width=width, blocks=blocks, random_state=0)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    logits = network(x)
    assert logits.shape == (2, 10)
    assert network[:-3](x).shape == (2, 4 * width, 8, 8)
    assert (
        sum(isinstance(module, torch.nn.Conv2d) and module.kernel_size == (3, 3) for module in network.modules())
        == 1 + 6 * blocks
    )
    if size is not None:
        assert sum(parameter.numel() for parameter in network.parameters()) == size
    again = small_resnet(3, 10, width=width, blocks=blocks, random_state=0)
    assert torch.equal(network.train()(x), again.train()(x))
