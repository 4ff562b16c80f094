"""Chat templates that place pictures: as they are where they can, extended where they only know texts."""

from __future__ import annotations

from typing import Any

from mmreason.types import ConfigError

# Contents that are lists of parts become texts, an image part the image token, before the template itself sees them.
_PARTS_TO_TEXT = (
    "{%- set mm = namespace(messages=[]) -%}"
    "{%- for message in messages -%}"
    "{%- if message['content'] is defined and message['content'] is not none and message['content'] is not string -%}"
    "{%- set parts = namespace(text='') -%}"
    "{%- for part in message['content'] -%}"
    "{%- if part['type'] == 'image' -%}{%- set parts.text = parts.text + 'IMAGE_TOKEN' -%}"
    "{%- elif part['type'] == 'text' -%}{%- set parts.text = parts.text + part['text'] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set mm.messages = mm.messages + [dict(message, content=parts.text)] -%}"
    "{%- else -%}{%- set mm.messages = mm.messages + [message] -%}{%- endif -%}"
    "{%- endfor -%}"
    "{%- set messages = mm.messages -%}"
)


def template_with_images(tokenizer: Any, image_token: str) -> str:
    """The tokenizer's chat template if it places pictures, else an extension of it.

    The extension is the text above in front of the template: contents given as lists of parts are joined to one text in
    their order, a picture as the image token, and the template then does with it what it does with any text. Messages
    whose content is a text pass unchanged, so prompts without pictures render as before.

    Raises:
        ConfigError: pictures can't be placed even so.
    """
    template = tokenizer.chat_template
    if isinstance(template, dict):
        raise ConfigError(
            f"the tokenizer has several chat templates ({', '.join(template)}); choose one with chat_template_path"
        )
    if _places(tokenizer, template, image_token):
        return str(template)
    extended = _PARTS_TO_TEXT.replace("IMAGE_TOKEN", image_token) + str(template)
    if not _places(tokenizer, extended, image_token):
        raise ConfigError(
            "the chat template can't place images: it leaves them out even where they stand in a text. Give another "
            "one with chat_template_path"
        )
    return extended


def _places(tokenizer: Any, template: str, image_token: str) -> bool:
    """Whether two pictures and three texts come out of the template once each, in their order."""
    from jinja2 import TemplateError

    texts = ["first text", "second text", "third text"]
    content = [{"type": "text", "text": texts[0]}, {"type": "image"}, {"type": "text", "text": texts[1]}]
    content += [{"type": "image"}, {"type": "text", "text": texts[2]}]
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, ValueError, TypeError):
        return False
    wanted = [texts[0], image_token, texts[1], image_token, texts[2]]
    position = 0
    for piece in wanted:
        position = rendered.find(piece, position)
        if position < 0:
            return False
        position += len(piece)
    return bool(rendered.count(image_token) == 2)
