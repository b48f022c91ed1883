"""Train the example model: a small Qwen2 on the source of the running Python's standard library.

    python examples/train_stdlib_qwen2.py examples/stdlib-qwen2 --minutes 60

Needs torch, transformers, tokenizers and matplotlib. Writes a folder that transformers and isobit
load: model.safetensors (bfloat16), config.json, tokenizer files, and a model card with the loss
curve. The shape repeats the trouble of the real models in small: 13 groups of 32 in the
intermediate dimension (odd and prime, like the 107 groups of Qwen1.5-14B), heads whose width is not
a multiple of the group, a vocabulary that is not a multiple of 64.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

HELD_OUT = (
    "bisect.py",
    "csv.py",
    "fractions.py",
    "heapq.py",
    "json/encoder.py",
    "queue.py",
    "shlex.py",
    "textwrap.py",
)
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "encodings", "site-packages", "pydoc_data"}
END = "<|endoftext|>"
VOCAB_SIZE = 2000
CONTEXT = 512


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Token ids of the training files and of the held-out files, each file ended by END."""

    train: torch.Tensor
    held_out: torch.Tensor
    held_out_bytes: int


def read_sources() -> tuple[list[str], list[str]]:
    """Return the texts of the training files and of the held-out files of the standard library."""
    root = Path(sysconfig.get_paths()["stdlib"])
    train, held_out = [], []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if SKIPPED_FOLDERS & set(relative.parts) or relative.parts[0].startswith("config-"):
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        (held_out if relative.as_posix() in HELD_OUT else train).append(text)
    return train, held_out


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose token 0 is "!", as in Qwen's vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 1, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([END])
    if tokenizer.token_to_id("!") != 0 or tokenizer.token_to_id(END) != VOCAB_SIZE - 1:
        raise SystemExit("the vocabulary did not come out as planned")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=2 * CONTEXT
    )


def make_corpus(tokenizer: PreTrainedTokenizerFast) -> Corpus:
    train, held_out = read_sources()
    end = tokenizer.eos_token_id

    def encode(texts: list[str]) -> torch.Tensor:
        ids: list[int] = []
        for text in texts:
            ids += [*tokenizer.encode(text), end]
        return torch.tensor(ids, dtype=torch.int64)

    return Corpus(
        train=encode(train),
        held_out=encode(held_out),
        held_out_bytes=sum(len(text.encode()) for text in held_out),
    )


def make_model() -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=VOCAB_SIZE,
            hidden_size=288,
            intermediate_size=416,
            num_hidden_layers=5,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=2 * CONTEXT,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=VOCAB_SIZE - 1,
            eos_token_id=VOCAB_SIZE - 1,
        )
    )


@torch.no_grad()
def held_out_loss(model: Qwen2ForCausalLM, ids: torch.Tensor, most: int | None = None) -> float:
    """Mean negative log-likelihood (nats per token) over windows of CONTEXT tokens."""
    model.eval()
    windows = ids[: (len(ids) - 1) // CONTEXT * CONTEXT + 1]
    inputs, targets = windows[:-1].view(-1, CONTEXT), windows[1:].view(-1, CONTEXT)
    total, count = 0.0, 0
    for x, y in list(zip(inputs.split(8), targets.split(8), strict=True))[:most]:
        logits = model(x).logits.float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y.flatten(), reduction="sum"
        ).item()
        count += y.numel()
    model.train()
    return total / count


def train(model: Qwen2ForCausalLM, corpus: Corpus, minutes: float, batch: int) -> list[dict]:
    """Train for a fixed time: Muon on matrices, AdamW on the rest, linear decay to zero."""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, weight_decay=0.01, momentum=0.95),
        torch.optim.AdamW(others, lr=4e-3, weight_decay=0.0, betas=(0.9, 0.95)),
    ]
    base = [0.02, 4e-3]
    log, start, step, seen = [], time.time(), 0, 0
    while (progress := (time.time() - start) / (60 * minutes)) < 1:
        rate = min(1.0, (step + 1) / 50) * min(1.0, 1.25 * (1 - progress))
        for optimizer, lr in zip(optimizers, base, strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate
        offsets = torch.randint(len(corpus.train) - CONTEXT - 1, (batch,))
        window = torch.stack([corpus.train[o : o + CONTEXT + 1] for o in offsets.tolist()])
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(window[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.float().flatten(0, 1), window[:, 1:].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step, seen = step + 1, seen + batch * CONTEXT
        if step % 50 == 0:
            entry = {
                "step": step,
                "tokens": seen,
                "minutes": round((time.time() - start) / 60, 1),
                "train_loss": round(loss.item(), 3),
                "held_out_loss": round(held_out_loss(model, corpus.held_out, most=2), 3),
            }
            log.append(entry)
            print(json.dumps(entry), flush=True)
    return log


def plot(log: list[dict], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    millions = [entry["tokens"] / 1e6 for entry in log]
    axes.plot(millions, [entry["train_loss"] for entry in log], lw=0.8, label="training batch")
    axes.plot(millions, [entry["held_out_loss"] for entry in log], lw=1.4, label="held-out modules")
    axes.set_xlabel("tokens seen (millions)")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def write_card(
    path: Path, corpus: Corpus, log: list[dict], loss: float, settings: argparse.Namespace
) -> None:
    bits_per_byte = loss * len(corpus.held_out) / math.log(2) / corpus.held_out_bytes
    rows = log[:: max(1, len(log) // 12)]
    table = "\n".join(
        f"| {e['step']} | {e['tokens'] / 1e6:.1f} M | {e['train_loss']} | {e['held_out_loss']} |"
        for e in rows
    )
    path.write_text(
        f"""---
license: apache-2.0
language: [code]
library_name: transformers
---
# stdlib-qwen2

A Qwen2 of 3.5 million parameters, trained from nothing on the source and docstrings of the Python
{platform.python_version()} standard library. It completes Python that looks like Python and means little. It exists so
that isobit can be tried and tested where no model hub can be reached.

| | |
|---|---|
| shape | 5 layers, hidden 288, 6 query heads and 2 KV heads of 48, intermediate 416, QKV bias, tied embeddings |
| why so | 416 = 13 groups of 32: odd and prime, like 107 groups of 128 in Qwen1.5-14B; a head is 1.5 groups wide |
| vocabulary | {VOCAB_SIZE}, byte-level BPE trained on the same text; token 0 is "!" |
| data | {len(corpus.train):,} training tokens; tests, encodings and pydoc topics left out |
| held out | {", ".join(HELD_OUT)} ({len(corpus.held_out):,} tokens) |
| held-out perplexity | {math.exp(loss):.2f} per token, {bits_per_byte:.3f} bits per byte (float32 weights, windows of {CONTEXT}) |
| training | {log[-1]["tokens"] / 1e6:.1f} M tokens in {settings.minutes:.0f} minutes on {settings.threads} CPU thread(s), Muon and AdamW, context {CONTEXT} |
| made by | `python examples/train_stdlib_qwen2.py examples/stdlib-qwen2 --minutes {settings.minutes:.0f} --threads {settings.threads}` |

![loss curve](loss_curve.svg)

| step | tokens | training batch | held-out (8192 tokens) |
|---|---|---|---|
{table}

The standard library is under the PSF licence; the weights are under Apache-2.0.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    arguments.out.mkdir(parents=True)
    tokenizer = train_tokenizer(read_sources()[0])
    corpus = make_corpus(tokenizer)
    print(f"{len(corpus.train):,} training tokens, {len(corpus.held_out):,} held out", flush=True)
    model = make_model()
    log = train(model, corpus, arguments.minutes, arguments.batch)
    loss = held_out_loss(model, corpus.held_out)
    print(f"held-out loss {loss:.4f}, perplexity {math.exp(loss):.3f}", flush=True)
    tokenizer.save_pretrained(arguments.out)
    model.to(torch.bfloat16).save_pretrained(arguments.out)
    plot(log, arguments.out / "loss_curve.svg")
    write_card(arguments.out / "README.md", corpus, log, loss, arguments)


if __name__ == "__main__":
    main()
