"""Stage 4: a tokenizer made from the captions, and an (as yet untrained) text encoder.

The first version of the model is trained on the empty prompt alone. The parts that text will need
have their places and shapes, so that training them later changes no other file.

    python training/text.py --work training/work
"""

import argparse
import json
from pathlib import Path

import torch
from collect import read_manifest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

VOCABULARY = 2048
LENGTH = 32
WIDTH = 192


def make_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """CLIP's byte-pair scheme with a vocabulary of our own captions."""
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
    learnt = json.loads(tokenizer.to_str())["model"]
    tokens = list(learnt["vocab"])
    tokens += [f"{letter}</w>" for letter in pre_tokenizers.ByteLevel.alphabet() if f"{letter}</w>" not in tokens]
    tokens = tokens[: VOCABULARY - len(specials)] + specials
    known = set(tokens)
    merges = [tuple(merge) for merge in learnt["merges"] if "".join(merge) in known]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path("training/work"))
    arguments = parser.parse_args()
    rows = read_manifest(arguments.work)
    tokenizer = make_tokenizer([row["caption"] for row in rows if not row["held_out"]])
    torch.manual_seed(0)
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            projection_dim=WIDTH,
            num_hidden_layers=4,
            num_attention_heads=6,
            max_position_embeddings=LENGTH,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    tokenizer.save_pretrained(arguments.work / "tokenizer")
    encoder.save_pretrained(arguments.work / "text_encoder")
    print(f"{len(tokenizer)} tokens; for example {tokenizer.tokenize('a red boat on the lake')}")


if __name__ == "__main__":
    main()
