"""Where the response begins among the tokens of a conversation, told by the control tokens of the chat template alone.

`data_prep.tokenization.chat` uses it on whole batches: no row needs Jinja, a second encoding of its prompt, or a search
for control tokens in its text. What does not look exactly as it must is left to the careful way, row by row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from data_prep.thinking import THINK_CLOSE, THINK_OPEN
from data_prep.tokenization.encoder import TextEncoder
from data_prep.tokenization.shape import Shape

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EndOf: TypeAlias = Callable[[list[int], int], tuple[int, bool] | None]


@dataclass(frozen=True)
class Layout:
    """The tokens that a template puts around a prompt and a response.

    An added token ends the text before it for a plain tokenizer (`TextEncoder.plain`): what stands on its two sides is
    encoded as if it were alone. So where a conversation has the added tokens `opening`, then of others only those in
    `thinking`, then those of `closing`, the text has no control tokens of its own, and the response begins after the
    last of `opening` and `tail`, if that is how the tokens go on.

    Args:
        shape: the texts around the prompt and the response.
        ending: what follows the response, as far as it is kept; it begins with an added token.
        opening: added tokens before the response.
        tail: tokens between the last of these and the response.
        closing: all tokens of `ending`.
        closing_added: how many of them are added tokens.
        added: by token, whether it is an added one; bool of shape [highest token + 1].
        thinking: by token, whether a response may have it although it is an added one.
        ends_with_eos: whether `ending` ends with the end-of-sequence token.
    """

    shape: Shape
    ending: str
    opening: list[int]
    tail: list[int]
    closing: list[int]
    closing_added: int
    added: "NDArray[np.bool_]"
    thinking: "NDArray[np.bool_]"
    ends_with_eos: bool

    def text(self, prompt: str, response: str) -> str:
        """The conversation as far as it is kept; empty where the template has to be asked."""
        found = self.shape.parts(prompt, response)
        return "" if found is None else f"{found[0]}{found[1]}{self.ending}"

    def cut(
        self, ids: "NDArray[np.int32]", lengths: "NDArray[np.int64]"
    ) -> "tuple[NDArray[np.int64], NDArray[np.bool_]]":
        """For each row how many tokens are the prompt's, and whether that is certain.

        Args:
            ids: the tokens of all rows, of shape [tokens].
            lengths: tokens of each row, of shape [rows].
        """
        import numpy as np

        ends = np.cumsum(lengths)
        starts = ends - lengths
        places = np.flatnonzero(self.added[ids])
        if not len(places):
            return np.zeros_like(lengths), np.zeros(len(lengths), np.bool_)
        found = ids[places]
        first = np.searchsorted(places, starts)
        last = np.searchsorted(places, ends) - self.closing_added
        after_opening = first + len(self.opening)
        sure = last >= after_opening

        def at(index: "NDArray[np.intp]") -> "NDArray[np.intp]":
            return np.clip(index, 0, len(places) - 1)

        for number, token in enumerate(self.opening):
            sure &= found[at(first + number)] == token
        foreign = np.concatenate((np.zeros(1, np.int64), np.cumsum(~self.thinking[found])))
        sure &= foreign[np.clip(after_opening, 0, len(places))] == foreign[np.clip(last, 0, len(places))]
        sure &= places[at(last)] == ends - len(self.closing)
        for number, token in enumerate(self.closing):
            sure &= ids[np.maximum(ends - len(self.closing) + number, 0)] == token
        tail = places[at(after_opening - 1)] + 1
        for number, token in enumerate(self.tail):
            sure &= ids[np.minimum(tail + number, len(ids) - 1)] == token
        prompts = tail + len(self.tail) - starts
        return prompts, sure & (prompts < lengths - len(self.closing))


def find_layout(
    encoder: TextEncoder, shape: Shape | None, control: set[str], thinking: set[str], end_of: EndOf
) -> Layout | None:
    """The layout of a template, or None where its tokens alone do not tell enough.

    Args:
        control: texts of added tokens that a prompt must not have.
        thinking: those of them that a response may have.
        end_of: from the tokens of a conversation and how many are the prompt's to how many are kept, and whether the
            last of these is the end of sequence; None where that takes more than tokens.
    """
    if shape is None or not encoder.plain:
        return None
    if any(_meet(one, other) for one in control - thinking for other in thinking):
        return None
    # Where the template opens the thinking, an answer without any may not go on with the generation prompt's tokens.
    examples = (shape.render("What?", said) for said in ("That.", f"{THINK_OPEN}\nSo.\n{THINK_CLOSE}\n\nThat."))
    found = (_layout_of(encoder, shape, example, thinking, end_of) for example in examples if example)
    return next((one for one in found if one), None)


def _layout_of(
    encoder: TextEncoder, shape: Shape, example: tuple[str, str], thinking: set[str], end_of: EndOf
) -> Layout | None:
    import numpy as np

    numbers = {token["content"]: token["id"] for token in encoder.added_tokens}
    added, allowed = np.zeros(encoder.highest_id + 1, np.bool_), np.zeros(encoder.highest_id + 1, np.bool_)
    added[list(numbers.values())] = True
    allowed[[number for text, number in numbers.items() if text in thinking]] = True
    opened, ids, before, after = (one.tolist() for one in encoder.encode([*example, shape.before, shape.after]))
    places = np.flatnonzero(added[opened]).tolist()
    between = int(added[before].sum()) if before else 0
    first = len(ids) - len(after)
    kept = end_of(ids, len(opened))
    if (
        ids[: len(opened)] != opened
        or ids[first:] != after
        or kept is None
        or len(places) <= between  # nothing would part the prompt from the response
        or allowed[opened[places[between]]]
        or not any(shape.after.startswith(text) and after[0] == number for text, number in numbers.items())
    ):
        return None
    closing, ending = after[: kept[0] - first], shape.after
    if kept[0] != len(ids):
        ending = next(text for text, number in numbers.items() if number == after[0])
        if len(closing) != 1:
            return None
    return Layout(
        shape=shape,
        ending=ending,
        opening=[opened[place] for place in places],
        tail=opened[places[-1] + 1 :],
        closing=closing,
        closing_added=int(added[closing].sum()),
        added=added,
        thinking=allowed,
        ends_with_eos=kept[1],
    )


def _meet(one: str, other: str) -> bool:
    """Whether two texts can share characters of a text in which both are found."""
    if one in other or other in one:
        return True
    sizes = range(1, min(len(one), len(other)))
    return any(one.startswith(other[-size:]) or other.startswith(one[-size:]) for size in sizes)
