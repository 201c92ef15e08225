"""What of a text is written in words: LaTeX, code, formulas, links and symbols are left out.

`data_prep.annotation.identify` reads a trace's language from the rest.
"""

import re

_FENCED = re.compile(r"```.*?```|~~~.*?~~~", re.DOTALL)
_ENVIRONMENT = re.compile(r"\\begin\s*\{[^{}\n]*\}(?:[^\\]|\\(?!begin|end))*+\\end\s*\{[^{}\n]*\}")
_DISPLAYED = re.compile(
    r"\$\$[^$]*+\$\$"
    r"|\\\[(?:[^\\]|\\(?![\[\]]))*+\\\]"
    r"|\\\((?:[^\\]|\\(?![()]))*+\\\)"
    r"|\$(?=\S)[^$\n]{1,300}\$"
    r"|`[^`\n]{1,300}`"
    r"|<[/!]?[A-Za-z|][^<>\n]{0,100}>"
    r"|https?://\S+|www\.\S+"
)
_COMMAND = re.compile(r"\\[A-Za-z]+\*?|[{}]")

_CHUNK = re.compile(r"[^\s\u2e80-\ua4cf\uac00-\ud7ff\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef\U00020000-\U0003ffff]+")
"""What stands between spaces; Chinese, Japanese and Korean characters, and their punctuation, end a chunk too."""
_FORMULA = re.compile(
    r"[\d=_^<>/|+*#@~\[\]\\&%$×÷±∀-⋿→←↔⇒⇔ℂ-ℝ\U0001d400-\U0001d7ff]|[^\W\d_]\(|[A-Za-z][Α-ω]|[Α-ω][A-Za-z]"
)
_EDGES = "*_#>|~+=-–—/"
_ENVIRONMENTS_WITHIN = 3
"""How deep environments stand inside each other."""
_NO_WORDS = re.compile(r"\w|sin|cos|tan|cot|sec|csc|log|ln|exp|lim|max|min|sup|inf|mod|gcd|lcm|det|dim|arg|deg|ker")
"""A variable, or the name of a function: in any language."""


def prose(text: str) -> str:
    """The words of a text, its line breaks and its punctuation; linear in time, whatever the text is."""
    if "```" in text or "~~~" in text:
        text = _FENCED.sub("\n", text)
    if "\\begin" in text:
        for _ in range(_ENVIRONMENTS_WITHIN):
            text = _ENVIRONMENT.sub(" ", text)
    text = _DISPLAYED.sub(" ", text)
    if "\\" in text or "{" in text:
        text = _COMMAND.sub(" ", text)
    return _CHUNK.sub(_word, text)


def _word(chunk: re.Match[str]) -> str:
    """A chunk without markup around it; nothing where it is a formula, a name in code or a single letter."""
    word: str = chunk.group().strip(_EDGES)
    if _FORMULA.search(word):
        return " "
    bare = word.strip("\"'“”„«»()[].,;:!?…¿¡")
    if _NO_WORDS.fullmatch(bare):
        return word[word.find(bare) + len(bare) :]
    return word
