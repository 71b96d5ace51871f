from __future__ import annotations

import gc

import torch

from cdn_tune.data.clip_map import Buffers


def test_memory_is_used_again_once_nobody_has_it() -> None:
    buffers = Buffers()
    first = buffers.take((2, 3), torch.float32)
    place = first.data_ptr()
    del first
    assert buffers.take((3, 2), torch.float32).data_ptr() == place
    assert buffers.take((5,), torch.float16).shape == (5,)


def test_tensors_alive_share_no_memory() -> None:
    buffers = Buffers(kept=2)
    taken = [buffers.take((4,), torch.float32).fill_(number) for number in range(5)]
    assert [tensor.tolist() for tensor in taken] == [[float(number)] * 4 for number in range(5)]


def test_views_and_graphs_keep_memory() -> None:
    buffers = Buffers(kept=1)
    view = buffers.take((4, 4), torch.float32).fill_(1)[1:, 2].numpy()
    weight = torch.ones(3, requires_grad=True)
    product = weight * buffers.take((3,), torch.float32).fill_(2)
    for _ in range(3):
        buffers.take((4, 4), torch.float32).fill_(9)
    gc.collect()
    assert view.tolist() == [1, 1, 1]
    product.sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [2, 2, 2]


def test_larger_needs_replace_smaller_buffers() -> None:
    buffers = Buffers(kept=1)
    buffers.take((1,), torch.float32)
    place = buffers.take((8,), torch.float32).data_ptr()
    assert buffers.take((7,), torch.float32).data_ptr() == place
