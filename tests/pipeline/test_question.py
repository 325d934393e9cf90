import pytest

from pipeline.question import Question, option_texts, prompt_text

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


def test_an_unknown_scoring_is_refused():
    with pytest.raises(ValueError, match="'letter' or 'words', but got 'digits'"):
        prompt_text(QUESTION, "digits")
