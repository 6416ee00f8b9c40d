"""Perplexity of a language model on a text with reading off, with reading on, and under an edit that changes nothing: it must be the same to the bit.

    python benchmarks/perplexity.py --model DIR --data wikitext2_valid.txt --site model.layers.15 [--documents N] [--length 256]

Documents that begin with "=" (WikiText's headings) are left out. The mean is over all tokens but the first of each document, in nats, before exp.
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import torch

import modalities
from modalities.causal import next_token_loss
from modalities.data import open_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--site", default="model.layers.15")
    parser.add_argument("--documents", type=int)
    parser.add_argument("--length", type=int, default=256)
    options = parser.parse_args()
    model = modalities.load("llm", options.model, length=options.length)
    corpus = open_dataset(options.data)
    texts = [text for n in range(len(corpus)) if not (text := corpus.read(n).captions[0]).startswith("=")]
    texts = texts[: options.documents]

    def with_edit(batch: dict[str, Any]) -> Any:
        with model.edit(options.site, lambda values, kinds: values):
            return model.run(batch)

    def after_reading(batch: dict[str, Any]) -> Any:
        model.activations(batch, [options.site])
        return model.run(batch)

    passes = {"reading off": model.run, "read before": after_reading, "edited to itself": with_edit}
    sums = dict.fromkeys(passes, 0.0)
    tokens, same = 0, True
    for batch in batches(model, texts):
        logits = {name: run(batch).logits for name, run in passes.items()}
        same &= all(torch.equal(logits["reading off"], other) for other in logits.values())
        for name, of in logits.items():
            loss = next_token_loss(of, batch).double()
            sums[name] += float(loss.nansum())
        tokens += int((~loss.isnan()).sum())
    print(f"{len(texts)} documents, {tokens} predicted tokens; all logits equal to the bit: {same}")
    for name, total in sums.items():
        print(f"{name:<18} loss {total / tokens!r}  perplexity {math.exp(total / tokens)!r}")


def batches(model: Any, texts: list[str], size: int = 4) -> Iterator[dict[str, Any]]:
    for start in range(0, len(texts), size):
        yield model.prepare(texts[start : start + size])


if __name__ == "__main__":
    main()
