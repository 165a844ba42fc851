"""Perplexity, bits per byte, KL, flips and their error bars, against plain loops."""

import math

import pytest
import torch

import quantlab as ql
from quantlab.data import read_stories, token_windows
from quantlab.models.loading import EMBEDDED


@pytest.fixture(scope="module")
def storyteller():
    return ql.load("storyteller")


@pytest.fixture(scope="module")
def tokens(storyteller):
    return ql.test_set(storyteller[1], samples=12, length=64)


@torch.no_grad()
def test_perplexity_is_the_mean_loss_token_by_token(storyteller, tokens):
    model, _ = storyteller
    losses = []
    for window in tokens[:2]:
        for position in range(1, len(window)):
            logits = model(window[None, :position])[0, -1].double()
            losses.append(-torch.log_softmax(logits, -1)[window[position]].item())
    expected = math.exp(sum(losses) / len(losses))
    # One prefix at a time sums attention in another order: float32 rounding.
    assert ql.perplexity(model, tokens[:2]) == pytest.approx(expected, rel=1e-5)


def test_bits_per_byte_counts_the_bytes_of_the_predicted_text(storyteller, tokens):
    model, tokenizer = storyteller
    result = ql.evaluate(model, tokens, tokenizer=tokenizer)
    text = sum(len(tokenizer.decode(window[1:])) for window in tokens)  # the stories are ASCII
    assert result.bits_per_byte == pytest.approx(result.nats * result.tokens / math.log(2) / text)


def test_a_model_does_not_differ_from_itself(storyteller, tokens):
    model, _ = storyteller
    result = ql.evaluate(model, tokens, reference=model)
    assert (result.ratio, result.ratio_se, result.kl, result.flips) == (1.0, 0.0, 0.0, 0.0)


def test_kl_is_positive_and_grows_as_bits_fall(storyteller, tokens):
    reference = ql.log_probabilities(storyteller[0], tokens)
    found = []
    for bits in (8, 4, 3, 2):
        model, _ = ql.load("storyteller")
        ql.quantize_(model, ql.RTN(), ql.Scheme(bits=bits, group_size=64))
        found.append(ql.evaluate(model, tokens, reference=reference))
    assert [r.kl for r in found] == sorted(r.kl for r in found)
    assert found[0].kl > 0
    assert [r.flips for r in found] == sorted(r.flips for r in found)


def test_the_error_bar_of_perplexity_agrees_with_the_textbook_on_many_windows(storyteller, tokens):
    result = ql.evaluate(storyteller[0], tokens)
    windows = torch.tensor([math.log(ql.perplexity(storyteller[0], w[None])) for w in tokens])
    textbook = result.perplexity * windows.std().item() / math.sqrt(len(windows))
    # Bootstrap resamples with variance (n-1)/n, and exp is not linear: a tenth is expected.
    assert result.perplexity_se == pytest.approx(textbook, rel=0.15)


def test_kl_is_from_the_reference_to_the_model_and_flips_count_top_tokens(storyteller, tokens):
    model, _ = ql.load("storyteller")
    ql.quantize_(model, ql.RTN(), ql.Scheme(bits=2, group_size=64))
    result = ql.evaluate(model, tokens, reference=storyteller[0])
    mine, floats = (ql.log_probabilities(m, tokens) for m in (model, storyteller[0]))
    p, q = (torch.distributions.Categorical(logits=x.double()) for x in (floats, mine))
    kl = torch.distributions.kl_divergence
    there, back = kl(p, q).mean().item(), kl(q, p).mean().item()
    # Ours sums 2,048 float32 terms a token.
    assert result.kl == pytest.approx(there, rel=1e-4)
    assert result.kl != pytest.approx(back, rel=1e-3)
    assert result.flips == (floats.argmax(-1) != mine.argmax(-1)).double().mean().item()


def test_the_ratio_of_perplexities_is_paired_and_so_better_known(storyteller, tokens):
    model, _ = ql.load("storyteller")
    ql.quantize_(model, ql.RTN(), ql.Scheme(bits=2, group_size=64))
    result = ql.evaluate(model, tokens, reference=storyteller[0])
    float_perplexity = ql.perplexity(storyteller[0], tokens)
    assert result.ratio == pytest.approx(result.perplexity / float_perplexity)
    assert 0 < result.ratio_se / result.ratio < result.perplexity_se / result.perplexity


def test_a_reference_of_other_windows_is_refused(storyteller, tokens):
    reference = ql.log_probabilities(storyteller[0], tokens[:3])
    with pytest.raises(ValueError, match="same windows"):
        ql.evaluate(storyteller[0], tokens, reference=reference)


def test_a_broken_model_is_refused(tokens):
    model, _ = ql.load("storyteller")
    with torch.no_grad():
        model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        ql.perplexity(model, tokens)


def test_calibration_and_evaluation_stories_are_many_and_disjoint():
    texts = [read_stories(EMBEDDED / f"{name}.txt") for name in ("calibration", "evaluation")]
    for stories in texts:
        assert sum(len(story.encode()) for story in stories) >= 60_000
        assert len(set(stories)) == len(stories) >= 80
    sentences = [
        {s for story in stories for s in story.replace("\n", " ").split(". ") if len(s) > 60}
        for stories in texts
    ]
    assert not sentences[0] & sentences[1]


def test_windows_begin_with_the_begin_token_of_the_first_story(storyteller):
    windows = ql.calibration_set(storyteller[1], samples=2, length=32)
    assert windows[0, 0] == 0
    assert windows.shape == (2, 32)


@pytest.mark.parametrize(
    ("samples", "length", "match"),
    [(10_000, 256, "at most"), (0, 256, ">= 1 window"), (4, 1, ">= 2 tokens")],
)
def test_windows_that_cannot_be_cut_are_refused(storyteller, samples, length, match):
    with pytest.raises(ValueError, match=match):
        token_windows(storyteller[1], ["a short text"], samples, length)


def test_text_files_that_cannot_be_read_are_named(tmp_path, storyteller):
    with pytest.raises(ValueError, match="cannot read"):
        ql.test_set(storyteller[1], path=tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n<|endoftext|>\n")
    with pytest.raises(ValueError, match="holds no text"):
        ql.test_set(storyteller[1], path=tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(ValueError, match="not UTF-8 text \\(byte 3\\)"):
        ql.test_set(storyteller[1], path=tmp_path / "latin.txt")
