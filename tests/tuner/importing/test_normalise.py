"""Options and answers in all spellings that are certain; what is not is refused."""

from __future__ import annotations

import pytest

from tests.tuner.importing.samples import PROMPT
from tuner.importing.normalise import answer_of, answer_to_prompt, option_at, options_of, split_prompt
from tuner.importing.rows import UnreadableError

pytestmark = pytest.mark.quick

COLORS = ("Red", "Blue", "light blue")


@pytest.mark.parametrize(
    "written",
    [
        ["Red", "Blue", "light blue"],
        ["A. Red", "B. Blue", "C. light blue"],
        ["A) Red", "B) Blue", "C) light blue"],
        ["(A) Red", "(B) Blue", "(C) light blue"],
        ["A: Red ", " B: Blue", "C:light blue"],
        "A. Red\nB. Blue\n\nC. light blue\n",
    ],
)
def test_letters_in_front_of_options_are_no_part_of_them(written):
    assert options_of(written) == COLORS


@pytest.mark.parametrize(
    "written", [["A. Red", "Blue"], ["B. Red", "A. Blue"], ["A. Red", "C. Blue"], ["U.S.", "E.U."]]
)
def test_letters_that_are_no_list_stay(written):
    assert options_of(written) == tuple(written)


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (None, "the options are None"),
        ([1, 2], "the options are"),
        (["Red"], "there are 1 options"),
        ([str(number) for number in range(27)], "there are 27 options"),
        (["A. Red", "B. "], "an option is empty"),
        (["A. Red", "B. Red"], "option 'Red' occurs more than once"),
    ],
)
def test_options_that_are_none_are_refused(written, reason):
    with pytest.raises(UnreadableError, match=reason):
        options_of(written)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("B", "Blue"),
        ("b", "Blue"),
        ("B.", "Blue"),
        ("(B)", "Blue"),
        ("B)", "Blue"),
        ("Blue", "Blue"),
        ("blue.", "Blue"),
        ("  Light   blue ", "light blue"),
        ("B. Blue.", "Blue"),
        ("(C) light blue", "light blue"),
    ],
)
def test_an_answer_is_a_letter_a_text_or_both(written, expected):
    assert answer_of(written, COLORS) == expected


@pytest.mark.parametrize(
    ("written", "options", "reason"),
    [
        ("D", COLORS, "is none of the options"),
        ("green", COLORS, "is none of the options"),
        ("B. Red", COLORS, "is none of the options"),
        ("I think it is B", COLORS, "is none of the options"),
        ("Red or Blue", COLORS, "is none of the options"),
        ("a", ("A.", "a"), "fits several options"),
        ("A", ("B", "A"), "fits several options"),
        ("red", ("Red", "RED"), "fits several options"),
        ("1", ("one", "two"), "is none of the options"),
        (1, COLORS, "the answer is 1"),
        ("", COLORS, "the answer is ''"),
        (None, COLORS, "the answer is missing"),
    ],
)
def test_an_answer_in_doubt_is_refused(written, options, reason):
    with pytest.raises(UnreadableError, match=reason):
        answer_of(written, options)


def test_a_text_that_is_the_letter_of_itself_is_certain():
    assert answer_of("A", ("A", "B")) == "A"
    assert answer_of("2", ("1", "2", "3")) == "2"


def test_free_answers_stay_as_they_are():
    assert answer_of(" She cooks. ", None) == "She cooks."
    assert answer_of("X", None) == "X"
    with pytest.raises(UnreadableError, match="the answer is 'B', but there are no options"):
        answer_to_prompt("B", None)


@pytest.mark.parametrize("number", [-1, 3, True, "0", 1.0, None])
def test_a_number_of_no_option_is_refused(number):
    assert option_at(2, COLORS) == "light blue"
    with pytest.raises(UnreadableError, match="allowed is 0 to 2 here"):
        option_at(number, COLORS)


@pytest.mark.parametrize(
    "prompt",
    [
        "What?\nA. Red\nB. Blue",
        "What?\nOptions:\nA. Red\nB. Blue\nAnswer with the option's letter from the given choices directly.",
        "Question: What?\n(A) Red\n(B) Blue\nOnly give the best option.\nBest option: (",
        PROMPT.format("What?\nA. Red\nB. Blue"),
        "What?\nA. Red\nB. Blue\nPlease respond with only the letter of the correct answer.",
    ],
)
def test_instructions_are_no_part_of_the_question(prompt):
    assert split_prompt(prompt) == ("What?", ("Red", "Blue"))


def test_only_the_last_list_holds_the_options():
    assert split_prompt("Two views:\nA. left\nB. right\nWhich?\nA. A\nB. B") == (
        "Two views:\nA. left\nB. right\nWhich?",
        ("A", "B"),
    )


def test_a_prompt_without_options_is_a_free_question():
    assert split_prompt("\nWhat?\n\nAnswer in one word. ") == ("What?\nAnswer in one word.", None)


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ("What?\nA. Red\nB. Blue\nwith stripes", "'with stripes' follows the options"),
        ("A. Red\nB. Blue", "no question in front"),
    ],
)
def test_a_prompt_in_doubt_is_refused(prompt, reason):
    with pytest.raises(UnreadableError, match=reason):
        split_prompt(prompt)
