"""The weights of a configuration, and of a file, without torch: equal to those of the model that is built from it."""

import json
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from sewd_model import SEWDConfig, SEWDForCTC, SEWDForSequenceClassification
from sewd_model.files import BUNDLED, SAFETENSORS_FILE
from sewd_model.weights import MASK_VECTOR, SPELLINGS, classifier_shapes, ctc_shapes, holds
from tests.sewd_model.conftest import tiny as values
from tests.support.configurations import CONFIGURATIONS

KINDS = {SEWDForCTC: ctc_shapes, SEWDForSequenceClassification: classifier_shapes}
MORE = {
    "no spec augment": {"mask_time_prob": 0.0, "mask_feature_prob": 0.0},
    "all layers": {"use_weighted_layer_sum": True},
}


def tiny(**overrides):
    return SEWDConfig.from_dict(values(**overrides))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("name", [*CONFIGURATIONS, *MORE])
def test_the_shapes_are_those_of_the_model(name, kind):
    config = tiny(**(CONFIGURATIONS | MORE)[name])
    state = kind(config).state_dict()
    assert KINDS[kind](config) == {key: tuple(tensor.shape) for key, tensor in state.items()}


def test_the_bundled_checkpoint_holds_the_weights_of_both_heads():
    for kind, shapes in KINDS.items():
        assert holds(BUNDLED, shapes(kind.from_pretrained(BUNDLED).config))


def test_other_spellings_types_and_mask_vectors_that_load_are_accepted(tmp_path):
    with_mask, without = tiny(mask_time_prob=0.1), tiny(mask_time_prob=0.0, mask_feature_prob=0.0)
    SEWDForCTC(with_mask).save_pretrained(tmp_path, dtype=torch.bfloat16)
    tensors = load_file(tmp_path / SAFETENSORS_FILE)
    renamed = {}
    for key, tensor in tensors.items():
        spelled = next(((new, old) for old, new in SPELLINGS.items() if key.endswith(new)), ("", ""))
        renamed[key.replace(*spelled)] = tensor
    save_file(renamed, tmp_path / SAFETENSORS_FILE)
    for config in (with_mask, without):
        config.save_pretrained(tmp_path)
        assert holds(tmp_path, ctc_shapes(config))
        SEWDForCTC.from_pretrained(tmp_path)
    save_file({k: t for k, t in renamed.items() if MASK_VECTOR not in k}, tmp_path / SAFETENSORS_FILE)
    assert holds(tmp_path, ctc_shapes(with_mask))


def _lacks_one(tensors):
    del tensors["sew_d.layer_norm.bias"]


def _has_another(tensors):
    tensors["another.weight"] = torch.zeros(1)


def _has_another_shape(tensors):
    tensors["lm_head.bias"] = torch.zeros(3)


def _has_integers(tensors):
    tensors["lm_head.bias"] = tensors["lm_head.bias"].to(torch.int32)


def _has_one_twice(tensors):
    for old, new in SPELLINGS.items():
        key = next(key for key in tensors if key.endswith(new))
        tensors[key.removesuffix(new) + old] = tensors[key].clone()


@pytest.mark.parametrize("change", [_lacks_one, _has_another, _has_another_shape, _has_integers, _has_one_twice])
def test_weights_that_do_not_load_are_not_accepted(tmp_path, change):
    config = tiny()
    SEWDForCTC(config).save_pretrained(tmp_path)
    tensors = load_file(tmp_path / SAFETENSORS_FILE)
    change(tensors)
    save_file(tensors, tmp_path / SAFETENSORS_FILE)
    assert not holds(tmp_path, ctc_shapes(config))
    with pytest.raises(ValueError, match=r"do not fit|two names"):
        SEWDForCTC.from_pretrained(tmp_path)


def test_damaged_and_absent_files_are_not_accepted(tmp_path):
    config = tiny()
    assert not holds(tmp_path, ctc_shapes(config))
    SEWDForCTC(config).save_pretrained(tmp_path)
    path = tmp_path / SAFETENSORS_FILE
    whole = path.read_bytes()
    header = json.dumps({"lm_head.bias": {"dtype": "F32", "shape": [9], "data_offsets": [0, 1]}}).encode()
    for data in (b"", whole[:-1], whole[:100], b"\xff" * 64, struct.pack("<Q", len(header)) + header):
        path.write_bytes(data)
        assert not holds(tmp_path, ctc_shapes(config))
