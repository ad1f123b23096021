"""Weights in the Hugging Face layout, in and out, from a directory or any fsspec URI.

Read are, in this order of preference: `model.safetensors`, `model.safetensors.index.json` with its shards,
`pytorch_model.bin`, `pytorch_model.bin.index.json` with its shards. The `.bin` files are pickles and are read
with `weights_only=True`: one that holds code is refused. Shards are named by plain file names only; a path is
refused.

Every tensor must find its place and every place its tensor. Three differences are no errors, because they
change nothing that is computed:

* the backbone's keys may carry the prefix `sew_d.` or not; a backbone takes its part of a head's checkpoint;
* weight norm may be spelled `weight_g`, `weight_v` (older torch) or `parametrizations.weight.original0`,
  `original1`;
* `masked_spec_embed`, which SpecAugment writes over hidden frames in training, may be there without being
  wanted (the mask probabilities are 0: it is dropped) or be wanted without being there (it keeps its fresh
  random value).
"""

import dataclasses
import hashlib
import io
import json
import pickle
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sewd_model.config import SEWDConfig
from sewd_model.files import CheckpointError, Location, local_path, read_bytes, read_json, shown, write_bytes

BACKBONE_PREFIX = "sew_d."
MASK_VECTOR = "masked_spec_embed"
SAFETENSORS_FILE = "model.safetensors"
PICKLE_FILE = "pytorch_model.bin"

# First parts of the keys of the heads that SEW-D checkpoints are published with.
HEAD_KEYS = ("lm_head", "projector", "classifier", "layer_weights")

_SPELLINGS = {
    ".conv.weight_g": ".conv.parametrizations.weight.original0",
    ".conv.weight_v": ".conv.parametrizations.weight.original1",
}

# Configuration fields that the backbone's output in eval mode does not depend on.
_NOT_IN_DIGEST = frozenset(
    {
        *("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "id2label", "extra"),
        *("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout"),
        *("apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks"),
        *("mask_feature_prob", "mask_feature_length", "mask_feature_min_masks", "initializer_range"),
        *("ctc_loss_reduction", "ctc_zero_infinity", "use_weighted_layer_sum", "classifier_proj_size"),
    }
)

# What a damaged pickle, or a damaged zip around it, makes the unpickler raise. OSError is not among them: a
# store that cannot be reached is no fault of the file.
_UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, MemoryError, ImportError, struct.error),
)


# ---------------------------------------------------------------------------------------------------- reading
def read_state_dict(location: Location) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, under the names and in the dtypes the files give them.

    Raises:
        CheckpointError: There are no weights, a file is malformed, or an index and its shards do not agree.
    """
    layouts: tuple[tuple[str, Callable[[Location, str], dict[str, Tensor] | None]], ...] = (
        (SAFETENSORS_FILE, _read_safetensors),
        (PICKLE_FILE, _read_pickle),
    )
    for name, read in layouts:
        tensors = read(location, name)
        if tensors is None:
            tensors = _read_shards(location, f"{name}.index.json", read)
        if tensors is not None:
            return tensors
    names = f"no {SAFETENSORS_FILE}, no {PICKLE_FILE}, and no index of either"
    msg = f"there are no weights in {shown(location)}: {names}"
    raise CheckpointError(msg)


def _read_safetensors(location: Location, name: str) -> dict[str, Tensor] | None:
    path = local_path(location, name)
    data = read_bytes(location, name) if path is None else None
    if path is None and data is None:
        return None
    try:
        return safetensors.torch.load_file(path) if path is not None else safetensors.torch.load(data or b"")
    except (safetensors.SafetensorError, ValueError, LookupError) as error:
        msg = f"{name} in {shown(location)} is not a safetensors file: {error}"
        raise CheckpointError(msg) from error


def _read_pickle(location: Location, name: str) -> dict[str, Tensor] | None:
    data = read_bytes(location, name)
    if data is None:
        return None
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        msg = f"{name} in {shown(location)} is not a file of tensors alone: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    ):
        msg = f"{name} in {shown(location)} does not hold a state dict (names to tensors)"
        raise CheckpointError(msg)
    return dict(value)


def _read_shards(
    location: Location, index_name: str, read: Callable[[Location, str], dict[str, Tensor] | None]
) -> dict[str, Tensor] | None:
    index = read_json(location, index_name)
    if index is None:
        return None
    where = index.get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(shard, str) for shard in where.values()):
        msg = f"{index_name} in {shown(location)} has no weight_map from tensors to files"
        raise CheckpointError(msg)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(where.values())):
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            msg = f"{index_name} in {shown(location)} names a shard outside its directory: {shard!r}"
            raise CheckpointError(msg)
        content = read(location, shard)
        if content is None:
            msg = f"{shard}, named in {index_name}, is not in {shown(location)}"
            raise CheckpointError(msg)
        expected = {key for key, name in where.items() if name == shard}
        if content.keys() != expected:
            msg = f"{shard} in {shown(location)} does not hold what {index_name} says: " + _list_differences(
                missing=expected - content.keys(), unexpected=content.keys() - expected
            )
            raise CheckpointError(msg)
        tensors.update(content)
    return tensors


# ---------------------------------------------------------------------------------------------------- loading
def load_into(model: nn.Module, location: Location, *, head_keys: tuple[str, ...], new_head: bool = False) -> None:
    """Load a checkpoint's tensors into a model of this package.

    Args:
        model: Its parameters are overwritten, in their own dtype.
        location: A directory or fsspec URI.
        head_keys: First parts of the model's keys outside the backbone; empty for the backbone itself.
        new_head: Leave those as they are, whatever the checkpoint holds.

    Raises:
        CheckpointError: Tensors are missing or unknown, or shapes or dtypes do not fit; the message names
            them.
    """
    wanted = model.state_dict()
    found = _rename(read_state_dict(location), to_head=bool(head_keys), where=shown(location))
    # Another head beside this model's own is none of its business; instead of its own, it is named as unexpected.
    own_heads = {key.split(".")[0] for key in wanted} & set(head_keys)
    has_own = own_heads <= {key.split(".")[0] for key in found}
    kept_heads = () if new_head else head_keys if has_own else HEAD_KEYS
    dropped_heads = set(HEAD_KEYS) - set(kept_heads)
    found = {key: tensor for key, tensor in found.items() if key.split(".")[0] not in dropped_heads}
    if new_head:
        found.update({key: tensor for key, tensor in wanted.items() if key.split(".")[0] in head_keys})
    mask_key = (BACKBONE_PREFIX if head_keys else "") + MASK_VECTOR
    if mask_key in wanted:
        found.setdefault(mask_key, wanted[mask_key])
    else:
        found.pop(mask_key, None)

    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & found.keys())
        if found[key].shape != wanted[key].shape
    ]
    dtypes = [f"{key} {tensor.dtype}" for key, tensor in found.items() if not tensor.is_floating_point()]
    problems = _list_differences(
        missing=wanted.keys() - found.keys(),
        unexpected=found.keys() - wanted.keys(),
        wrong_shape=shapes,
        not_floating_point=dtypes,
    )
    if problems:
        hint = ""
        if any(key.split(".")[0] in head_keys for key in wanted.keys() - found.keys()):
            hint = " (new_head=True takes the backbone alone and initialises a head)"
        msg = f"the weights in {shown(location)} do not fit {type(model).__name__}: {problems}{hint}"
        raise CheckpointError(msg)
    model.load_state_dict(found)


def _rename(tensors: Mapping[str, Tensor], *, to_head: bool, where: str) -> dict[str, Tensor]:
    """Bring keys to the model's spelling: weight norm as parametrization, the backbone's prefix or none."""
    has_prefix = any(key.startswith(BACKBONE_PREFIX) for key in tensors)
    renamed: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        key = old
        for ending, replacement in _SPELLINGS.items():
            if key.endswith(ending):
                key = key.removesuffix(ending) + replacement
        if to_head and not has_prefix and key.split(".")[0] not in HEAD_KEYS:
            key = BACKBONE_PREFIX + key
        elif not to_head:
            key = key.removeprefix(BACKBONE_PREFIX)
        if key in renamed:
            msg = f"the weights in {where} hold {key} under two names"
            raise CheckpointError(msg)
        renamed[key] = tensor
    return renamed


def _list_differences(**problems: Iterable[str]) -> str:
    """Return `missing a, b; unexpected c`, kinds without entries left out, long lists cut."""
    parts = []
    for kind, entries in problems.items():
        names = sorted(entries)
        if names:
            more = f" and {len(names) - 20} more" if len(names) > 20 else ""
            parts.append(f"{kind.replace('_', ' ')}: {', '.join(names[:20])}{more}")
    return "; ".join(parts)


# ----------------------------------------------------------------------------------------------------- saving
def save(model: nn.Module, config: SEWDConfig, architecture: str, location: Location) -> None:
    """Write `model.safetensors`, then `config.json` with `architectures`, as transformers reads them.

    The configuration comes last: a directory whose writing was cut short has none, and does not load.
    """
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_bytes(location, SAFETENSORS_FILE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    extra = dict(config.extra)
    extra.pop("torch_dtype", None)  # the older name of dtype, which would contradict it
    extra.update(architectures=[architecture], dtype=dtype)
    dataclasses.replace(config, extra=extra).save_pretrained(location)


# ----------------------------------------------------------------------------------------------------- digest
def backbone_digest(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of all that the backbone computes with in eval mode.

    Two models with equal digests give equal hidden states, so that one pass serves both heads. It covers the
    configuration fields that matter and the tensors' names, dtypes, shapes and bytes; not
    `masked_spec_embed`, the dropout and SpecAugment settings, nor anything of the head.

    Args:
        model: `SEWDModel`, or a head model (its backbone is taken).
    """
    backbone = getattr(model, BACKBONE_PREFIX.removesuffix("."), model)
    config = cast(SEWDConfig, backbone.config)
    fields = {
        item.name: getattr(config, item.name) for item in dataclasses.fields(config) if item.name not in _NOT_IN_DIGEST
    }
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode())
    for key, tensor in sorted(backbone.state_dict().items()):
        if key == MASK_VECTOR:
            continue
        digest.update(f"\n{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
