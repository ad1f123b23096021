"""Checkpoints of transformers are read in every layout, transformers reads those that are saved here, bad ones fail."""

import io
import json
import os
import pickle
import shutil
import time
import uuid
import zipfile
from pathlib import Path

import fsspec
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from sewd_model import (
    CheckpointError,
    CTCTokenizer,
    FeatureExtractor,
    SEWDConfig,
    SEWDForCTC,
    SEWDForSequenceClassification,
    SEWDModel,
    backbone_digest,
    files,
    read_state_dict,
)
from sewd_model.checkpoint import save

KINDS = ["backbone", "ctc", "classifier"]


@pytest.fixture
def saved(oracle, tmp_path):
    """Return a function that saves a transformers model and returns (model, directory)."""

    def save(kind="ctc", **overrides):
        model = oracle.reference(kind, **overrides)
        directory = tmp_path / f"{kind}-{uuid.uuid4().hex}"
        model.save_pretrained(directory)
        return model, directory

    return save


def write_layout(directory, layout):
    """Rewrite the single model.safetensors of a directory into another layout."""
    source = directory / "model.safetensors"
    tensors = load_file(source)
    if layout == "safetensors":
        return
    source.unlink()
    if layout == "bin":
        torch.save(tensors, directory / "pytorch_model.bin")
        return
    ending, write = {
        "sharded safetensors": ("model.safetensors", save_file),
        "sharded bin": ("pytorch_model.bin", torch.save),
    }[layout]
    stem, suffix = ending.split(".")
    names = sorted(tensors)
    where = {}
    for number, part in enumerate((names[::3], names[1::3], names[2::3]), start=1):
        shard = f"{stem}-{number:05d}-of-00003.{suffix}"
        write({name: tensors[name] for name in part}, directory / shard)
        where.update(dict.fromkeys(part, shard))
    (directory / f"{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def rewrite(directory, change):
    """Apply `change` to the state dict in model.safetensors."""
    tensors = load_file(directory / "model.safetensors")
    changed = change(dict(tensors))
    save_file(tensors if changed is None else changed, directory / "model.safetensors")


def to_memory(directory):
    """Copy a directory into fsspec's in-memory file system."""
    uri = f"memory://checkpoints/{uuid.uuid4().hex}"
    fs = fsspec.filesystem("memory")
    for path in directory.iterdir():
        fs.pipe_file(f"{uri}/{path.name}", path.read_bytes())
    return uri


# ------------------------------------------------------------------------------------------------------- reading
@pytest.mark.parametrize("where", ["directory", "memory"])
@pytest.mark.parametrize("layout", ["safetensors", "sharded safetensors", "bin", "sharded bin"])
def test_every_layout_loads_from_a_directory_and_a_uri(oracle, saved, layout, where):
    reference, directory = saved()
    write_layout(directory, layout)
    location = directory if where == "directory" else to_memory(directory)
    model = SEWDForCTC.from_pretrained(location)
    assert not model.training
    for name, tensor in reference.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    waveforms = torch.stack(oracle.clips(500))
    oracle.assert_close(model(waveforms).logits, reference(waveforms).logits)


def test_shards_written_by_transformers_load(oracle, tmp_path):
    reference = oracle.reference("ctc")
    reference.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    model = SEWDForCTC.from_pretrained(str(tmp_path))
    assert all(torch.equal(model.state_dict()[n], tensor) for n, tensor in reference.state_dict().items())


def test_safetensors_is_preferred_to_pickle(saved):
    _, directory = saved()
    (directory / "pytorch_model.bin").write_bytes(b"never read")
    SEWDForCTC.from_pretrained(directory)


@pytest.mark.parametrize("layout", ["safetensors", "bin"])
def test_older_spelling_of_weight_norm_loads(saved, layout):
    reference, directory = saved()

    def old(tensors):
        for new, ending in (("original0", "weight_g"), ("original1", "weight_v")):
            name = f"sew_d.encoder.pos_conv_embed.conv.parametrizations.weight.{new}"
            tensors[f"sew_d.encoder.pos_conv_embed.conv.{ending}"] = tensors.pop(name)
        return tensors

    rewrite(directory, old)
    assert "sew_d.encoder.pos_conv_embed.conv.weight_g" in read_state_dict(directory)
    write_layout(directory, layout)
    model = SEWDForCTC.from_pretrained(directory)
    expected = reference.sew_d.encoder.pos_conv_embed.conv.weight
    assert torch.equal(model.sew_d.encoder.pos_conv_embed.conv.weight, expected)


def test_both_spellings_of_weight_norm_at_once_are_refused(saved):
    _, directory = saved()
    name = "sew_d.encoder.pos_conv_embed.conv"
    rewrite(
        directory,
        lambda t: {**t, f"{name}.weight_g": t[f"{name}.parametrizations.weight.original0"].clone()},
    )
    with pytest.raises(CheckpointError, match=r"original0 under two names"):
        SEWDForCTC.from_pretrained(directory)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_weights_compute_in_float32_unless_asked(saved, dtype):
    reference, directory = saved()
    rewrite(directory, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    model = SEWDForCTC.from_pretrained(directory)
    assert {tensor.dtype for tensor in model.state_dict().values()} == {torch.float32}
    expected = reference.lm_head.weight.to(dtype).float()
    assert torch.equal(model.lm_head.weight, expected)
    assert SEWDForCTC.from_pretrained(directory, dtype=dtype).lm_head.weight.dtype == dtype


@pytest.mark.parametrize("kind", ["ctc", "classifier"])
def test_backbone_loads_its_part_of_a_checkpoint_with_a_head(saved, kind):
    reference, directory = saved(kind, use_weighted_layer_sum=True)
    model = SEWDModel.from_pretrained(directory)
    expected = reference.sew_d.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())


def test_backbone_checkpoint_needs_new_head_to_become_a_head_model(saved):
    reference, directory = saved("backbone")
    with pytest.raises(CheckpointError, match=r"missing: lm_head\.bias, lm_head\.weight.*new_head=True"):
        SEWDForCTC.from_pretrained(directory)
    torch.manual_seed(0)
    first = SEWDForCTC.from_pretrained(directory, new_head=True)
    torch.manual_seed(0)
    again = SEWDForCTC.from_pretrained(directory, new_head=True)
    assert torch.equal(first.lm_head.weight, again.lm_head.weight)
    assert not first.lm_head.bias.any()
    for name, tensor in reference.state_dict().items():
        assert torch.equal(first.sew_d.state_dict()[name], tensor)


def test_new_head_replaces_another_kind_and_another_size_of_head(saved):
    reference, directory = saved("ctc")
    with pytest.raises(CheckpointError, match=r"missing: classifier\.bias.*unexpected: lm_head\.bias"):
        SEWDForSequenceClassification.from_pretrained(directory)
    classifier = SEWDForSequenceClassification.from_pretrained(directory, new_head=True)
    assert backbone_digest(classifier) == backbone_digest(SEWDForCTC.from_pretrained(directory))
    values = {**SEWDConfig.from_pretrained(directory).to_dict(), "vocab_size": 29}
    wider = SEWDConfig.from_dict(values)
    with pytest.raises(CheckpointError, match=r"wrong shape: lm_head\.bias \(11,\) instead of \(29,\)"):
        SEWDForCTC.from_pretrained(directory, config=wider)
    fresh = SEWDForCTC.from_pretrained(directory, config=wider, new_head=True)
    assert fresh.lm_head.weight.shape == (29, 16)
    assert torch.equal(fresh.sew_d.layer_norm.weight, reference.sew_d.layer_norm.weight)


def test_mask_vector_may_be_missing_or_unused(saved):
    reference, directory = saved("ctc", mask_time_prob=0.0)
    assert "sew_d.masked_spec_embed" not in reference.state_dict()
    config = SEWDConfig.from_pretrained(directory)
    wanting = SEWDConfig.from_dict({**config.to_dict(), "mask_time_prob": 0.1})
    model = SEWDForCTC.from_pretrained(directory, config=wanting)
    assert model.sew_d.masked_spec_embed.shape == (16,)
    _, directory = saved("ctc", mask_time_prob=0.1)
    model = SEWDForCTC.from_pretrained(directory, config=config)
    assert not hasattr(model.sew_d, "masked_spec_embed")


# ------------------------------------------------------------------------------------------------------- refusing
def test_missing_unknown_and_wrongly_shaped_tensors_are_all_named(saved):
    _, directory = saved()

    def spoil(tensors):
        del tensors["sew_d.layer_norm.bias"]
        tensors["sew_d.quantizer.codevectors"] = torch.zeros(3)
        tensors["lm_head.bias"] = torch.zeros(5)
        return tensors

    rewrite(directory, spoil)
    with pytest.raises(CheckpointError) as caught:
        SEWDForCTC.from_pretrained(directory)
    message = str(caught.value)
    assert "missing: sew_d.layer_norm.bias" in message
    assert "unexpected: sew_d.quantizer.codevectors" in message
    assert "wrong shape: lm_head.bias (5,) instead of (11,)" in message


def test_unknown_head_is_refused_by_the_backbone_too(saved):
    _, directory = saved()
    rewrite(directory, lambda tensors: {**tensors, "project_q.weight": torch.zeros(3)})
    with pytest.raises(CheckpointError, match=r"unexpected: project_q\.weight"):
        SEWDModel.from_pretrained(directory)


def test_integer_weights_are_refused(saved):
    _, directory = saved()
    rewrite(directory, lambda tensors: {**tensors, "lm_head.bias": torch.zeros(11, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=r"not floating point: lm_head\.bias torch\.int8"):
        SEWDForCTC.from_pretrained(directory)


class Malicious:
    """A pickle that makes a directory when it is read."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["torch zip", "bare pickle"])
def test_pickle_with_code_is_refused_and_not_run(saved, tmp_path, form):
    _, directory = saved()
    (directory / "model.safetensors").unlink()
    trace = tmp_path / "trace"
    content = {"lm_head.bias": torch.zeros(11), "x": Malicious(trace)}
    if form == "torch zip":
        torch.save(content, directory / "pytorch_model.bin")
    else:
        (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Malicious(trace), protocol=2))
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        SEWDForCTC.from_pretrained(directory)
    assert not trace.exists()
    shutil.rmtree(trace, ignore_errors=True)
    if form == "torch zip":  # the file is a working exploit: read without weights_only, it runs
        torch.load(directory / "pytorch_model.bin", weights_only=False)
        assert trace.exists()


def _truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("where", ["directory", "memory"])
@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated"])
@pytest.mark.parametrize("layout", ["safetensors", "bin", "sharded safetensors", "sharded bin"])
def test_damaged_weights_are_refused_by_file_name(saved, layout, damage, where):
    _, directory = saved()
    write_layout(directory, layout)
    victim = next(path for path in sorted(directory.iterdir()) if path.suffix in (".bin", ".safetensors"))
    if damage == "truncated":
        _truncate(victim)
    else:
        victim.write_bytes({"empty": b"", "garbage": b"\x80\x02garbage that is no file of weights" * 9}[damage])
    with pytest.raises(CheckpointError, match=victim.name):
        SEWDForCTC.from_pretrained(directory if where == "directory" else to_memory(directory))


def test_compressed_weights_are_refused_before_they_are_unpacked(saved, monkeypatch):
    _, directory = saved()
    (directory / "model.safetensors").unlink()
    written = io.BytesIO()
    torch.save({"lm_head.bias": torch.zeros(10**6)}, written)
    with zipfile.ZipFile(written) as plain, zipfile.ZipFile(directory / "pytorch_model.bin", "w", 8) as packed:
        for item in plain.infolist():
            packed.writestr(item.filename, plain.read(item))
    assert torch.load(directory / "pytorch_model.bin", weights_only=True)["lm_head.bias"].shape == (10**6,)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin .* is compressed: 4,\d+ bytes would become 4,000"):
        SEWDForCTC.from_pretrained(directory)


@pytest.mark.parametrize("where", ["directory", "memory"])
def test_json_files_that_are_too_large_are_not_read(saved, monkeypatch, where):
    _, directory = saved()
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 50)
    with pytest.raises(CheckpointError, match=r"config\.json .* bytes, too many for a JSON file"):
        SEWDForCTC.from_pretrained(directory if where == "directory" else to_memory(directory))


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {"model": {"lm_head.bias": torch.zeros(2)}}, {1: torch.zeros(2)}]
)
def test_pickle_without_a_state_dict_is_refused(saved, content):
    _, directory = saved()
    (directory / "model.safetensors").unlink()
    torch.save(content, directory / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="does not contain a state dict"):
        SEWDForCTC.from_pretrained(directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["weight_map"].update({"lm_head.bias": "../../etc/weights"}), "outside its directory"),
        (lambda index: index["weight_map"].update({"lm_head.bias": ".."}), "outside its directory"),
        (lambda index: index["weight_map"].update({"lm_head.bias": ""}), "outside its directory"),
        (lambda index: index["weight_map"].update({"lm_head.bias": "gone.safetensors"}), "gone.safetensors"),
        (lambda index: index["weight_map"].pop("lm_head.bias"), "unexpected: lm_head.bias"),
        (
            lambda index: index["weight_map"].update({"other": "model-00001-of-00003.safetensors"}),
            "missing: other",
        ),
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index["weight_map"].update({"lm_head.bias": 3}), "has no weight_map"),
    ],
    ids=["path", "parent", "empty name", "missing shard", "unlisted tensor", "promised tensor", "no map", "no name"],
)
def test_index_that_disagrees_with_its_shards_is_refused(saved, change, message):
    _, directory = saved()
    write_layout(directory, "sharded safetensors")
    path = directory / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=message):
        SEWDForCTC.from_pretrained(directory)


def test_missing_files_are_named(saved, tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        SEWDForCTC.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        SEWDForCTC.from_pretrained("memory://nowhere/at/all")
    _, directory = saved()
    (directory / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no model\.safetensors, no pytorch_model\.bin"):
        SEWDForCTC.from_pretrained(directory)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe{}", b'{"conv_dim": [1, 2]}'])
def test_malformed_config_is_refused_by_file_name(saved, content):
    _, directory = saved()
    (directory / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        SEWDForCTC.from_pretrained(directory)


def test_credentials_in_a_uri_do_not_reach_the_message():
    from sewd_model.files import shown

    assert shown("s3://KEY:SECRET@bucket/dir") == "s3://bucket/dir"
    assert shown("s3://bucket/a@b") == "s3://bucket/a@b"
    assert shown("/plain/dir") == "/plain/dir"


def test_unreachable_store_is_not_reported_as_a_bad_checkpoint(monkeypatch, saved):
    _, directory = saved()
    uri = to_memory(directory)

    def refuse(*_arguments, **_options):
        raise PermissionError("expired key")

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "cat_file", refuse)
    with pytest.raises(PermissionError, match="expired key"):
        SEWDForCTC.from_pretrained(uri)


# ------------------------------------------------------------------------------------------------------- writing
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", ["directory", "memory"])
def test_saved_model_loads_in_transformers_and_here(oracle, tmp_path, kind, where):
    _, model = oracle.pair(kind, use_weighted_layer_sum=True, id2label={0: "a", 1: "b", 2: "c"})
    location = tmp_path / "out" / "model" if where == "directory" else f"memory://out/{uuid.uuid4().hex}"
    model.save_pretrained(location)
    again = oracle.models[kind].from_pretrained(location)
    assert again.config.to_dict() == SEWDConfig.from_pretrained(location).to_dict()
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    if where == "memory":
        return
    assert sorted(path.name for path in location.iterdir()) == ["config.json", "model.safetensors"]
    reference, report = oracle.references[kind].from_pretrained(location, output_loading_info=True)
    assert not any(report.values()), report
    assert reference.config.architectures == [type(model).__name__]
    waveforms = torch.stack(oracle.clips(500))
    with torch.no_grad():
        actual, expected = model(waveforms, return_dict=False)[0], reference.eval()(waveforms, return_dict=False)[0]
    oracle.assert_close(actual, expected)


def test_config_of_transformers_is_kept_when_it_is_saved_again(saved, tmp_path):
    reference, directory = saved("classifier", id2label={0: "no", 1: "yes"})
    SEWDForSequenceClassification.from_pretrained(directory).save_pretrained(tmp_path)
    again = transformers.SEWDConfig.from_pretrained(tmp_path).to_dict()
    before = reference.config.to_dict()
    for key in ("transformers_version", "_name_or_path"):
        before.pop(key, None)
        again.pop(key, None)
    assert before.pop("label2id") is None  # transformers leaves it empty here; this package writes the inverse
    assert again["label2id"] == {"no": 0, "yes": 1}
    assert {key: again.get(key) for key in before} == before


def test_half_precision_is_written_unchanged(oracle, tmp_path):
    _, model = oracle.pair("ctc")
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in read_state_dict(tmp_path).values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert transformers.SEWDForCTC.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_converted_to_the_dtype_of_the_file_and_the_model_is_not(oracle, tmp_path, dtype):
    _, model = oracle.pair("ctc")
    model.save_pretrained(tmp_path, dtype=dtype)
    assert {tensor.dtype for tensor in read_state_dict(tmp_path).values()} == {dtype}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert model.lm_head.weight.dtype == torch.float32
    expected = model.lm_head.weight.to(dtype).float()
    assert torch.equal(SEWDForCTC.from_pretrained(tmp_path).lm_head.weight, expected)


def test_weights_that_do_not_fit_the_dtype_are_refused_before_anything_is_written(oracle, tmp_path):
    _, model = oracle.pair("ctc")
    with torch.no_grad():
        model.lm_head.bias[0] = 1e6
    with pytest.raises(CheckpointError, match=r"do not fit float16: not finite: lm_head\.bias"):
        model.save_pretrained(tmp_path, dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_a_state_dict_of_both_heads_is_saved_with_tokenizer_and_feature_extractor(oracle, tmp_path):
    _, ctc = oracle.pair("ctc")
    _, classifier = oracle.pair("classifier", seed=1)
    classifier.sew_d.load_state_dict(ctc.sew_d.state_dict())
    tokenizer, features = CTCTokenizer(vocab={"<pad>": 0, "a": 1}), FeatureExtractor(sampling_rate=8000)
    tensors = {**ctc.state_dict(), **classifier.state_dict()}
    save(tensors, ctc.config, "SEWDForCTC", tmp_path, companions=(tokenizer, features))
    assert read_state_dict(tmp_path).keys() == tensors.keys()
    for model, again in ((ctc, SEWDForCTC), (classifier, SEWDForSequenceClassification)):
        loaded = again.from_pretrained(tmp_path).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())
    assert CTCTokenizer.from_pretrained(tmp_path).vocab == tokenizer.vocab
    assert FeatureExtractor.from_pretrained(tmp_path).sampling_rate == 8000


def test_config_is_written_last(oracle, tmp_path):
    _, model = oracle.pair("ctc")

    class Interrupted:
        def save_pretrained(self, location):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        save(model, model.config, "SEWDForCTC", tmp_path, companions=[Interrupted()])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_saving_over_a_checkpoint_leaves_no_temporary_files(oracle, tmp_path):
    for seed in (0, 1):
        _, model = oracle.pair("ctc", seed)
        model.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert torch.equal(SEWDForCTC.from_pretrained(tmp_path).lm_head.weight, model.lm_head.weight)


# ------------------------------------------------------------------------------------------------------- digest
def test_digest_is_equal_for_heads_on_one_backbone_and_differs_after_any_change_to_it(oracle):
    _, ctc = oracle.pair("ctc")
    _, classifier = oracle.pair("classifier", final_dropout=0.5, num_labels=7, vocab_size=20)
    classifier.sew_d.load_state_dict(ctc.sew_d.state_dict())
    digest = backbone_digest(ctc)
    assert len(digest) == 64
    assert digest == backbone_digest(ctc.sew_d) == backbone_digest(classifier)
    with torch.no_grad():
        ctc.lm_head.weight.add_(1)
        ctc.sew_d.masked_spec_embed.add_(1)
    assert backbone_digest(ctc) == digest
    for name, parameter in ctc.sew_d.named_parameters():
        if name == "masked_spec_embed":
            continue
        with torch.no_grad():
            before = parameter.clone()
            parameter.view(-1)[-1] += 1e-3
            assert backbone_digest(ctc) != digest, name
            parameter.copy_(before)
    assert backbone_digest(ctc) == digest
    assert backbone_digest(ctc.to(torch.bfloat16)) != digest


@pytest.mark.parametrize(
    "change",
    [{"layer_norm_eps": 1e-5}, {"hidden_act": "gelu"}, {"pos_att_type": ["c2p"]}, {"max_position_embeddings": 41}],
    ids=str,
)
def test_digest_covers_settings_that_do_not_change_the_tensors(oracle, change):
    _, one = oracle.pair("backbone")
    _, other = oracle.pair("backbone", **change)
    assert all(torch.equal(other.state_dict()[name], tensor) for name, tensor in one.state_dict().items())
    assert backbone_digest(one) != backbone_digest(other)


# Files that must not be waited for, and sizes that must not be asked for


@pytest.mark.parametrize(
    "values",
    [
        {"hidden_size": 10**9, "num_attention_heads": 1, "num_conv_pos_embedding_groups": 1},
        {"num_hidden_layers": 10**6},
        {"intermediate_size": 10**10},
        {"vocab_size": 10**12},
        {"squeeze_factor": 10**9},
        {"num_conv_pos_embeddings": 10**10},
        {"max_position_embeddings": 10**12, "position_buckets": -1},
        {"conv_dim": [10**6] * 2, "conv_kernel": [10**6] * 2, "conv_stride": [1] * 2},
        {"conv_dim": [1] * 10**5, "conv_kernel": [1] * 10**5, "conv_stride": [1] * 10**5},
        {"num_labels": 10**9, "id2label": None, "label2id": None},
    ],
)
def test_absurd_sizes_are_refused_in_a_line_before_memory_is_asked_for(tmp_path, values):
    source = Path(files.located("bundled"))
    for path in source.iterdir():
        if path.is_file() and path.name != "config.json":
            (tmp_path / path.name).symlink_to(path)
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | values))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"config\.json in ") as error:
        SEWDForCTC.from_pretrained(tmp_path)
    assert time.process_time() - began < 5
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_absurd_sizes_are_refused_where_there_are_no_weights(tmp_path):
    SEWDConfig(hidden_size=768 << 10).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the files hold 0 bytes"):
        SEWDForCTC.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "pytorch_model.bin", "vocab.json"])
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_pipes_and_devices_are_refused_and_not_waited_for(tmp_path, name, kind):
    if kind == "pipe":
        os.mkfifo(tmp_path / name)
    else:
        (tmp_path / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{name} in .* is not a regular file"):
        files.read_bytes(tmp_path, name)
    if name == "config.json":
        with pytest.raises(CheckpointError, match="is not a regular file"):
            SEWDForCTC.from_pretrained(tmp_path)
