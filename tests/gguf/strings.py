"""Texts that tell tokenizers apart, and small tokenizers of three kinds."""

import string

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from quantlab.gguf.vocabulary import BYTE_TOKENS, LLAMA3_PATTERN, SPACE, splits

STRINGS = (
    "", " ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", " \n ", "\t\t\n  \n", "a", " a", "a ",
    "  a  ", "Once upon a time", " Once upon a time ", "Once  upon   a    time", "Hello, world!",
    "hello world\n", "\nhello", "I'm, you're, he'll, we've, it's, don't, I'd", "I'M YOU'RE HE'LL",
    "isn\u2019t \u201cquoted\u201d \u2014 dash\u2026", "UPPER lower MiXeD CamelCase", "0", "12",
    "123", "1234", "12345678901234567890", "3.14159, -1e-5 and 1,000,000", "a1b2c3",
    "x = [i**2 for i in range(10)]\n\treturn x\n", "if (a != b) { c += d; }  // comment",
    "<div class=\"x\">&amp;</div>", "https://example.org/a?b=c&d=%20#e",
    "snake_case and kebab-case", "\u4f60\u597d\uff0c\u4e16\u754c",
    "\u3053\u3093\u306b\u3061\u306f\u4e16\u754c\u3002", "\uc548\ub155\ud558\uc138\uc694",
    "\u041f\u0440\u0438\u0432\u0435\u0442, \u043c\u0438\u0440!",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645",
    "\u05e9\u05dc\u05d5\u05dd", "na\xefve caf\xe9 cafe\u0301", "\xdf\xfc\xf6\xe4 \xc5ngstr\xf6m",
    "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467 family \U0001f1e9\U0001f1ea",
    "\u2764\ufe0f", "\U0001d54f\U0001d550", "\xa0nbsp\u2003em", "\u200bzero\ufeff", "!!!???...",
    "((()))[[]]{{}}", "@#$%^&*~`|\\", "aaaaaaaaaaaaaaaa", "the the the theatre thesis",
    "mixed \u4e16\u754c 42 \U0001f680 text\tend  ", "\u0660\u0661\u0662 \xbd \u2167 \xb2",
    "line one\r\nline two\r\n\r\nline four",
)  # fmt: skip
CORPUS = [text for text in STRINGS for _ in range(3)] + [
    'Once upon a time there was a little girl named Lily. She said, "Let\'s play!" ' * 3,
    "Tom and his mom went to the park. They saw 12 ducks, 3 dogs and a cat.\n\n" * 3,
    "def add(a, b):\n    return a + b\n" * 3,
    " ".join(string.ascii_letters),
]


def gpt2_tokenizer(size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, size)


def llama3_tokenizer(size: int = 400) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(LLAMA3_PATTERN), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer, size)


def trained(tokenizer: Tokenizer, size: int) -> Tokenizer:
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_tokenizer(prefix: bool = True) -> Tokenizer:
    """Build what transformers makes of SentencePiece's BPE: every cut of a token is a merge."""
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    learner = Tokenizer(models.BPE())
    learner.train_from_iterator([text.replace(" ", SPACE) for text in CORPUS], trainer)
    learned = sorted(learner.get_vocab(), key=learner.get_vocab().get)
    tokens = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, *learned]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    merges = sorted(splits(tokens), key=lambda pair: vocabulary["".join(pair)])
    model = models.BPE(
        vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(model)
    steps = [normalizers.Prepend(SPACE)] if prefix else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    undo = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    last = [decoders.Strip(" ", 1, 0)] if prefix else []
    tokenizer.decoder = decoders.Sequence([*undo, *last])
    tokenizer.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in tokens[:3]]
    )
    return tokenizer
