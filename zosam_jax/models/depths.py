"""How deep each parameter lies in a model of blocks, for layer-wise learning rates."""

import re
from collections.abc import Sequence

_BLOCK = re.compile(r"(?:stage(\d+)_)?block(\d+)$")
_BEFORE = re.compile(r"stem|embed|position_embedding|\w*_token|token_embedding")


def depths(paths: Sequence[str]) -> list[int]:
    """Returns the layer of each parameter: 0, a block from 1 to L, or L + 1.

    As in BEiT's fine-tuning (arXiv:2106.08254, `get_num_layer_for_vit`), embeddings and
    tokens are layer 0, and what follows the blocks (the last norm and the head) is
    layer L + 1. In ResNets the stem is layer 0 and a residual block is a layer, as in
    timm (`group_matcher`).

    Args:
      paths: Key paths of the parameters, joined by `/`. Their first parts name the
        blocks, as `block3` or `stage1_block0`.

    Raises:
      ValueError: There are no blocks.

    >>> depths(["embed/kernel", "block0/mlp1/kernel", "block1/mlp1/bias", "head/bias"])
    [0, 1, 2, 3]
    """
    tops = [path.partition("/")[0] for path in paths]
    found = {top: match for top in tops if (match := _BLOCK.fullmatch(top))}
    if not found:
        raise ValueError(
            "the model has no blocks (block0, or stage1_block0), from which layers "
            "are counted."
        )
    order = sorted(found, key=lambda top: [int(x or 0) for x in found[top].groups()])
    numbers = {top: number for number, top in enumerate(order, start=1)}

    def layer(top: str) -> int:
        return numbers.get(top, 0 if _BEFORE.match(top) else len(order) + 1)

    return [layer(top) for top in tops]
