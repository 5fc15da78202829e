"""Byte-level BPE tokenizers of the embedded world's corpus."""

from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from dfolora.data import Kind
from dfolora.mini.world import corpus

VOCABULARY = 1800
"""Tokens in all. Enough that every label word of the tasks is one of them."""
DOCUMENTS = 50_000


def train_tokenizer(kind: Kind) -> Any:
    """A tokenizer with RoBERTa's conventions for ``masked`` models, GPT-2's for ``causal`` ones."""
    masked = kind == "masked"
    special = ["<s>", "<pad>", "</s>", "<unk>"] if masked else ["<|endoftext|>"]
    # As RoBERTa's, the mask swallows the space before it.
    mask = [AddedToken("<mask>", lstrip=True, special=True)] if masked else []
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=[*special, *mask],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(DOCUMENTS), trainer)
    if not masked:
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=mask[0],
    )
