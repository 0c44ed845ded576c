"""The table of built-in blocks."""

from __future__ import annotations

import pytest

from yggdrasill.blocks import BUILT_IN
from yggdrasill.foundation import AbstractBaseBlock, BlockRegistry

NEEDED = {"text/template": {"template": "{a}"}}


@pytest.mark.parametrize("block_type", BUILT_IN)
def test_every_built_in_type_builds_a_block_with_its_type_and_ports(block_type: str) -> None:
    block = BlockRegistry().build({"block_type": block_type, **NEEDED.get(block_type, {})})
    assert isinstance(block, AbstractBaseBlock)
    assert type(block).block_type == block_type
    assert block.get_output_ports()


@pytest.mark.parametrize("block_type", BUILT_IN)
def test_only_blocks_that_draw_from_the_run_are_not_deterministic(block_type: str) -> None:
    block = BlockRegistry().build({"block_type": block_type, **NEEDED.get(block_type, {})})
    assert block.deterministic is (block_type not in {"text/architect", "text/develop"})
