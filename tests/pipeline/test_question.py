import pytest

from pipeline.question import Question, option_texts, prompt_text, without_letters

pytestmark = pytest.mark.quick

QUESTION = Question("q", "What color is the ring?", ("red", "blue"))


def test_words_show_the_stem_alone():
    assert prompt_text(QUESTION, "words") == "What color is the ring?"
    assert option_texts(QUESTION, "words") == ("red", "blue")


def test_letters_list_the_options_as_lmms_eval_does():
    assert prompt_text(QUESTION, "letter") == (
        "What color is the ring?\nA. red\nB. blue\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert option_texts(QUESTION, "letter") == ("A", "B")


def test_a_free_question_is_its_stem_either_way():
    free = Question("q", "What color is the ring?")
    assert prompt_text(free, "letter") == prompt_text(free, "words") == free.text
    with pytest.raises(ValueError, match="has no options"):
        option_texts(free, "words")


@pytest.mark.parametrize("options", [(), ("one",), tuple("abcdefghijklmnopqrstuvwxyzä")])
def test_too_few_or_too_many_options_are_refused(options):
    with pytest.raises(ValueError, match="has 2 to 26 options"):
        Question("q", "?", options)


def test_a_text_is_not_taken_for_a_list_of_its_letters():
    with pytest.raises(ValueError, match="options is a tuple of texts, but 'q' has the text 'red'"):
        Question("q", "?", "red")


@pytest.mark.parametrize(
    "lettered",
    [
        ("A. red", "B. blue"),
        ("A.  red", "B: blue"),
        ("(A) red", "(B) blue"),
        ("(A)red", "(B)blue"),
        ("A) red", "B) blue"),
        ("[A] red", "[B] blue"),
        ("a. red", "b. blue"),
        ("\uff08A\uff09red", "\uff08B\uff09blue"),
        ("A\u3001red", "\uff22\uff0eblue"),
    ],
)
def test_letters_that_options_have_already_are_not_written_twice(lettered):
    question = Question("q", QUESTION.text, lettered)
    for scoring in ("letter", "words", "words_per_token"):
        assert prompt_text(question, scoring) == prompt_text(QUESTION, scoring)
        assert option_texts(question, scoring) == option_texts(QUESTION, scoring)


@pytest.mark.parametrize(
    "options",
    [
        ("A. red", "blue"),
        ("B. red", "A. blue"),
        ("A.D.", "B.C."),
        ("A red", "B blue"),
        ("A", "B"),
        ("A.", "B."),
        ("A) ", "B) "),
        ("A. red", "B. blue", "both"),
        ("AA. red", "BB. blue"),
    ],
)
def test_what_is_no_letter_of_an_option_stays(options):
    assert without_letters(options) == options


@pytest.mark.parametrize(
    ("text", "options"), [(None, None), (("a",), None), ("?", (1, 2)), ("?", ("a", None))]
)
def test_what_is_no_text_is_refused(text, options):
    with pytest.raises(ValueError, match="A question and its options are texts, but got"):
        Question("q", text, options)


def test_an_unknown_scoring_is_refused():
    with pytest.raises(ValueError, match="one of letter, words, words_per_token, but got 'digits'"):
        prompt_text(QUESTION, "digits")
