import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.grading import final_text, last_boxed

# Text with balanced braces, escaped braces and commands, as a box may hold.
PLAIN = st.text(st.characters(codec="utf-8", exclude_characters="{}\\"), max_size=8)
BALANCED = st.recursive(
    PLAIN | st.sampled_from([r"\{", r"\}", r"\frac", r"\\"]),
    lambda inner: st.lists(inner, max_size=3).map("".join) | inner.map(lambda text: "{" + text + "}"),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("no thinking at all", "no thinking at all"),
        ("<think>a</think>b", "b"),
        ("opened by the template</think>b", "b"),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>never closed \\boxed{4}", None),
        ("<think>a</think>b<think>again", None),
        ("", ""),
    ],
)
def test_final_text(response: str, expected: str | None) -> None:
    assert final_text(response) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{1} then \boxed{2}", "2"),
        (r"\fbox{ 7 }", "7"),
        (r"\boxed {7}", "7"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a \\} b", r"a \\"),
        (r"\boxed{}", ""),
        (r"\boxed{41}, no: \boxed{42", None),
        (r"} \boxed{3} }", "3"),
        (r"\boxed{1{2}", None),
        (r"\boxedx{3}", None),
        (r"\boxed 5", None),
        ("nothing", None),
    ],
)
def test_last_boxed(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@given(BALANCED, st.text(st.characters(codec="utf-8", exclude_characters="\\"), max_size=20))
def test_any_balanced_content_comes_back(content: str, after: str) -> None:
    assert last_boxed(rf"\boxed{{0}} and \boxed{{{content}}}" + after) == content.strip()


@given(st.text(max_size=30), st.text(max_size=30).filter(lambda text: "think>" not in text))
def test_final_text_is_what_follows_the_thinking(thinking: str, final: str) -> None:
    assert final_text(f"<think>{thinking}</think>{final}") == final
