"""What a sample says, as turns of a conversation, and the one text that a chat template makes of them.

A sample is a string, a list of messages, or a `modalities.data.Sample` that holds, in this order of preference:

    extra["messages"]        [{"role": "user", "content": "..." or [{"type": "image"}, {"type": "text", "text": "..."}]}, ...]
    extra["conversations"]   LLaVA's own: [{"from": "human", "value": "<image>\\nWhat is it?"}, {"from": "gpt", "value": "..."}]
    extra["prompt"]          and, where there is one, extra["answer"]
    captions                 the first: the answer to the prompt given at load; without one, what the user says

Images are `extra["images"]` or the sample's one `image`; where no message places them, they come first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Part = dict[str, str]
ROLES = {"human": "user", "gpt": "assistant"}


class Turn(NamedTuple):
    role: str
    parts: list[Part]
    """{"type": "image"} and {"type": "text", "text": ...}, in order."""


class Conversation(NamedTuple):
    name: str
    """For error messages."""
    turns: list[Turn]
    images: list[Any]
    plain: bool
    """A text that no template has to be put around."""


class Rendered(NamedTuple):
    text: str
    answers: list[tuple[int, int]]
    """[begin, end) of what the assistant says, in characters."""


def conversation(sample: Any, prompt: str | None = None) -> Conversation:
    """The turns and images of a sample. Raises ValueError, with its key, for one that says nothing, or in a form that is not known."""
    if isinstance(sample, str):
        return Conversation("the text", [Turn("user", [_text(sample)])], [], True)
    if isinstance(sample, list):
        return Conversation("the conversation", _turns("the conversation", sample), [], False)
    name, extra = f"sample {sample.key!r}", sample.extra
    images = list(extra.get("images") or ([] if sample.image is None else [sample.image]))
    plain = False
    if extra.get("messages"):
        turns = _turns(name, extra["messages"])
    elif extra.get("conversations"):
        turns = _turns(name, _of_llava(name, extra["conversations"]))
    elif extra.get("prompt"):
        turns = _turns(name, _pair(extra["prompt"], extra.get("answer")))
    elif prompt is not None:
        turns = _turns(name, _pair(prompt, sample.captions[0] if sample.captions else None))
    elif sample.captions or images:
        plain = bool(sample.captions)
        turns = [Turn("user", [_text(caption) for caption in sample.captions[:1]])]
    else:
        raise ValueError(f"{name} has no text: give it a caption, a prompt or messages.")
    return Conversation(name, turns, images, plain)


def with_images(said: Conversation) -> list[Turn]:
    """The turns with a place for each image. Raises ValueError where the messages place more or fewer than there are."""
    places = sum(part["type"] == "image" for turn in said.turns for part in turn.parts)
    if places == len(said.images):
        return said.turns
    if places:
        raise ValueError(
            f"{said.name} has {len(said.images)} images for {places} places in its messages: make them agree."
        )
    first = next((number for number, turn in enumerate(said.turns) if turn.role == "user"), 0)
    turn = said.turns[first]
    return [
        *said.turns[:first],
        turn._replace(parts=[{"type": "image"}] * len(said.images) + turn.parts),
        *said.turns[first + 1 :],
    ]


def render(name: str, turns: Sequence[Turn], template: Callable[[list[dict[str, Any]], bool], str]) -> Rendered:
    """The text of the turns, open for an answer where the last word is not the assistant's. template: (messages, open) -> text."""
    messages: list[dict[str, Any]] = [{"role": turn.role, "content": turn.parts} for turn in turns]
    try:
        text = template(messages, turns[-1].role != "assistant")
    except Exception as error:  # templates are programs: they raise what they like
        said = " ".join(str(error).split())[:200].rstrip(".")
        raise ValueError(
            f"{name} does not suit the model's chat template ({said}): mend it, or give another template as the option chat_template."
        ) from error
    answers, cursor = [], 0
    for turn in turns:
        for part in turn.parts:
            words = part.get("text", "").strip()
            begin = text.find(words, cursor)
            if begin < 0 and turn.role == "assistant":
                raise ValueError(f"the chat template changes what the assistant says in {name}: give another template.")
            if begin >= 0:
                cursor = begin + len(words)
                answers += [(begin, cursor)] if turn.role == "assistant" and words else []
    return Rendered(text, answers)


def joined(image_token: str) -> Callable[[list[dict[str, Any]], bool], str]:
    """The template of a model that has none: images, each on its line, and texts, one after the other."""

    def template(messages: list[dict[str, Any]], _open: bool) -> str:
        text = ""
        for message in messages:
            for part in message["content"]:
                words = f"{image_token}\n" if part["type"] == "image" else part["text"]
                text += " " + words if message["role"] == "assistant" and text and not text[-1].isspace() else words
        return text

    return template


def text_only(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a string for content, as templates of language models want them. Images are left out."""
    return [
        message | {"content": "\n".join(part["text"] for part in message["content"] if part["type"] == "text")}
        for message in messages
    ]


def defused(turns: Sequence[Turn], marks: Sequence[str]) -> list[Turn]:
    """Turns whose text holds none of the tokenizer's marks: a caption that says "<image>" is no place for an image."""

    def clean(part: Part) -> Part:
        if part["type"] == "image":
            return part
        text = part["text"]
        for mark in marks:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return _text(text)

    return [turn._replace(parts=[clean(part) for part in turn.parts]) for turn in turns]


def _turns(name: str, messages: Any) -> list[Turn]:
    if not isinstance(messages, Sequence) or not messages:
        raise ValueError(f"{name} has messages that are no list: write [{{'role': 'user', 'content': '...'}}].")
    turns = []
    for message in messages:
        role, content = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else (None, None)
        parts = [_text(content)] if isinstance(content, str) else content
        known = isinstance(parts, Sequence) and all(_known(part) for part in parts)
        if not isinstance(role, str) or not known or not parts:
            raise ValueError(
                f"{name} has a message with role {role!r} that is not understood: write {{'role', 'content'}}."
            )
        turns.append(
            Turn(role, [_text(part["text"]) if part["type"] == "text" else {"type": "image"} for part in parts])
        )
    return turns


def _known(part: Any) -> bool:
    if not isinstance(part, Mapping):
        return False
    return part.get("type") == "image" or (part.get("type") == "text" and isinstance(part.get("text"), str))


def _of_llava(name: str, said: Any) -> list[dict[str, Any]]:
    """LLaVA's format: "<image>" in a text is the place of an image."""
    if not isinstance(said, Sequence) or not all(
        isinstance(one, Mapping) and isinstance(one.get("value"), str) for one in said
    ):
        raise ValueError(
            f"{name} has conversations that are not understood: write [{{'from': 'human', 'value': '...'}}]."
        )
    messages = []
    for one in said:
        parts: list[Part] = []
        for number, words in enumerate(one["value"].split("<image>")):
            parts += [{"type": "image"}] if number else []
            parts += [_text(words.strip())] if words.strip() else []
        messages.append({"role": ROLES.get(str(one.get("from")), str(one.get("from"))), "content": parts or ""})
    return messages


def _pair(prompt: str, answer: str | None) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": prompt}]
    return asked if answer is None else [*asked, {"role": "assistant", "content": answer}]


def _text(words: str) -> Part:
    return {"type": "text", "text": words}
