"""The block: matter that stores and computes. It knows its ports and nothing of nodes, edges or graphs."""

from __future__ import annotations

import copy
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from yggdrasill.errors import CheckpointMismatch, DuplicateName, InvalidArgument, MissingFile, UnsupportedFormat, unknown_name
from yggdrasill.foundation.ports import ConfigField, Port

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["AbstractBaseBlock"]


class AbstractBaseBlock(ABC):
    """Base of every block: declare ports, compute in `forward`; everything else has a default.

    ``deterministic`` says that equal inputs and config give equal outputs, so a result may be reused by content.
    ``stateful`` says that the block keeps something between calls: it is serialised, has one replica and is not retried.
    ``settings`` declares the fields of the config (`ConfigField`); None means that they are not declared.
    ``references`` lists what `load_reference` can load: ``file``, ``folder``, ``hub`` (an id such as ``org/model``).
    A block must not change its inputs, and inference must not change its weights. ``yggdrasill.current_run()`` provides seeded
    generators, cancellation, progress and a logger.
    """

    deterministic: ClassVar[bool] = False
    stateful: ClassVar[bool] = False
    settings: ClassVar[tuple[ConfigField, ...] | None] = None
    references: ClassVar[frozenset[str]] = frozenset({"file"})

    block_type: str = ""
    #: Set by the reuse pool on the blocks that it shares.
    _pool_entry: Any = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "block_type" not in cls.__dict__:
            cls.block_type = cls.__name__

    def __init__(self, block_id: str | None = None, *, config: Mapping[str, Any] | None = None) -> None:
        if block_id is not None and (not isinstance(block_id, str) or not block_id.strip()):
            raise InvalidArgument(f"block_id must be a non-empty string, got {block_id!r}")
        self.block_id = block_id or f"{self.block_type.replace('/', '_')}-{uuid.uuid4().hex[:8]}"
        self.config: dict[str, Any] = copy.deepcopy(dict(config or {}))
        self.training = True
        self._frozen = False
        #: Held during `forward`, so that a block shared by several nodes computes one call at a time.
        self.lock = threading.RLock()

    def __repr__(self) -> str:
        return f"<{self.block_type} {self.block_id!r}>"

    # -- the contract -------------------------------------------------------------------------------------------

    @abstractmethod
    def declare_ports(self) -> Iterable[Port]:
        """Return the block's ports, inputs and outputs, with unique names."""

    @abstractmethod
    def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Compute outputs by port name from inputs by port name; an absent input is simply not a key."""

    def run(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Alias of `forward`."""
        return self.forward(inputs)

    def setting(self, name: str) -> Any:
        """Return the checked value of a declared config field, or its default where the config has none.

        Raises:
            InvalidArgument: the value does not fit. UnknownName: no field of that name is declared.
        """
        declared = {field.name: field for field in self.settings or ()}
        if name not in declared:
            raise unknown_name(f"config field of block {self.block_type!r}", name, declared)
        return declared[name].read(self.config, self.block_type)

    # -- ports --------------------------------------------------------------------------------------------------

    @property
    def ports(self) -> dict[str, Port]:
        """All ports by name, declared once per block."""
        known: dict[str, Port] | None = self.__dict__.get("_ports")
        if known is None:
            known = {}
            for port in self.declare_ports():
                if port.name in known:
                    raise DuplicateName(f"block {self.block_type!r} declares port {port.name!r} twice; port names are unique in a block")
                known[port.name] = port
            self.__dict__["_ports"] = known
        return known

    def get_input_ports(self) -> list[Port]:
        """Return the IN ports in declaration order."""
        return [port for port in self.ports.values() if port.is_input]

    def get_output_ports(self) -> list[Port]:
        """Return the OUT ports in declaration order."""
        return [port for port in self.ports.values() if port.is_output]

    def get_port(self, name: str) -> Port | None:
        """Return the port of that name, or None."""
        return self.ports.get(name)

    # -- modes --------------------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """True while the block gives no trainable parameters."""
        return self._frozen

    def train(self, mode: bool = True) -> Self:
        """Set training mode in this block and its sub-blocks."""
        self.training = mode
        for block in self.get_sub_blocks().values():
            block.train(mode)
        return self

    def eval(self) -> Self:
        """Set inference mode in this block and its sub-blocks."""
        return self.train(False)

    def freeze(self) -> Self:
        """Give no trainable parameters any more, sub-blocks included."""
        return self._set_frozen(True)

    def unfreeze(self) -> Self:
        """Undo `freeze`."""
        return self._set_frozen(False)

    def _set_frozen(self, frozen: bool) -> Self:
        self._frozen = frozen
        for block in self.get_sub_blocks().values():
            block._set_frozen(frozen)
        return self

    # -- state --------------------------------------------------------------------------------------------------

    def get_sub_blocks(self) -> Mapping[str, AbstractBaseBlock]:
        """Blocks this one is composed of, by name; the outer contract stays an ordinary one."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to reproduce the block besides its config: tensors and plain values.

        The default merges the sub-blocks' states under the prefix ``name.``; a block with weights adds them.
        """
        return {f"{name}.{key}": value for name, block in self.get_sub_blocks().items() for key, value in block.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Load a state that `state_dict` returned; a block with weights takes its keys and passes the rest to this method.

        Raises:
            CheckpointMismatch: (a KeyError) if ``strict`` and a key is unexpected or missing.
        """
        rest = dict(state)
        parts = {}
        for name in self.get_sub_blocks():
            prefix = name + "."
            parts[name] = {key[len(prefix) :]: rest.pop(key) for key in list(rest) if key.startswith(prefix)}
        if strict and rest:
            expected = sorted(self.state_dict())
            raise CheckpointMismatch(
                f"block {self.block_id!r} ({self.block_type}) got state keys {sorted(rest)} it does not have; it has {expected or 'no state'}",
                unexpected=sorted(rest),
            )
        for name, block in self.get_sub_blocks().items():
            if parts[name] or strict:
                block.load_state_dict(parts[name], strict)

    def load_from_checkpoint(self, path: str | Path) -> Self:
        """Load the block's state from a json or safetensors file.

        Raises:
            MissingFile, InvalidCheckpoint, CheckpointMismatch, UnsupportedFormat
        """
        from yggdrasill.foundation.checkpoints import check_block_state, read_state

        state = read_state(path)
        check_block_state(self, state, f"block {self.block_id!r}", strict=True)
        self.load_state_dict(state, strict=True)
        return self

    def load_reference(self, reference: str) -> None:
        """Load the weights that the config names as ``checkpoint_ref`` or ``checkpoint_path``.

        Called once, after construction, with an absolute path, a hub id or a URL. The default reads a json or
        safetensors file and leaves URLs to the constructor. A class that loads folders or hub ids overrides this method
        and lists them in ``references``; `check_reference` then refuses the other kinds.

        Raises:
            MissingFile: the reference names a path that does not exist.
            UnsupportedFormat: the class cannot load this kind of reference.
            InvalidCheckpoint, CheckpointMismatch
        """
        if "://" not in reference:
            self.check_reference(reference)
            self.load_from_checkpoint(reference)

    def check_reference(self, reference: str) -> None:
        """Raise unless the class loads references of this kind; URLs pass.

        Raises:
            MissingFile, UnsupportedFormat
        """
        if "://" in reference:
            return
        path = Path(reference)
        kind = "file" if path.is_file() else "folder" if path.is_dir() else "hub"
        if kind == "hub" and ("hub" not in self.references or path.is_absolute()):
            raise MissingFile(f"checkpoint {reference!r} of block type {self.block_type!r} does not exist; check the path", path=reference)
        if kind not in self.references:
            raise UnsupportedFormat(
                f"block type {self.block_type!r} cannot load {reference!r}, a {kind}; it loads: {', '.join(sorted(self.references))}. "
                "Choose another reference or another block type."
            )

    def trainable_parameters(self) -> Iterator[Any]:
        """Parameters an optimiser may change (torch tensors with gradients); none while frozen."""
        if not self._frozen:
            for block in self.get_sub_blocks().values():
                if not block.frozen:
                    yield from block.trainable_parameters()
