"""Text from ids as they come: 8000 tokens, and 2000 bytes that never complete a character.

    python -m bench.detokenizer

Prints the best of several runs for each kind of tokenizer, beside DecodeStream of tokenizers.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from isobit.launch.tokenizer.detokenizer import Detokenizer
from tests.made_tokenizers import KINDS

TOKENS, BYTES, RUNS = 8000, 2000, 7


def best_s(work: Callable[[list[int]], object], ids: list[int]) -> float:
    times = []
    for _ in range(RUNS):
        started = time.perf_counter()
        work(ids)
        times.append(time.perf_counter() - started)
    return min(times)


def main() -> None:
    for kind, make in KINDS.items():
        made: Tokenizer = make()
        tokens = {id_: made.id_to_token(id_) for id_ in range(made.get_vocab_size())}
        decoder = None if made.decoder is None else made.decoder.__getstate__().decode()
        detokenizer = Detokenizer(tokens, set(), decoder)

        def ours(ids: list[int], detokenizer: Detokenizer = detokenizer) -> None:
            stream = detokenizer.stream()
            for id_ in ids:
                stream.add([id_])
            stream.finish()

        def theirs(ids: list[int], made: Tokenizer = made) -> None:
            stream = DecodeStream(skip_special_tokens=True)
            for id_ in ids:
                stream.step(made, id_)

        text = made.encode("the quick brown fox jumps over the dog " * 1000).ids[:TOKENS]
        # 0x80 goes on a character that nothing begins: "Ģ" is its name in byte-level vocabularies.
        lone = [id_ for id_, token in tokens.items() if token in ("<0x80>", "Ģ")][:1] * BYTES
        line = f"{kind}: {len(text)} tokens {best_s(ours, text) * 1000:.1f} ms"
        line += f" (DecodeStream {best_s(theirs, text) * 1000:.1f})"
        if lone:
            line += f", {BYTES} lone bytes {best_s(ours, lone) * 1000:.1f} ms"
            line += f" (DecodeStream {best_s(theirs, lone) * 1000:.1f})"
        rng = random.Random(0)  # noqa: S311
        mixed = [rng.randrange(len(tokens)) for _ in range(TOKENS)]
        print(f"{line}, {TOKENS} random ids {best_s(ours, mixed) * 1000:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
