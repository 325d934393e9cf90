from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import packing
from pipeline.answering import matches, normalise
from pipeline.errors import UnsupportedError
from pipeline.methods import AdaTP, FastV, FewerFrames, RandomTokens
from pipeline.question import Question
from pipeline.scores import FiniteCheck
from tests.pipeline import reference

METHODS = [
    None,
    AdaTP(p=0.6),
    FastV(keep_ratio=0.3),
    RandomTokens(keep_ratio=0.3),
    FewerFrames(keep_ratio=0.4),
]


def name(method):
    return method.name if method else "unpruned"


def kept_tokens(runtime, clip, question, method):
    """What a pruned single pass keeps (random draws included)."""
    if method is None:
        return None
    return [tokens.tolist() for tokens in runtime.one_pass(clip, question, method).tokens(0)]


def from_scratch(eager, clip, question, method, ids, *, ended=False):
    """Log-probability of `ids` as the answer, every token with a whole prefill of its own; `ended`: and of
    nothing following.
    """
    forced = kept_tokens(eager, clip, question, method)
    total = 0.0
    for place, token in enumerate([*ids, *([eager.family.tokenizer.eos_token_id] if ended else [])]):
        out = reference.prefill(eager, clip, question, method, following=ids[:place], forced=forced)
        total += float(out.logits.log_softmax(-1)[token])
    return total


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_options_of_several_tokens_are_scored_by_teacher_forcing(request, eager, which, clip, method):
    runtime = request.getfixturevalue(which)
    question = Question(
        "q", "what color is the ring?", ("red", "dark blue", "top left of the scene", "dark red")
    )
    answer = runtime.answer(clip, question, method)
    tokens = [list(runtime.family.answer_ids(option)) for option in question.options]
    expected = [from_scratch(eager, clip, question, method, ids, ended=True) for ids in tokens]
    assert answer.option_logprobs == pytest.approx(expected, abs=5e-5)
    assert answer.option == max(range(4), key=expected.__getitem__)
    assert answer.text == question.options[answer.option]
    assert answer.logprob == answer.option_logprobs[answer.option]


@pytest.mark.parametrize("options", [("red", "blue"), ("dark red", "dark blue")], ids=["1", "2"])
def test_options_of_one_length_are_compared_without_their_end(eager, clip, options):
    question = Question("q", "what color is the ring?", options)
    tokens = [list(eager.family.answer_ids(option)) for option in options]
    expected = [from_scratch(eager, clip, question, None, ids) for ids in tokens]
    assert eager.answer(clip, question, None).option_logprobs == pytest.approx(expected, abs=5e-5)


RED, SQUARE, BLUE, DONE, STOP = range(5)
AFTER = {RED: {SQUARE: 0.7, DONE: 0.2, STOP: 0.1}, SQUARE: {DONE: 1.0}, BLUE: {DONE: 1.0}}
FIRST = {RED: 0.9, BLUE: 0.1}


class ToldPack(packing.Pack):
    """After a prompt and after each token, the next one has the probabilities of FIRST and AFTER."""

    def __init__(self, ends, after=AFTER):
        self._after = after
        self._family = SimpleNamespace(end_ids=ends)
        self._sequences = [
            SimpleNamespace(part=SimpleNamespace(cache={}), next_position=0, finite=FiniteCheck("q"))
        ]
        self._next = self._distribution(self.table([FIRST]))

    @staticmethod
    def table(rows):
        return torch.tensor([[row.get(token, 0.0) for token in range(5)] for row in rows]).log()

    def _follow(self, ids, positions, parts):
        assert sum(length for part in parts for length in part.pieces) == len(ids) == len(positions)
        return self.table([self._after[token] for token in ids])

    def _distribution(self, hidden):
        return packing._Distribution(hidden, hidden, hidden)


@pytest.mark.quick
def test_an_option_that_goes_on_where_another_ends_can_win():
    scores = ToldPack((DONE, STOP)).score({0: [(RED,), (RED, SQUARE), (BLUE,)]})[0]
    # Whichever token the answer ends with. Without an end they were 0.9, 0.63 and 0.1: "red" would win.
    assert np.exp(scores) == pytest.approx([0.9 * 0.3, 0.9 * 0.7, 0.1])


@pytest.mark.quick
@settings(derandomize=True, deadline=None, database=None)
@given(*[st.floats(0.01, 0.99)] * 3)
def test_whatever_the_model_says_decides_between_an_option_and_one_that_goes_on(stops, goes_on, stops_later):
    """That is, neither of the two wins or loses by its length in whatever model."""
    rest = 1 - stops
    after = AFTER | {RED: {DONE: stops, SQUARE: rest * goes_on}, SQUARE: {DONE: stops_later}}
    texts = {0: [(RED,), (RED, SQUARE)]}
    short, long = ToldPack((DONE,), after).score(texts)[0]
    expected = 0.9 * stops, 0.9 * rest * goes_on * stops_later
    assert np.exp([short, long]) == pytest.approx(expected, rel=1e-4)
    short, long = ToldPack((DONE,), after).score(texts, mean=True)[0]
    assert np.exp([short, long]) == pytest.approx((expected[0] ** (1 / 2), expected[1] ** (1 / 3)), rel=1e-4)


@pytest.mark.quick
def test_options_of_one_length_may_be_told_by_their_mean_too():
    after = AFTER | {BLUE: {SQUARE: 0.5}}
    scores = ToldPack((DONE,), after).score({0: [(RED, SQUARE), (BLUE, SQUARE)]}, mean=True)[0]
    assert np.exp(scores) == pytest.approx([(0.9 * 0.7) ** 0.5, (0.1 * 0.5) ** 0.5])


def test_the_scoring_per_token_is_the_mean_and_may_choose_otherwise(runtime, clip, monkeypatch):
    question = Question("q", "what color is the ring?", ("red", "top left of the scene", "dark red"))
    by_sum = runtime.answer(clip, question, AdaTP(p=0.6))
    monkeypatch.setattr(runtime, "scoring", "words_per_token")
    by_mean = runtime.answer(clip, question, AdaTP(p=0.6))
    tokens = [len(runtime.family.answer_ids(option)) + 1 for option in question.options]
    expected = [total / count for total, count in zip(by_sum.option_logprobs, tokens, strict=True)]
    assert by_mean.option_logprobs == pytest.approx(expected)
    assert by_mean.option == max(range(3), key=expected.__getitem__)
    asked = runtime.fingerprint(None, runtime.layout(clip, question))
    monkeypatch.undo()
    assert asked != runtime.fingerprint(None, runtime.layout(clip, question))


@pytest.mark.quick
def test_options_cannot_end_in_a_model_that_knows_no_end():
    with pytest.raises(UnsupportedError, match="names no token that ends an answer"):
        ToldPack(()).score({0: [(RED,), (RED, SQUARE)]})
    assert np.exp(ToldPack(()).score({0: [(RED,), (BLUE,)]})[0]) == pytest.approx([0.9, 0.1])


@pytest.mark.parametrize("method", [AdaTP(p=0.6), FewerFrames(keep_ratio=0.4)], ids=name)
def test_options_scored_together_or_one_after_another_are_the_same(runtime, clip, method, monkeypatch):
    question = Question(
        "q", "what color is the ring?", ("red", "dark blue", "top left of the scene", "dark red")
    )
    together = runtime.answer(clip, question, method)
    # The way FlashAttention has to go.
    monkeypatch.setattr(packing._ATTENTION["sdpa"], "_splits", True)
    assert runtime.answer(clip, question, method).option_logprobs == pytest.approx(
        together.option_logprobs, abs=5e-5
    )


def test_single_token_options_need_one_forward(runtime, clip, question):
    calls = []
    hook = runtime.family.layers[0].register_forward_hook(lambda *_: calls.append(1))
    try:
        for scoring, options in (("words", ("red", "blue")), ("letter", ("dark red", "light blue"))):
            runtime.scoring = scoring
            for method in (None, AdaTP(p=0.5)):
                one = Question("q", "what color is the ring?", options)
                runtime.answer(clip, one, method)  # fills the prefix
                calls.clear()
                assert runtime.answer(clip, one, method).option in (0, 1)
                assert calls == [1]
    finally:
        hook.remove()
        runtime.scoring = "words"


@pytest.mark.parametrize("which", ["runtime", "eager"])
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_free_answer_is_decoded_greedily_on_the_pruned_cache(request, eager, which, clip, method):
    runtime = request.getfixturevalue(which)
    question = Question("q", "what color is the ring?")
    answer = runtime.answer(clip, question, method)
    forced = kept_tokens(eager, clip, question, method)
    said: list[int] = []
    while len(said) < runtime.max_new_tokens:
        out = reference.prefill(eager, clip, question, method, following=said, forced=forced)
        token = int(out.logits.argmax())
        if token in runtime.family.end_ids:
            break
        said.append(token)
    assert answer.text == runtime.family.tokenizer.decode(said, skip_special_tokens=True).strip()
    assert (answer.option, answer.option_logprobs) == (None, None)
    written = list(runtime.family.answer_ids(answer.text))
    assert answer.logprob == pytest.approx(from_scratch(eager, clip, question, method, written), abs=2e-4)


@pytest.mark.parametrize("method", METHODS, ids=name)
def test_a_reference_is_teacher_forced_and_does_not_change_the_answer(runtime, eager, clip, method):
    question = Question("q", "what color is the ring?")
    free = runtime.answer(clip, question, method)
    told = runtime.answer(clip, question, method, reference="dark red")
    assert told.text == free.text
    ids = list(runtime.family.answer_ids("dark red"))
    assert told.logprob == pytest.approx(from_scratch(eager, clip, question, method, ids), abs=5e-5)
    # The baseline's own words, teacher-forced, have the probability it gave them when it said them.
    again = runtime.answer(clip, question, method, reference=free.text)
    assert again.logprob == pytest.approx(free.logprob, abs=5e-5)
    assert runtime.answer(clip, question, method, reference="").logprob is None


def test_scoring_leaves_the_cache_as_it_was(runtime, clip):
    question = Question("q", "what color is the ring?", ("dark blue", "top left of the scene"))
    first = runtime.answer(clip, question, AdaTP(p=0.5))
    assert runtime.answer(clip, question, AdaTP(p=0.5)).option_logprobs == first.option_logprobs


@pytest.mark.quick
@pytest.mark.parametrize(
    ("text", "same", "answer"),
    [
        ("The red ring.", True, "red ring"),
        ("A  Ball", True, "ball!"),
        ("red", False, "dark red"),
        ("theatre", False, "atre"),
        ("", False, "the"),
        ("", False, "A"),
        ("3.5", False, "35"),
        ("3.5.", True, "3.5"),
        ("1,000", True, "1000"),
        ("1,5", False, "15"),
        ("-5", False, "5"),
        ("\N{MINUS SIGN}5", True, "-5"),
        ("1:30", False, "130"),
        ("1990-1995", False, "19901995"),
        ("C++", False, "C"),
        ("C#", False, "C"),
        ("vitamin A", False, "vitamin"),
        ("vitamin A tablets", False, "vitamin tablets"),
        ("on the table", True, "on table"),
        ("THE RED RING", True, "red ring"),
        ("red-green", True, "redgreen"),
        ("it\N{RIGHT SINGLE QUOTATION MARK}s", True, "it's"),
        ("red\N{IDEOGRAPHIC FULL STOP}", True, "red"),
        ("\N{INVERTED QUESTION MARK}rojo?", True, "rojo"),
        ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", True, "cafe\N{COMBINING ACUTE ACCENT}"),
        ("STRASSE", True, "stra\N{LATIN SMALL LETTER SHARP S}e"),
        ("\u7ea2\u8272\uff01", True, "\u7ea2\u8272"),
        ("\uff13\uff0e\uff15", True, "3.5"),
        ("\u0623\u062d\u0645\u0631\u061f", True, "\u0623\u062d\u0645\u0631"),
        ("5%", False, "5"),
        (".5", False, "5"),
        ("-.5", False, ".5"),
        ("1/2", False, "12"),
        ("1.000,5", False, "1.0005"),
        ("(-5)", True, "-5"),
        ("?", False, "!"),
        ("?", False, ""),
        ("?", True, "\uff1f"),
        ("", True, ""),
        ("\u0967\u0968", True, "12"),
        ("\u0663", True, "3"),
        ("\u0663", False, "\u0664"),
        ("\u7537", False, "\u5973"),
        ("\u306f", False, "\u304c"),
        ("\u0939\u093f\u0928\u094d\u0926\u0940", False, "\u0939\u093f\u0928\u094d\u0926"),
        ("\u0439", False, "\u0438"),
        ("\u300c\u8d64\u300d", True, "\u8d64"),
        ("\u00abrouge\u00bb", True, "rouge"),
        ("\u03a3\u0391\u03a3", True, "\u03c3\u03b1\u03c2"),
        ("\u1111\u1161\u11ab", True, "\ud310"),
        ("\ufb01re", True, "fire"),
        ("\ufeffred", True, "red"),
        ("red\u200b", True, "red"),
        ("soft\u00adware", True, "software"),
        ("\u200f\u0623\u062d\u0645\u0631\u200e", True, "\u0623\u062d\u0645\u0631"),
        ("\u2764\ufe0f", True, "\u2764"),
        ("red\u00a0ball", True, "red ball"),
        ("\u0932\u093e\u0932\u0964", True, "\u0932\u093e\u0932"),
    ],
)
def test_free_answers_match_after_normalisation(text, same, answer):
    assert matches(text, answer) is same


@pytest.mark.quick
def test_normalised_text_is_bare():
    assert normalise("  The Red,   ring: a ball. ") == "red ring ball"
