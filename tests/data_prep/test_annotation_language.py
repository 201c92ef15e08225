import subprocess
import sys
import time
from itertools import cycle, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from language_corpus import SENTENCES
from pydantic import ValidationError

from data_prep.annotation.identify import Reading, read
from data_prep.annotation.prose import prose
from data_prep.annotation.scripts import weigh
from data_prep.filters import LanguageFilter
from data_prep.sources.problems import RunningSumSource

FORMULAS = (
    " $x^2 + y_1 = 3$ ",
    "\\[\\int_0^1 f(x)\\,dx = \\frac{1}{2}\\]",
    "\n```python\nfor item in items:\n    total += item  # the sum of all items\n```\n",
    "\\begin{align} a &= b \\text{ where } \\\\ c &= \\begin{pmatrix} one \\\\ two \\end{pmatrix} \\end{align}",
    "`max_length = 10`",
    " f(x)=3x+1, so \\boxed{12} ",
)


def text(*parts: str) -> str:
    """Sentences with a formula after each."""
    return " ".join(part + formula for part, formula in zip(parts, cycle(FORMULAS), strict=False))


@pytest.mark.parametrize("language", SENTENCES)
def test_a_language_is_known_by_three_sentences_among_formulas(language: str) -> None:
    found = read(text(*SENTENCES[language]), text(*SENTENCES[language][::-1]))
    assert found == Reading(language, language, 0.0)


@pytest.mark.parametrize("home", ["en", "de", "ru", "zh", "ja", "ko", "ar"])
def test_a_sentence_of_another_language_is_counted(home: str) -> None:
    many = list(islice(cycle(SENTENCES[home]), 30))
    filter_ = LanguageFilter()
    for other in SENTENCES.keys() - {home}:
        planted = [*many[:9], SENTENCES[other][0], *many[9:20], SENTENCES[other][1], *many[20:]]
        found = read(SENTENCES[home][0], text(*planted))
        letters = [sum(weigh(prose(one)).values()) for one in (*SENTENCES[other][:2], *many)]
        assert found.mixed == pytest.approx(sum(letters[:2]) / sum(letters), abs=0.03), other
        assert found.language == home
        planted += SENTENCES[other]
        row = {"prompt": SENTENCES[home][0], "response": text(*planted)}
        assert filter_.reason(row) == "mixes languages", other


def test_a_response_in_another_language_than_the_prompt() -> None:
    row = {"prompt": SENTENCES["en"][0], "response": text(*SENTENCES["zh"])}
    assert LanguageFilter().reason(row) == "not in the prompt's language"
    assert LanguageFilter(allowed=["en"]).reason(row) == "in zh"
    assert LanguageFilter(allowed=["zh"], same_as_prompt=False, max_mixed=None).reason(row) is None
    assert read(row["prompt"], row["response"]).mixed == 1.0


def test_characters_of_another_script_are_counted_one_by_one() -> None:
    english = " ".join(SENTENCES["en"])
    found = read("", english.replace("numbers", "数").replace("step", "步骤"))
    letters = weigh(prose(english))["Latin"] - len("numbersstep")
    assert found == Reading("en", None, round(9 / (letters + 9), 4))


def test_latin_terms_belong_to_a_text_in_another_script() -> None:
    chinese = "".join(SENTENCES["zh"]) + "这里我们使用 softmax 函数和 Adam 优化器来训练整个神经网络模型。"
    assert read("", chinese) == Reading("zh", None, 0.0)
    assert read("", "Пусть ReLU будет функцией активации, тогда Attention считается отдельно.").mixed == 0.0


@pytest.mark.parametrize(
    "short", ["", "42", "$x = 3$", "Start: 9\na+3\nb+6", "x y z", "```python\nreturn the_answer_to_all(questions)\n```"]
)
def test_too_little_text_has_no_language(short: str) -> None:
    assert read(short, short) == Reading(None, None, None)
    assert LanguageFilter(allowed=["en"]).reason({"prompt": short, "response": short}) is None


def test_the_tiny_task_has_no_language() -> None:
    for problem in RunningSumSource(train=20, eval=1).make(0).train:
        assert read(problem["prompt"], "<think>\na:9+3=12\n</think>\n\\boxed{12}").language is None


@pytest.mark.parametrize(
    ("given_text", "words"),
    [
        ("We take $a = b$ and\\(c\\)so.", "We take and so."),
        ("It costs $5.", "It costs"),
        ("the **Main** idea (see [here](https://x.org/a_b)) is", "the Main idea (see is"),
        ("所以x=3，我们有f(x)=9。", "所以 ，我们有 。"),
        ("sin is log of max_len", "is of"),
        ("Sei α ein Winkel", "Sei ein Winkel"),
        ("<|im_end|> and </think> done", "and done"),
    ],
)
def test_prose(given_text: str, words: str) -> None:
    assert " ".join(prose(given_text).split()) == words


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200), st.text("aé字かк$\\[]`{} .\n", max_size=200))
def test_any_text_can_be_read(prompt: str, response: str) -> None:
    found = read(prompt, response)
    assert found == read(prompt, response)
    assert found.mixed is None or 0 <= found.mixed <= 1
    assert sum(weigh(response).values()) <= 3 * len(response)
    assert weigh(prose(prompt)).keys() <= weigh(prompt).keys()


@pytest.mark.parametrize(
    "part", ["\\[ a ", "\\( ", "$", "$a ", "`", "```", "\\begin{a} ", "<", "{", "a.", "\\", "字", "\n"]
)
def test_reading_takes_time_in_proportion(part: str) -> None:
    def spent(size: int) -> float:
        started = time.process_time()
        prose(part * (size // len(part)))
        return time.process_time() - started

    spent(20_000)
    assert spent(400_000) < 200 * max(spent(20_000), 0.002)  # of 20 times the text; were it squared: 400 times


def test_the_columns_of_the_annotation_are_taken_as_they_are() -> None:
    row = {"prompt": "", "response": "", "language": "de", "prompt_language": "en", "mixed": 0.5}
    assert LanguageFilter().reason(row) == "not in the prompt's language"
    assert LanguageFilter().reason({**row, "prompt_language": None}) == "mixes languages"
    assert LanguageFilter(allowed=["en"]).reason(row) == "in de"
    assert LanguageFilter(max_mixed=0.5).reason({**row, "prompt_language": "de"}) is None
    assert (
        LanguageFilter(allowed=["id"]).reason({**row, "language": "ms", "prompt_language": "id", "mixed": 0.0}) is None
    )


@pytest.mark.parametrize(
    "config", [{"allowed": ["eng"]}, {"allowed": ["EN"]}, {"same_as_prompt": False, "max_mixed": None}]
)
def test_options_that_make_no_sense(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LanguageFilter(**config)


def test_without_the_package_there_is_one_line() -> None:
    program = (
        "import sys; sys.modules['py3langid'] = None; sys.modules['py3langid.langid'] = None\n"
        "from data_prep.annotation import LanguageAnnotation\n"
        "from reasonforge.errors import RequestError\n"
        "try: LanguageAnnotation().look([{'prompt': '', 'response': 'A sentence with many words in it.'}])\n"
        "except RequestError as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.count("\n") == 1
    assert "pip install 'reasonforge[language]'" in found.stdout


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    program = (
        "import sys, data_prep.filters, data_prep.annotation\n"
        "print(sorted({'py3langid', 'numpy', 'tokenizers', 'data_prep.annotation.identify'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
