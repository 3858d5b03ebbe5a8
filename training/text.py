"""Stage 4: train a tokenizer on the captions, with CLIP's byte-pair encoding.

python -m training.text --work training/work
"""

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from training.crop_store import load_words

VOCABULARY = 4096
LENGTH = 32


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A byte-pair tokenizer as CLIP's, with a vocabulary trained on the captions."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(specials) - 256,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
    )
    tokenizer.train_from_iterator(captions, trainer)
    trained = json.loads(tokenizer.to_str())["model"]
    tokens = list(trained["vocab"])
    tokens += [f"{letter}</w>" for letter in pre_tokenizers.ByteLevel.alphabet() if f"{letter}</w>" not in tokens]
    tokens = tokens[: VOCABULARY - len(specials)] + specials
    known = set(tokens)
    merges = [tuple(merge) for merge in trained["merges"] if "".join(merge) in known]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    arguments = parser.parse_args()
    tokenizer = make_tokenizer([words["caption"] for words in load_words(arguments.work, "train")])
    tokenizer.save_pretrained(arguments.work / "tokenizer")
    print(f"{len(tokenizer)} tokens; for example {tokenizer.tokenize('a watercolor painting of a boat on the lake')}")


if __name__ == "__main__":
    main()
