"""`make demo`: makes a small corpus and a tiny random checkpoint, transcribes, evaluates, reports.

It shows the way through the machine and nothing of its hearing: until a trained model is bundled the weights are
random, and the audio is buzzing, not speech.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import numpy as np
import soundfile
import torch
import typer

from jobs.console import Exit, out, single
from jobs.evaluate import evaluate
from jobs.report import report
from jobs.transcribe import transcribe
from sewd_model import CTCTokenizer, FeatureExtractor, SEWDConfig, SEWDForCTC

LETTERS = "ETAONIHSRDLUMWCFGYPBVK'XJQZ"
WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "zero")
# Centre frequencies of two formants, Hz: how vowels differ (Peterson and Barney 1952, rounded).
VOWELS = ((300, 2300), (400, 2000), (550, 1800), (700, 1200), (600, 900), (300, 850))


def demo(
    folder: Annotated[Path, typer.Option(help="Where corpus and checkpoint are made.")] = Path("demo-data"),
    output: Annotated[Path, typer.Option(help="The run; an earlier demo's is replaced.")] = Path("demo-run"),
) -> int:
    """Make a corpus and a checkpoint, transcribe, evaluate, report."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(output, ignore_errors=True)
    corpus, model = folder / "corpus", folder / "model"
    num_files = write_corpus(corpus)
    write_checkpoint(model)
    out.print(f"made {num_files} audio files in {corpus}, two of them broken on purpose")
    out.print(
        "NOTE: the model is tiny and its weights are random, so the texts are noise\n"
        "and the error rates above 100 %. It shows how a run goes, not how well it hears.",
        style="yellow",
    )
    out.print(f"\n$ sewd transcribe {corpus} --output {output} --model {model}", style="bold", markup=False)
    code = transcribe(inputs=[str(corpus)], output=str(output), model=str(model))
    if code not in (Exit.DONE, Exit.DONE_WITH_ERRORS):
        return code
    out.print(f"\n$ sewd evaluate {output}", style="bold", markup=False)
    evaluate(str(output))
    out.print(f"\n$ sewd report {output}", style="bold", markup=False)
    report(str(output))
    out.print(f"\ntranscripts:  {output}/transcripts/*.parquet")
    out.print(f"failed files: {output}/errors/*.parquet")
    out.print(f"record:       {output}/run.json")
    return Exit.DONE


def write_corpus(folder: Path) -> int:
    """Audio files of several formats, rates and lengths, side-car references, two broken files. Gives their number."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(2109_06870)
    kinds = [("wav", 16_000), ("flac", 16_000), ("ogg", 44_100), ("wav", 8_000), ("mp3", 24_000)]
    for index in range(20):
        kind, rate = kinds[index % len(kinds)]
        words = generator.choice(WORDS, size=90 if index == 7 else 3 + index % 5)
        audio = buzz(len(words), rate, generator)
        if index % 4 == 0:
            audio = np.stack([audio, 0.5 * audio], axis=1)
        with soundfile.SoundFile(folder / f"{index:02d}.{kind}", "w", rate, audio[0].size) as file:
            for start in range(0, len(audio), rate):  # libsndfile's Vorbis encoder crashes on a long write
                file.write(audio[start : start + rate])
        (folder / f"{index:02d}.txt").write_text(" ".join(words) + "\n")
    whole = (folder / "00.wav").read_bytes()
    (folder / "truncated.wav").write_bytes(whole[: len(whole) // 2])
    (folder / "not-audio.flac").write_text("This is a text file that someone named .flac.\n")
    return 22


def buzz(num_words: int, rate: int, generator: np.random.Generator) -> np.ndarray:
    """A pulse train through vowel-like resonances, a burst for each word; float32, about 0.7 s a word."""
    bursts = []
    for _ in range(num_words):
        seconds = generator.uniform(0.3, 0.6)
        time = np.arange(int(seconds * rate)) / rate
        pitch = generator.uniform(90, 220) * (1 + 0.1 * np.sin(2 * np.pi * 3 * time))
        phase = 2 * np.pi * np.cumsum(pitch) / rate
        formants = VOWELS[generator.integers(len(VOWELS))]
        harmonics = np.arange(1, 20)[:, None]
        gains = sum(np.exp(-(((harmonics * 150 - f) / 200) ** 2)) for f in formants) + 0.02
        voice = (gains * np.sin(harmonics * phase)).sum(axis=0) * np.hanning(len(time))
        bursts += [voice / max(np.abs(voice).max(), 1e-9), np.zeros(int(generator.uniform(0.1, 0.4) * rate))]
    audio = 0.5 * np.concatenate(bursts)
    return (audio + 0.003 * generator.standard_normal(len(audio))).astype(np.float32)


def write_checkpoint(folder: Path) -> None:
    """A SEW-D of 60,000 random weights, in the Hugging Face layout."""
    torch.manual_seed(0)
    config = SEWDConfig(
        vocab_size=5 + len(LETTERS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(8, 16, 16, 16, 16, 32, 32, 32, 32, 32, 32, 32, 32),
        num_conv_pos_embeddings=31,
        num_conv_pos_embedding_groups=4,
    )
    model = SEWDForCTC(config)
    with torch.no_grad():
        model.lm_head.weight.normal_()  # away from the initial values, under which every frame says the same
    model.save_pretrained(str(folder))
    specials = ("<pad>", "<s>", "</s>", "<unk>", "|")
    CTCTokenizer(vocab={token: index for index, token in enumerate((*specials, *LETTERS))}).save_pretrained(str(folder))
    FeatureExtractor().save_pretrained(str(folder))


if __name__ == "__main__":
    single(demo)
