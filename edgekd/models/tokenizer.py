"""A tokenizer of a student's own, where the teacher shows none: byte-pair encoding of bytes, trained on the corpus.

Of bytes, since it then knows every text, and since the trainer numbers anything else in another order each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from edgekd.errors import TargetError
from edgekd.spec.blackbox import LEAST_VOCABULARY

SPECIALS = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}


def train(texts: Sequence[str], size: int) -> Any:
    """A fast tokenizer of at most ``size`` tokens, blind to capitals and accents; the same for the same texts.

    Raises ``TargetError`` for a size below that of its alphabet.
    """
    if size < LEAST_VOCABULARY:
        least = f"the {LEAST_VOCABULARY} tokens that any tokenizer of its own has"
        raise TargetError(f"student.vocabulary={size} is below {least}")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    alphabet, specials = pre_tokenizers.ByteLevel.alphabet(), list(SPECIALS.values())
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=inputs, add_prefix_space=True, padding_side="right", **SPECIALS
    )
