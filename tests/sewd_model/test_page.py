"""The examples of transformers' documentation page of SEW-D, on this package's classes beside transformers' own.

The page shows audio to hidden states, audio to text with a loss, and audio to a class with a loss. Each runs here on
the same checkpoint of random weights with both packages. What its readers do next follows: offsets of words, a batch, a
step of transformers' Trainer and one with a LoRA adapter of peft.
"""

import json

import numpy as np
import peft
import pytest
import torch
import transformers

import sewd_model
from sewd_model import CTCTokenizer, FeatureExtractor, Processor, SEWDForCTC, SEWDForSequenceClassification, SEWDModel
from tests.support.checkpoints import VOCAB


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, oracle):
    """A directory with a CTC model, its tokenizer and its feature extractor, written by transformers."""
    folder = tmp_path_factory.mktemp("page") / "ctc"
    oracle.reference("ctc", vocab_size=len(VOCAB), ctc_loss_reduction="mean").save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCAB))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json")
    features = transformers.Wav2Vec2FeatureExtractor()
    transformers.Wav2Vec2Processor(feature_extractor=features, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory, oracle):
    """A directory with a classifier and its feature extractor, written by transformers."""
    folder = tmp_path_factory.mktemp("page") / "classifier"
    labels = {0: "_unknown_", 1: "yes", 2: "no"}
    oracle.reference("classifier", id2label=labels, label2id={name: i for i, name in labels.items()}).save_pretrained(
        folder
    )
    transformers.Wav2Vec2FeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture
def audio():
    return np.random.default_rng(3).normal(0, 0.1, 8000)  # float64, as soundfile and datasets return it


def test_the_example_of_hidden_states(checkpoint, audio, oracle):
    inputs = Processor.from_pretrained(checkpoint)(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        outputs = SEWDModel.from_pretrained(checkpoint)(**inputs)
    theirs = transformers.AutoProcessor.from_pretrained(checkpoint)(audio, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = transformers.SEWDModel.from_pretrained(checkpoint)(**theirs)
    assert list(inputs.input_values.shape) == list(theirs.input_values.shape)
    oracle.assert_close(outputs.last_hidden_state, expected.last_hidden_state)


def test_the_example_of_text_and_loss(checkpoint, audio, oracle):
    def example(processor, model):
        inputs = processor(audio, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        transcription = processor.batch_decode(torch.argmax(logits, dim=-1))
        inputs["labels"] = processor(text="HELLO THERE", return_tensors="pt").input_ids
        return logits, transcription, inputs["labels"], model(**inputs).loss

    logits, text, labels, loss = example(Processor.from_pretrained(checkpoint), SEWDForCTC.from_pretrained(checkpoint))
    theirs = example(
        transformers.AutoProcessor.from_pretrained(checkpoint), transformers.SEWDForCTC.from_pretrained(checkpoint)
    )
    oracle.assert_close(logits, theirs[0])
    assert text == theirs[1]
    assert len(text) == 1
    assert text[0]
    assert torch.equal(labels, theirs[2])
    oracle.assert_close(loss, theirs[3])


def test_the_example_of_classes_and_loss(classifier, audio, oracle):
    def example(extractor, model):
        inputs = extractor(audio, sampling_rate=16_000, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits
        predicted = model.config.id2label[torch.argmax(logits, dim=-1).item()]
        labels = torch.tensor([model.config.label2id["yes"]])
        return logits, predicted, model(**inputs, labels=labels).loss

    logits, predicted, loss = example(
        FeatureExtractor.from_pretrained(classifier), SEWDForSequenceClassification.from_pretrained(classifier)
    )
    theirs = example(
        transformers.AutoFeatureExtractor.from_pretrained(classifier),
        transformers.SEWDForSequenceClassification.from_pretrained(classifier),
    )
    oracle.assert_close(logits, theirs[0])
    assert predicted == theirs[1]
    oracle.assert_close(loss, theirs[2])


# ------------------------------------------------------------------------------------------- features and texts
def test_a_batch_is_padded_with_its_mask_and_rows_equal_the_clips_alone(checkpoint, audio, oracle):
    clips = [audio, audio[:5000], list(audio[:6011])]
    inputs = Processor.from_pretrained(checkpoint)(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    assert inputs.attention_mask.sum(-1).tolist() == [8000, 5000, 6011]
    theirs = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)(
        [np.asarray(clip) for clip in clips], sampling_rate=16_000, padding=True, return_tensors="pt"
    )
    oracle.assert_close(inputs.input_values, theirs.input_values)
    model = SEWDForCTC.from_pretrained(checkpoint)
    reference = transformers.SEWDForCTC.from_pretrained(checkpoint)
    with torch.no_grad():
        actual = model(**inputs)
        oracle.assert_close(model(**inputs, padding="transformers").logits, reference(**theirs).logits)
        for row, clip in enumerate(clips):
            alone = reference(torch.from_numpy(FeatureExtractor().prepare(np.asarray(clip)))[None]).logits[0]
            oracle.assert_close(actual.logits[row, : actual.num_frames[row]], alone)


PADDINGS = {
    "longest": {"padding": "longest"},
    "a multiple": {"padding": True, "pad_to_multiple_of": 160},
    "a length": {"padding": "max_length", "max_length": 9000},
    "a cut length": {"padding": "max_length", "max_length": 4000, "truncation": True},
    "one clip": {},
}


@pytest.mark.parametrize("options", PADDINGS.values(), ids=PADDINGS)
@pytest.mark.parametrize("tensors", ["pt", "np", None])
def test_padding_options_are_those_of_transformers(audio, options, tensors):
    clips = [audio] if not options else [audio, audio[:5000]]
    common = {"sampling_rate": 16_000, "return_tensors": tensors, "return_attention_mask": True, **options}
    actual = FeatureExtractor()(clips, **common)
    expected = transformers.Wav2Vec2FeatureExtractor()(clips, **common)
    assert actual.keys() == expected.keys()
    for name in actual:
        for row, other in zip(actual[name], expected[name], strict=True):
            np.testing.assert_allclose(row, other, atol=1e-6)


def test_a_wrong_rate_is_refused_and_a_missing_one_is_a_warning(audio):
    with pytest.raises(ValueError, match="8000 Hz, but the model needs 16000 Hz"):
        FeatureExtractor()(audio, sampling_rate=8000)
    with pytest.warns(UserWarning, match="sampling_rate"):
        FeatureExtractor()(audio)


def test_rows_of_different_lengths_are_refused_without_padding(audio):
    with pytest.raises(ValueError, match="padding=True"):
        FeatureExtractor()([audio, audio[:5]], sampling_rate=16_000, return_tensors="pt")
    with pytest.raises(ValueError, match="padding must be"):
        FeatureExtractor()([audio, audio[:5]], sampling_rate=16_000, padding="left")
    with pytest.raises(ValueError, match="max_length"):
        FeatureExtractor()([audio], sampling_rate=16_000, padding="max_length")
    with pytest.raises(ValueError, match="return_tensors"):
        FeatureExtractor()([audio], sampling_rate=16_000, return_tensors="tf")


@pytest.mark.parametrize("text", ["HELLO THERE", ["A", "HELLO B"]], ids=str)
@pytest.mark.parametrize("tensors", ["pt", None])
def test_texts_are_encoded_as_by_transformers(checkpoint, text, tensors):
    options = {"padding": True, "return_tensors": tensors} if tensors else {}
    actual = CTCTokenizer.from_pretrained(checkpoint)(text, **options)
    expected = transformers.AutoTokenizer.from_pretrained(checkpoint)(text, **options)
    for name in ("input_ids", "attention_mask"):
        assert torch.as_tensor(actual[name]).tolist() == torch.as_tensor(expected[name]).tolist() if tensors else True
        assert tensors or actual[name] == expected[name]


@pytest.mark.parametrize("seed", range(20))
def test_texts_and_offsets_are_those_of_transformers(checkpoint, seed):
    ids = np.random.default_rng(seed).integers(0, len(VOCAB), (2, 40)).repeat(2, axis=1)
    ids[ids == VOCAB["<unk>"]] = 0
    actual, reference = CTCTokenizer.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    assert actual.batch_decode(ids) == reference.batch_decode(ids)
    assert actual.decode(torch.from_numpy(ids[0]), group_tokens=False) == reference.decode(ids[0], group_tokens=False)
    one = actual.decode(ids[0], output_word_offsets=True, output_char_offsets=True)
    other = reference.decode(ids[0], output_word_offsets=True, output_char_offsets=True)
    assert (one.text, one.word_offsets, one.char_offsets) == (other.text, other.word_offsets, other.char_offsets)
    many = actual.batch_decode(ids, output_word_offsets=True)
    others = reference.batch_decode(ids, output_word_offsets=True)
    assert (many.text, many.word_offsets) == (others.text, others.word_offsets)
    assert many.char_offsets is None


def test_special_tokens_are_left_out_after_collapsing(checkpoint):
    ids = [VOCAB[token] for token in ("<s>", "L", "L", "<pad>", "L", "</s>")]
    assert CTCTokenizer.from_pretrained(checkpoint).decode(ids, skip_special_tokens=True) == "LL"


def test_settings_replace_those_of_the_files_and_round_trip(checkpoint, tmp_path):
    processor = Processor.from_pretrained(checkpoint, do_lower_case=True, return_attention_mask=True)
    assert processor.decode([VOCAB["H"], VOCAB["I"]]) == "hi"
    processor.save_pretrained(tmp_path)
    again = Processor.from_pretrained(tmp_path)
    assert again.tokenizer.do_lower_case
    assert again.feature_extractor.return_attention_mask
    with pytest.raises(TypeError, match="lower"):
        Processor.from_pretrained(checkpoint, lower=True)
    with pytest.raises(ValueError, match="audio, text or both"):
        processor()


# ------------------------------------------------------------------------------------------------ what comes next
def collate(processor, rows):
    """The collator of transformers' CTC examples."""
    batch = processor.pad([{"input_values": row["input_values"]} for row in rows], padding=True, return_tensors="pt")
    texts = processor.pad(labels=[{"input_ids": row["labels"]} for row in rows], padding=True, return_tensors="pt")
    batch["labels"] = texts["input_ids"].masked_fill(texts.attention_mask.ne(1), -100)
    return batch


def training_rows(processor, audio):
    for clip, text in ((audio, "HELLO"), (audio[:6000], "A B")):
        row = processor(clip, text=text, sampling_rate=16_000)
        yield {"input_values": row.input_values[0], "labels": row.labels}


def train(model, processor, audio, folder):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        max_steps=1,
        learning_rate=1e-3,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        activation_checkpointing=True,
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        data_collator=lambda rows: collate(processor, rows),
        train_dataset=list(training_rows(processor, audio)),
    )
    return trainer, trainer.train()


def test_a_step_of_the_trainer_changes_the_weights(checkpoint, audio, tmp_path):
    processor, model = Processor.from_pretrained(checkpoint), SEWDForCTC.from_pretrained(checkpoint)
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    trainer, result = train(model, processor, audio, tmp_path)
    assert np.isfinite(result.training_loss)
    assert model.is_gradient_checkpointing
    assert any(not torch.equal(before[name], weight) for name, weight in model.named_parameters())
    predicted = trainer.predict(list(training_rows(processor, audio)))
    assert predicted.predictions.shape[0] == 2


def test_a_lora_adapter_is_trained_and_the_rest_stays(checkpoint, audio, tmp_path):
    processor, model = Processor.from_pretrained(checkpoint), SEWDForCTC.from_pretrained(checkpoint)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["query_proj", "value_proj"]))
    trainable = [name for name, weight in adapted.named_parameters() if weight.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    train(adapted, processor, audio, tmp_path / "run")
    merged = adapted.merge_and_unload().state_dict()
    changed = {name for name, weight in merged.items() if not torch.equal(weight, before[name])}
    assert changed
    assert all("query_proj.weight" in name or "value_proj.weight" in name for name in changed)


def test_a_language_without_adapter_is_refused(oracle):
    with pytest.raises(ValueError, match="target_lang 'fra'"):
        SEWDForCTC(sewd_model.SEWDConfig(**oracle.tiny()), target_lang="fra")


def test_a_collator_pads_lists_to_what_the_model_takes(checkpoint, audio):
    processor, model = Processor.from_pretrained(checkpoint), SEWDForCTC.from_pretrained(checkpoint)
    rows = [{"input_values": audio.tolist()}, {"input_values": audio[:5000].tolist()}]  # as `datasets` stores them
    batch = processor.pad(rows, pad_to_multiple_of=160)
    theirs = transformers.AutoProcessor.from_pretrained(checkpoint).pad(
        rows, padding=True, pad_to_multiple_of=160, return_attention_mask=True, return_tensors="pt"
    )
    assert (batch.input_values.dtype, batch.input_values.shape) == (torch.float32, theirs.input_values.shape)
    torch.testing.assert_close(batch.input_values, theirs.input_values)
    assert model(**batch).logits.shape[0] == 2


def test_inputs_move_and_change_their_type(checkpoint, audio):
    inputs = Processor.from_pretrained(checkpoint)(
        [audio, audio[:5000]], sampling_rate=16_000, padding=True, return_tensors="pt"
    )
    for moved in (inputs.to("cpu", torch.float16), inputs.to(torch.float16), inputs.to("cpu", dtype=torch.float16)):
        assert (moved.input_values.dtype, moved.attention_mask.dtype) == (torch.float16, torch.int64)


def test_names_that_recipes_read_are_there(checkpoint):
    tokenizer, other = CTCTokenizer.from_pretrained(checkpoint), transformers.AutoTokenizer.from_pretrained(checkpoint)
    for name in ("pad_token_id", "vocab_size"):
        assert getattr(tokenizer, name) == getattr(other, name)
    assert (len(tokenizer), tokenizer.get_vocab()) == (len(other), other.get_vocab())
    assert tokenizer.decode([VOCAB["A"]], output_word_offsets=True)["text"] == "A"
    config = sewd_model.SEWDConfig.from_pretrained(checkpoint, num_labels=3)
    assert (config.model_type, config.num_labels) == ("sew-d", 3)
    assert sewd_model.SEWDConfig.from_dict(json.loads(config.to_json_string())) == config


def test_options_of_loading_are_heeded_or_refused(classifier):
    load = SEWDForSequenceClassification.from_pretrained
    names = {0: "_unknown_", 1: "yes", 2: "no"}
    assert load(classifier, num_labels=3).config.id2label == names
    other = {0: "a", 1: "b", 2: "c"}
    backwards = {label: number for number, label in other.items()}
    assert load(classifier, label2id=backwards, id2label=other, num_labels=3).config.id2label == other
    assert load(classifier, torch_dtype=torch.float16).dtype == load(classifier, dtype="float16").dtype == torch.float16
    for wrong in ({"device_map": "auto"}, {"ignore_mismatched_sizes": True}, {"dtype": "auto"}):
        with pytest.raises(TypeError, match=f"{next(iter(wrong))}"):
            load(classifier, **wrong)
