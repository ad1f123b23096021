"""What transformers' own tests of SEW-D ask of its classes, asked of this package's, with transformers as the oracle.

Their configuration, their random masks (with holes) and their labels; both packages have the same weights and no
dropout, so outputs, losses and gradients are compared, where transformers' tests only look at shapes and signs.
"""

import copy
import gc
import math

import pytest
import torch
import transformers

import sewd_model
from sewd_model import CheckpointError, SEWDConfig
from sewd_model.spec_augment import draw_mask

SETTINGS = {
    "hidden_size": 32,
    "feat_extract_norm": "group",
    "feat_extract_dropout": 0.0,
    "feat_extract_activation": "gelu",
    "conv_dim": (64, 32, 32),
    "conv_stride": (5, 2, 1),
    "conv_kernel": (10, 3, 1),
    "conv_bias": False,
    "num_conv_pos_embeddings": 31,
    "num_conv_pos_embedding_groups": 2,
    "squeeze_factor": 2,
    "max_position_embeddings": 512,
    "position_buckets": 256,
    "share_att_key": True,
    "relative_attention": True,
    "position_biased_input": False,
    "pos_att_type": ("p2c", "c2p"),
    "norm_rel_ebd": "layer_norm",
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "hidden_dropout": 0.1,
    "intermediate_size": 20,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "initializer_range": 0.02,
    "vocab_size": 32,
}
DETERMINISTIC = {
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "final_dropout": 0.0,
    "apply_spec_augment": False,
}
KINDS = ("backbone", "ctc", "classifier")
BATCH, WIDTH = 13, 1024


def build(oracle, kind, **changes):
    """The two packages' models with the same random weights."""
    values = {**SETTINGS, **DETERMINISTIC, **changes}
    reference = oracle.randomize(oracle.references[kind](transformers.SEWDConfig(**values)))
    model = oracle.models[kind](SEWDConfig(**values))
    model.load_state_dict(reference.state_dict())
    return reference, model


def draw(seed=0):
    """Waveforms, and a mask with holes whose first column is set."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(BATCH, WIDTH, generator=generator)
    mask = torch.randint(0, 2, (BATCH, WIDTH), generator=generator)
    mask[:, 0] = 1
    return values, mask


def right_padded(values, fractions=(4, 2, 1)):
    values, mask = values[: len(fractions)].clone(), torch.ones(len(fractions), WIDTH, dtype=torch.long)
    for row, fraction in enumerate(fractions):
        values[row, WIDTH // fraction :] = 0.0
        mask[row, WIDTH // fraction :] = 0
    return values, mask, torch.tensor([WIDTH // fraction for fraction in fractions])


def labels_of(model, lengths, kind, extra=0, shorter=1):
    generator = torch.Generator().manual_seed(5)
    if kind == "classifier":
        return torch.randint(0, model.config.num_labels, (len(lengths), 1), generator=generator)
    longest = int(model._get_feat_extract_output_lengths(lengths).min()) - shorter
    return torch.randint(0, model.config.vocab_size + extra, (len(lengths), longest), generator=generator)


# ------------------------------------------------------------------------------------------------ configuration
def test_a_configuration_can_be_made_without_and_with_the_keys_of_every_model(tmp_path):
    assert SEWDConfig().hidden_size == transformers.SEWDConfig().hidden_size
    config = SEWDConfig(hidden_size=37, **{name: SETTINGS[name] for name in ("feat_extract_dropout", "vocab_size")})
    assert config == SEWDConfig.from_dict(config.to_dict())
    config.save_pretrained(tmp_path)
    assert SEWDConfig.from_pretrained(tmp_path) == config
    common = {
        "return_dict": False,
        "output_hidden_states": True,
        "output_attentions": True,
        "chunk_size_feed_forward": 5,
        "architectures": ["SEWDModel"],
        "problem_type": "regression",
        "id2label": {0: "label"},
        "label2id": {"label": 0},
    }
    config = SEWDConfig(**common)
    assert {name: getattr(config, name) for name in common} == common


def test_the_number_of_labels_follows_what_is_assigned():
    config = SEWDConfig(num_labels=5)
    assert len(config.id2label) == len(config.label2id) == 5
    config.num_labels = 3
    assert len(config.id2label) == len(config.label2id) == 3


# ------------------------------------------------------------------------------------------------------ outputs
@pytest.mark.parametrize("padding", ["exact", "transformers"])
@pytest.mark.filterwarnings("ignore:attention_mask has zeros before ones")
def test_outputs_have_the_shape_and_with_their_padding_the_values(oracle, padding):
    reference, model = build(oracle, "backbone")
    values, mask = draw()
    with torch.no_grad():
        actual = model.eval()(values, attention_mask=mask, padding=padding).last_hidden_state
        expected = reference.eval()(values, attention_mask=mask).last_hidden_state
    frames = WIDTH
    for kernel, stride in zip(SETTINGS["conv_kernel"], SETTINGS["conv_stride"], strict=True):
        frames = (frames - (kernel - 1)) / stride
    assert actual.shape == (BATCH, math.ceil(frames), SETTINGS["hidden_size"])
    if padding == "transformers":
        own = model._get_feat_extract_output_lengths(mask.sum(-1))
        for row, length in enumerate(own.tolist()):
            oracle.assert_close(actual[row, :length], expected[row, :length], tolerance=1e-5)


def test_a_mask_with_holes_is_a_warning_and_counts_its_ones(oracle):
    _, model = build(oracle, "ctc")
    values, mask = draw()
    with pytest.warns(UserWarning, match="zeros before ones"), torch.no_grad():
        holes = model.eval()(values, attention_mask=mask)
    sums = mask.sum(-1)
    right = (torch.arange(WIDTH) < sums[:, None]).long()
    with torch.no_grad():
        assert torch.equal(holes.logits, model(values, attention_mask=right).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_an_output_is_read_by_name_key_and_index(oracle, kind):
    reference, model = build(oracle, kind)
    values, _ = draw()
    asked = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        actual, expected = model.eval()(values, **asked), reference.eval()(values, **asked)
    assert list(actual) == list(actual.keys()) == list(expected.keys())
    assert len(actual) == len(expected)
    first = next(iter(expected))
    assert actual[0] is actual[first] is getattr(actual, first) is actual.to_tuple()[0] is actual[:1][0]
    assert first in actual
    assert "loss" not in actual
    assert dict(actual)[first] is dict(**actual)[first] is actual[0]
    assert [name for name, _ in actual.items()] == list(actual)
    assert actual.values()[0] is actual[0]
    with pytest.raises(KeyError):
        actual["loss"]


@pytest.mark.parametrize("kind", KINDS)
def test_tuples_and_outputs_hold_the_same_and_the_configuration_chooses(oracle, kind):
    reference, model = build(oracle, kind)
    values, _ = draw()
    for name in ("output_hidden_states", "output_attentions"):
        setattr(model.config, name, True)
        setattr(reference.config, name, True)
    with torch.no_grad():
        whole, expected = model.eval()(values), reference.eval()(values)
        model.config.return_dict = False
        row = model(values)
    assert isinstance(row, tuple)
    assert len(row) == len(whole) == len(expected)
    assert len(whole.hidden_states) == len(expected.hidden_states) == SETTINGS["num_hidden_layers"] + 1
    assert len(whole.attentions) == len(expected.attentions) == SETTINGS["num_hidden_layers"]
    for one, other, theirs in zip(row, whole.to_tuple(), expected.to_tuple(), strict=True):
        for mine, same, reference_part in zip(
            *[part if isinstance(part, tuple) else (part,) for part in (one, other, theirs)], strict=True
        ):
            assert torch.equal(mine, same)
            oracle.assert_close(mine, reference_part, tolerance=1e-5)
    with torch.no_grad():
        assert "hidden_states" not in model(values, output_hidden_states=False, return_dict=True)


def test_hidden_states_and_attentions_keep_their_gradients(oracle):
    config = {"output_hidden_states": True, "output_attentions": True}
    reference, model = build(oracle, "ctc", **config)
    values, _ = draw()
    lengths = torch.full((BATCH,), WIDTH)
    labels = labels_of(model, lengths, "ctc", shorter=60)  # they fit: a loss that is not finite has no gradients
    gradients = []
    for candidate in (model, reference):
        outputs = candidate.eval()(values, attention_mask=torch.ones_like(values, dtype=torch.long), labels=labels)
        outputs.hidden_states[0].retain_grad()
        outputs.attentions[0].retain_grad()
        outputs[0].flatten()[0].backward(retain_graph=True)
        gradients.append((outputs.hidden_states[0].grad, outputs.attentions[0].grad))
    for mine, theirs in zip(*gradients, strict=True):
        oracle.assert_close(mine, theirs)


# ------------------------------------------------------------------------------------------- losses and training
@pytest.mark.parametrize("kind", ["ctc", "classifier"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_losses_of_a_padded_batch_are_those_of_transformers(oracle, kind, reduction):
    reference, model = build(oracle, kind)
    values, mask, lengths = right_padded(draw()[0])
    labels = labels_of(model, lengths, kind)
    model.config.ctc_loss_reduction = reference.config.ctc_loss_reduction = reduction
    actual = model.eval()(values, attention_mask=mask, labels=labels, padding="transformers").loss
    expected = reference.eval()(values, attention_mask=mask, labels=labels).loss
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(values, mask, labels, padding="transformers").loss, actual)  # by position
    torch.testing.assert_close(model(values, labels=labels).loss, reference(values, labels=labels).loss)
    assert model(values, labels=labels).loss != actual


@pytest.mark.parametrize(("kind", "freeze"), [("ctc", "freeze_feature_encoder"), ("classifier", "freeze_base_model")])
def test_a_step_of_training_has_the_loss_and_gradients_of_transformers(oracle, kind, freeze):
    reference, model = build(oracle, kind, ctc_zero_infinity=True)
    values, _, lengths = right_padded(draw()[0])
    labels = labels_of(model, lengths, kind)
    if kind == "ctc":
        labels[1, -7:] = -100
    losses = []
    for candidate in (model, reference):
        candidate.train()
        getattr(candidate, freeze)()
        losses.append(candidate(values, labels=labels).loss)
        losses[-1].backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {name for name, weight in reference.named_parameters() if weight.requires_grad}
    assert model.num_parameters(only_trainable=True) == reference.num_parameters(only_trainable=True)
    assert model.num_parameters(exclude_embeddings=True) == reference.num_parameters(exclude_embeddings=True)
    assert model.num_parameters() == reference.num_parameters() > model.num_parameters(only_trainable=True)
    oracle.assert_gradients_close(model, reference, tolerance=1e-5)


@pytest.mark.parametrize("kind", ["ctc", "classifier"])
def test_labels_outside_the_vocabulary_are_a_value_error(oracle, kind):
    _, model = build(oracle, kind)
    values, _, lengths = right_padded(draw()[0])
    labels = labels_of(model, lengths, kind)
    labels[0, 0] = model.config.vocab_size + 7
    with pytest.raises(ValueError, match="labels must be"):
        model.train()(values, labels=labels)


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights_have_the_means_of_transformers(oracle, kind):
    config = copy.deepcopy(SEWDConfig(**SETTINGS))
    for name in [name for name in vars(config) if "_range" in name]:
        setattr(config, name, 1e-10)
    torch.manual_seed(0)
    for name, weight in oracle.models[kind](config).named_parameters():
        mean = round(weight.mean().item(), 9)
        if "pos_conv_embed.conv.parametrizations" in name:
            continue  # initialised as in the paper; transformers leaves torch's default there
        if "conv.weight" in name or "masked_spec_embed" in name:
            assert -1.0 <= mean <= 1.0, name
        elif "layer_weights" not in name:
            assert mean in (0.0, 1.0), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_returns_the_same_and_two_calls_are_equal(oracle, kind, tmp_path):
    _, model = build(oracle, kind)
    values, _ = draw()
    model.eval().save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(model(values)[0], loaded(values)[0])
        assert torch.equal(model(values)[0], model(values)[0])


def test_changes_to_the_configuration_are_given_where_a_model_is_loaded(oracle, tmp_path):
    build(oracle, "classifier")[1].save_pretrained(tmp_path)
    kept = sewd_model.SEWDForSequenceClassification.from_pretrained(tmp_path, output_hidden_states=True)
    assert kept.config.output_hidden_states
    with pytest.raises(CheckpointError, match=r"classifier\.weight.*new_head=True"):
        sewd_model.SEWDForSequenceClassification.from_pretrained(tmp_path, num_labels=42)
    new = sewd_model.SEWDForSequenceClassification.from_pretrained(tmp_path, num_labels=42, new_head=True)
    assert new.classifier.weight.shape[0] == 42
    with pytest.raises(CheckpointError, match="ctc_loss_reduction"):
        sewd_model.SEWDForCTC.from_pretrained(tmp_path, ctc_loss_reduction="median")


# ----------------------------------------------------------------------------------------------- checkpointing
@pytest.mark.parametrize("names", ["gradient_checkpointing", "activation_checkpointing"])
@pytest.mark.parametrize("every", [1, 2])
def test_layers_computed_again_give_the_same_gradients(oracle, names, every):
    _, model = build(oracle, "ctc")
    values, _, lengths = right_padded(draw()[0])
    labels = labels_of(model, lengths, "ctc")
    gradients = []
    for enabled in (False, True):
        if enabled and every > 1:
            model.activation_checkpointing_enable(every_n_layers=every)
        elif enabled:
            getattr(model, f"{names}_enable")()
        assert model.is_gradient_checkpointing is enabled
        model.zero_grad()
        model.train()(values, labels=labels).loss.backward()
        gradients.append([weight.grad.clone() for weight in model.parameters() if weight.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)
    getattr(model, f"{names}_disable")()
    assert not model.is_gradient_checkpointing
    with pytest.raises(ValueError, match="offload"):
        model.activation_checkpointing_enable(offload=True)


def test_layers_computed_again_keep_less(oracle):
    """The bytes that the graph of a forward pass holds for its backward pass."""
    _, model = build(oracle, "ctc")
    values, _ = draw()

    def kept_bytes():
        gc.collect()
        held = {}

        def pack(tensor):
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.train()(values)
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        return sum(size for pointer, size in held.items() if pointer not in weights)

    without = kept_bytes()
    model.gradient_checkpointing_enable()
    assert kept_bytes() < 0.5 * without


# ---------------------------------------------------------------------------------------------- mask indices
@pytest.mark.parametrize(("probability", "span"), [(0.5, 1), (0.5, 4)])
def test_the_share_of_masked_frames_is_the_probability_or_less_where_spans_overlap(probability, span):
    mask = draw_mask([80] * 4, 80, probability=probability, span=span, min_spans=0)
    for count in mask.sum(-1).tolist():
        assert count == probability * 80 if span == 1 else count <= probability * 80
