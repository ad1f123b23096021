"""Read and write weights in the Hugging Face layout, in a directory or under any fsspec URI.

The files that are read, in order of preference: `model.safetensors`, `model.safetensors.index.json` with its shards,
`pytorch_model.bin`, `pytorch_model.bin.index.json` with its shards. The `.bin` files are pickles and are read with
`weights_only=True`: a pickle that contains code is rejected. An index must name its shards by plain file names; paths
are rejected.

The keys of the model and of the checkpoint must be equal. Three differences are accepted, because they do not change
the results:

* the backbone's keys may have the prefix `sew_d.` or not; a backbone loads its part of a checkpoint with a head;
* weight norm may be spelled `weight_g`, `weight_v` (older torch) or `parametrizations.weight.original0`, `original1`;
* `masked_spec_embed`, which replaces masked frames in SpecAugment, may be in the checkpoint and not in the model (its
  mask probabilities are 0: the tensor is dropped) or in the model and not in the checkpoint (it keeps its random
  initial value).
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sewd_model.config import SEWDConfig
from sewd_model.files import (
    PICKLE_FILE,
    SAFETENSORS_FILE,
    WEIGHT_FILES,
    CheckpointError,
    Location,
    file_size,
    local_path,
    read_bytes,
    read_json,
    shown,
    write_bytes,
)
from sewd_model.weights import BACKBONE_PREFIX, HEAD_KEYS, MASK_VECTOR, SPELLINGS

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

_SMALL_WEIGHTS = 10**8  # so many are built, so that what is wrong with the files of their weights is said

# Errors of the unpickler on a damaged pickle, or a damaged zip around it. Not OSError: that a store cannot be reached
# does not mean that the file is damaged.
_UNPICKLING_ERRORS = (
    *(pickle.UnpicklingError, EOFError, RuntimeError, ValueError, LookupError, AttributeError, TypeError),
    *(AssertionError, OverflowError, MemoryError, ImportError, struct.error),
)


# ---------------------------------------------------------------------------------------------------- reading
def read_state_dict(location: Location) -> dict[str, Tensor]:
    """Read all tensors of a checkpoint, with the names and dtypes of the files, on the CPU.

    Args:
        location: a directory, or any fsspec URI of one.

    Raises:
        CheckpointError: there are no weights, a file is malformed, or an index and its shards disagree.
        OSError: the store cannot be read.
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
    msg = f"no weights in {shown(location)}: {names}"
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
        _check_not_packed(data)
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _UNPICKLING_ERRORS as error:
        msg = f"{name} in {shown(location)} cannot be read as a pickle of tensors without code: {error}"
        raise CheckpointError(msg) from error
    if not isinstance(value, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in value.items()
    ):
        msg = f"{name} in {shown(location)} does not contain a state dict (names to tensors)"
        raise CheckpointError(msg)
    return dict(value)


def _check_not_packed(data: bytes) -> None:
    """Refuse a zip whose content is larger than the file: torch writes tensors as they are, and would unpack them.

    A file of 200 kB can hold 200 MB of zeros.

    Raises:
        ValueError: the content is larger.
    """
    with contextlib.suppress(zipfile.BadZipFile), zipfile.ZipFile(io.BytesIO(data)) as archive:
        size = sum(item.file_size for item in archive.infolist())
        if size > len(data):
            msg = f"it is compressed: {len(data):,} bytes would become {size:,}"
            raise ValueError(msg)


def _read_shards(
    location: Location, index_name: str, read: Callable[[Location, str], dict[str, Tensor] | None]
) -> dict[str, Tensor] | None:
    index = read_json(location, index_name)
    if index is None:
        return None
    file_of = index.get("weight_map")
    if not isinstance(file_of, dict) or not all(isinstance(shard, str) for shard in file_of.values()):
        msg = f"{index_name} in {shown(location)} has no weight_map from tensors to files"
        raise CheckpointError(msg)
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(file_of.values())):
        if "/" in shard or "\\" in shard or shard in ("", ".", ".."):
            msg = f"{index_name} in {shown(location)} names a shard outside its directory: {shard!r}"
            raise CheckpointError(msg)
        content = read(location, shard)
        if content is None:
            msg = f"{shard}, named in {index_name}, does not exist in {shown(location)}"
            raise CheckpointError(msg)
        expected = {key for key, name in file_of.items() if name == shard}
        if content.keys() != expected:
            msg = f"{shard} in {shown(location)} and {index_name} disagree: " + _list_differences(
                missing=expected - content.keys(), unexpected=content.keys() - expected
            )
            raise CheckpointError(msg)
        tensors.update(content)
    return tensors


def check_size(config: SEWDConfig, head_weights: int, location: Location) -> None:
    """Compare the number of weights of a configuration with the size of the files, before memory is asked for.

    A weight takes a byte at least.

    Args:
        config: the configuration of the model.
        head_weights: number of weights of the matrices of its heads that the checkpoint must hold.
        location: a directory or fsspec URI.

    Raises:
        CheckpointError: the files are far too small for a model of these sizes.
        OSError: the store cannot be read.
    """
    names = list(WEIGHT_FILES)
    for name in (f"{known}.index.json" for known in WEIGHT_FILES):
        index = read_json(location, name) if not any(file_size(location, known) for known in WEIGHT_FILES) else None
        shards = (index or {}).get("weight_map")
        if isinstance(shards, dict):
            names += sorted({shard for shard in shards.values() if isinstance(shard, str)})
    size = sum(file_size(location, name) or 0 for name in names)
    weights = config.num_weights + head_weights
    if weights > max(size, _SMALL_WEIGHTS):
        msg = (
            f"config.json in {shown(location)} describes a model of at least {weights:,} weights "
            f"(hidden_size {config.hidden_size}, num_hidden_layers {config.num_hidden_layers}, ...), "
            f"but the files hold {size:,} bytes"
        )
        raise CheckpointError(msg)


# ---------------------------------------------------------------------------------------------------- loading
def load_into(model: nn.Module, location: Location, *, head_keys: tuple[str, ...], new_head: bool = False) -> None:
    """Load a checkpoint's tensors into a model of this package.

    Args:
        model: its parameters are overwritten, in their own dtype.
        location: a directory or fsspec URI.
        head_keys: first parts of the model's keys outside the backbone; empty for the backbone itself.
        new_head: keep the head of the model, whatever the checkpoint contains.

    Raises:
        CheckpointError: tensors are missing or unknown, or shapes or dtypes do not fit; the message names them.
        OSError: the store cannot be read.
    """
    wanted = model.state_dict()
    tensors = _rename(read_state_dict(location), to_head=bool(head_keys), where=shown(location))
    # The checkpoint may have another head besides the model's; if it has another instead, that is reported.
    own_heads = {key.split(".")[0] for key in wanted} & set(head_keys)
    has_own = own_heads <= {key.split(".")[0] for key in tensors}
    kept_heads = () if new_head else head_keys if has_own else HEAD_KEYS
    dropped_heads = set(HEAD_KEYS) - set(kept_heads)
    tensors = {key: tensor for key, tensor in tensors.items() if key.split(".")[0] not in dropped_heads}
    if new_head:
        tensors.update({key: tensor for key, tensor in wanted.items() if key.split(".")[0] in head_keys})
    mask_key = (BACKBONE_PREFIX if head_keys else "") + MASK_VECTOR
    if mask_key in wanted:
        tensors.setdefault(mask_key, wanted[mask_key])
    else:
        tensors.pop(mask_key, None)

    shapes = [
        f"{key} {tuple(tensors[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(wanted.keys() & tensors.keys())
        if tensors[key].shape != wanted[key].shape
    ]
    dtypes = [f"{key} {tensor.dtype}" for key, tensor in tensors.items() if not tensor.is_floating_point()]
    problems = _list_differences(
        missing=wanted.keys() - tensors.keys(),
        unexpected=tensors.keys() - wanted.keys(),
        wrong_shape=shapes,
        not_floating_point=dtypes,
    )
    if problems:
        hint = ""
        unfit = (wanted.keys() - tensors.keys()) | {shape.split()[0] for shape in shapes}
        if unfit and all(key.split(".")[0] in head_keys for key in unfit):
            hint = " (new_head=True loads the backbone only and initialises a head)"
        msg = f"the weights in {shown(location)} do not fit {type(model).__name__}: {problems}{hint}"
        raise CheckpointError(msg)
    model.load_state_dict(tensors)


def _rename(tensors: Mapping[str, Tensor], *, to_head: bool, where: str) -> dict[str, Tensor]:
    """Convert keys to the model's spelling: weight norm as parametrization, the backbone with its prefix or without."""
    has_prefix = any(key.startswith(BACKBONE_PREFIX) for key in tensors)
    renamed: dict[str, Tensor] = {}
    for old, tensor in tensors.items():
        key = old
        for ending, replacement in SPELLINGS.items():
            if key.endswith(ending):
                key = key.removesuffix(ending) + replacement
        if to_head and not has_prefix and key.split(".")[0] not in HEAD_KEYS:
            key = BACKBONE_PREFIX + key
        elif not to_head:
            key = key.removeprefix(BACKBONE_PREFIX)
        if key in renamed:
            msg = f"the weights in {where} contain {key} under two names"
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
class Companion(Protocol):
    """A part of a checkpoint beside its weights, in files of its own."""

    def save_pretrained(self, location: Location) -> None:
        """Write the files into a directory or under any fsspec URI."""


def save(
    model: nn.Module | Mapping[str, Tensor],
    config: SEWDConfig,
    architecture: str,
    location: Location,
    *,
    dtype: torch.dtype | None = None,
    companions: Iterable[Companion] = (),
) -> None:
    """Write a checkpoint that transformers and this package read.

    The files are `model.safetensors`, those of the companions, and `config.json` with `architectures` and `dtype`. The
    configuration is written last: a directory whose writing was interrupted has none, and does not load.

    Args:
        model: the model, or its state dict. Several heads on one backbone are saved as one state dict.
        config: of the model; the labels of a classifier are part of it.
        architecture: name of the class that loads it, e.g. `SEWDForCTC`.
        location: a directory, or any fsspec URI of one.
        dtype: data type of the weights in the file, which must be finite in it; None: as they are, unchecked.
        companions: further parts of the checkpoint, such as its `CTCTokenizer` and `FeatureExtractor`.

    Raises:
        CheckpointError: a weight is not finite in `dtype`, and nothing is written; or `location` is the name of the
            bundled model.
        OSError: the store cannot be written.
    """
    state = model.state_dict() if isinstance(model, nn.Module) else model
    tensors = {key: tensor.detach().to("cpu", dtype).contiguous() for key, tensor in state.items()}
    stored = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    not_finite = [key for key, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    if dtype is not None and not_finite:
        msg = f"the weights do not fit {stored}: {_list_differences(not_finite=not_finite)}"
        raise CheckpointError(msg)
    write_bytes(location, SAFETENSORS_FILE, safetensors.torch.save(tensors, metadata={"format": "pt"}))
    for companion in companions:
        companion.save_pretrained(location)
    extra = dict(config.extra)
    extra.pop("torch_dtype", None)  # the older name of dtype, which would contradict it
    extra.update(architectures=[architecture], dtype=stored)
    dataclasses.replace(config, extra=extra).save_pretrained(location)


# ----------------------------------------------------------------------------------------------------- digest
def backbone_digest(model: nn.Module) -> str:
    """Return the SHA-256, in hex, of everything that the backbone's output in eval mode depends on.

    Two models with equal digests compute equal hidden states, so that one pass serves both heads. The digest covers the
    configuration fields that matter and the tensors' names, dtypes, shapes and bytes. It does not cover
    `masked_spec_embed`, the dropout and SpecAugment settings, or the head.

    Args:
        model: `SEWDModel`, or a model with a head, whose backbone is used.
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
