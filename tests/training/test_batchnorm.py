"""A normalization that is folded into its convolution is gone, and nothing else has changed."""

from __future__ import annotations

import copy

import torch

from optimizer.training.batchnorm import fold_batch_norms


class Block(torch.nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(2, 4, 3, padding=1, bias=bias)
        self.norm = torch.nn.BatchNorm2d(4)
        torch.nn.init.normal_(self.norm.bias)
        torch.nn.init.uniform_(self.norm.weight, 0.5, 2)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.2, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        answer: torch.Tensor = self.norm(self.conv(x)).relu()
        return answer


def test_a_folded_model_answers_as_before_and_so_do_its_copies_and_what_is_saved_of_it() -> None:
    for bias in (False, True):
        torch.manual_seed(0)
        block, images = Block(bias=bias).eval(), torch.randn(3, 2, 6, 6)
        with torch.no_grad():
            wanted = block(images)
            assert fold_batch_norms(block, {"x": images}) == 1
            assert torch.allclose(block(images), wanted, atol=1e-5)
            again = Block(bias=bias).eval()
            again.load_state_dict(block.state_dict())
            assert torch.allclose(again(images), wanted, atol=1e-5)
            # The normalization is passed by, and a copy computes with its own weights.
            twin = copy.deepcopy(block)
            block.norm.running_mean.fill_(100.0)
            assert torch.allclose(block(images), wanted, atol=1e-5)
            block.conv.weight.zero_()
            block.norm.bias.zero_()
            assert torch.allclose(twin(images), wanted, atol=1e-5)
